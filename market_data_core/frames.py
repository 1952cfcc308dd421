"""Frames: one record that carries many rows of one partition as columns.

A frame is the byte 0xC1 (which no msgpack value and no JSON text begins with) and a msgpack map. Columns are
raw little-endian buffers: int32 codes, int64 nanoseconds and sequence numbers, float64 prices. Three kinds:
``events``, ``bars`` and ``end`` (the end of a lane, which closes its windows at once).

The series of events come in groups of one provider, kind and interval, their symbols joined by ``|``, which no
name may contain: with thousands of symbols in a frame, one text is read several times faster than one a name, and
a text that was read before is known whole. So a table of series is sent whole where a third of it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from market_data_core.batch import BarBatch, EventBatch
from market_data_core.errors import PoisonRecord
from market_data_core.events import BarSeries, Series

FRAME_BYTE: Final = 0xC1
_MAGIC: Final = b"\xc1"
_BETWEEN: Final = "|"
_WHOLE: Final = 3
_INT: Final = np.dtype("<i8")
_CODE: Final = np.dtype("<i4")
_FLOAT: Final = np.dtype("<f8")
_BAR_INTS: Final = ("ts", "n_events", "first_ts", "first_seq", "last_ts", "last_seq")
_BAR_FLOATS: Final = ("open", "high", "low", "close", "volume", "volume_lo", "notional", "notional_lo")


class _Events(msgspec.Struct, tag_field="t", tag="events", omit_defaults=True):
    ver: Literal[1]
    n: int
    series: list[tuple[str, str, str, str]]  # provider, kind, interval, symbols
    code: bytes
    src_ts: bytes
    ingest_ts: bytes | int
    c: bytes
    v: bytes
    seq: bytes
    o: bytes | None = None
    h: bytes | None = None
    l: bytes | None = None
    lane: str | None = None


class _Bars(msgspec.Struct, tag_field="t", tag="bars", omit_defaults=True):
    ver: Literal[1]
    n: int
    series: list[tuple[str, str, str]]
    code: bytes
    revision: bytes
    columns: dict[str, bytes]
    lane: str | None = None


class _End(msgspec.Struct, tag_field="t", tag="end"):
    ver: Literal[1]
    lane: str


Frame = _Events | _Bars | _End
_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[memoryview], Frame] = msgspec.msgpack.Decoder(Frame).decode


def shortened(error: Exception) -> str:
    """What ``error`` says, without the middle of a value that was quoted whole."""
    text = str(error)
    return text if len(text) <= 300 else f"{text[:200]}...{text[-80:]}"


def _bytes(column: NDArray[Any], dtype: np.dtype[Any]) -> bytes:
    return np.ascontiguousarray(column, dtype).tobytes()


def _used(series: tuple[Any, ...], code: NDArray[np.int32]) -> tuple[list[Any], NDArray[np.int32]]:
    """Only the series that rows refer to, and codes into them."""
    present, dense = np.unique(code, return_inverse=True)
    return [series[i] for i in present.tolist()], dense.astype(np.int32)


def _grouped(
    series: tuple[Series, ...], code: NDArray[np.int32]
) -> tuple[list[tuple[str, str, str, str]], NDArray[np.int32]]:
    """Groups that hold at least the series that rows refer to, and codes into them."""
    used = np.zeros(len(series), np.bool_)
    used[code] = True
    if _WHOLE * np.count_nonzero(used) >= len(series):
        groups, dense = _groups_of(series, range(len(series)))
        if groups is not None:
            return groups, dense[code]
    groups, dense = _groups_of(series, np.flatnonzero(used).tolist())
    if groups is None:
        raise ValueError(f"a symbol has a {_BETWEEN!r}, which no name may contain")
    return groups, dense[code]


def _groups_of(
    series: tuple[Series, ...], chosen: Iterable[int]
) -> tuple[list[tuple[str, str, str, str]] | None, NDArray[np.int32]]:
    """The chosen series in groups (None when a symbol cannot be joined), and the place of each there."""
    members: dict[tuple[str, str, str], list[int]] = {}
    for i in chosen:
        s = series[i]
        members.setdefault((s.provider, s.kind, s.interval), []).append(i)
    place = np.zeros(len(series), np.int32)
    groups: list[tuple[str, str, str, str]] = []
    done = 0
    for of, group in members.items():
        place[group] = np.arange(done, done + len(group), dtype=np.int32)
        done += len(group)
        symbols = _BETWEEN.join([series[i].symbol for i in group])
        if symbols.count(_BETWEEN) != len(group) - 1:
            return None, place
        groups.append((*of, symbols))
    return groups, place


def encode_frame(batch: EventBatch, lane: str | None = None) -> bytes:
    """One frame of ``batch``. Ticks, where ``o h l`` are the array of ``c``, send their price once.

    Raises:
        ValueError: a symbol has a ``|``.
    """
    series, code = _grouped(batch.series, batch.code)
    same_stamp = len(batch) > 0 and bool((batch.ingest_ts == batch.ingest_ts[0]).all())

    def price(column: NDArray[np.float64]) -> bytes | None:
        same = column is batch.c or bool((column == batch.c).all())
        return None if same else _bytes(column, _FLOAT)

    frame = _Events(
        ver=1,
        n=len(batch),
        series=series,
        code=_bytes(code, _CODE),
        src_ts=_bytes(batch.src_ts, _INT),
        ingest_ts=int(batch.ingest_ts[0]) if same_stamp else _bytes(batch.ingest_ts, _INT),
        c=_bytes(batch.c, _FLOAT),
        v=_bytes(batch.v, _FLOAT),
        seq=_bytes(batch.seq, _INT),
        o=price(batch.o),
        h=price(batch.h),
        l=price(batch.l),
        lane=lane,
    )
    return _MAGIC + _encode(frame)


def encode_bars(bars: BarBatch, lane: str | None = None) -> bytes:
    """One frame of ``bars``, as published on the bars topic."""
    series, code = _used(bars.series, bars.code)
    columns = {name: _bytes(getattr(bars, name), _INT) for name in _BAR_INTS}
    columns |= {name: _bytes(getattr(bars, name), _FLOAT) for name in _BAR_FLOATS}
    frame = _Bars(
        ver=1,
        n=len(bars),
        series=[tuple(s) for s in series],
        code=_bytes(code, _CODE),
        revision=_bytes(bars.revision, _CODE),
        columns=columns,
        lane=lane,
    )
    return _MAGIC + _encode(frame)


def encode_end_of_lane(lane: str) -> bytes:
    """The record that ends a lane in its partition."""
    return _MAGIC + _encode(_End(ver=1, lane=lane))


def decode_frame(value: bytes) -> Frame:
    """The parsed frame; its columns are still bytes.

    Raises:
        PoisonRecord: ``value`` is not a frame of a known kind and version.
    """
    try:
        return _decode(memoryview(value)[1:])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise PoisonRecord(f"not a frame: {shortened(error)}") from None


def _column(name: str, raw: bytes, dtype: np.dtype[Any], n: int) -> NDArray[Any]:
    if len(raw) != n * dtype.itemsize:
        raise PoisonRecord(f"frame column {name} has {len(raw)} bytes, not {n} values of {dtype.itemsize}")
    return np.frombuffer(raw, dtype)


def _codes(raw: bytes, n: int, series: int) -> NDArray[np.int32]:
    code: NDArray[np.int32] = _column("code", raw, _CODE, n)
    if n and not 0 <= int(code.min()) <= int(code.max()) < series:
        raise PoisonRecord(f"frame has codes outside of its {series} series")
    return code


def symbols_of(frame: _Events) -> list[tuple[str, str, str, list[str]]]:
    """Provider, kind, interval and symbols of each group; the names are not yet validated.

    Raises:
        PoisonRecord: far more series than rows, which no encoder makes.
    """
    groups = [(p, kind, interval, s.split(_BETWEEN)) for p, kind, interval, s in frame.series]
    if sum(len(symbols) for *_, symbols in groups) > _WHOLE * max(frame.n, 0):
        raise PoisonRecord(f"frame has more than {_WHOLE} series for each of its {frame.n} rows")
    return groups


def events_of(frame: _Events, series: tuple[Series, ...], codes: NDArray[np.int32]) -> EventBatch:
    """The columns of an ``events`` frame, without copying; values are not yet validated.

    The frame's series number ``i`` is ``series[codes[i]]``; a code of -1 is for the caller to find.

    Raises:
        PoisonRecord: columns of different lengths, or codes without a series.
    """
    n = frame.n
    c = _column("c", frame.c, _FLOAT, n)
    if isinstance(frame.ingest_ts, int):
        if not -(2**63) <= frame.ingest_ts < 2**63:
            raise PoisonRecord("frame ingest_ts is out of range")
        ingest_ts = np.full(n, frame.ingest_ts, np.int64)
    else:
        ingest_ts = _column("ingest_ts", frame.ingest_ts, _INT, n)
    code = _codes(frame.code, n, len(codes))
    return EventBatch(
        series=series,
        code=codes[code] if n else code,
        src_ts=_column("src_ts", frame.src_ts, _INT, n),
        ingest_ts=ingest_ts,
        o=c if frame.o is None else _column("o", frame.o, _FLOAT, n),
        h=c if frame.h is None else _column("h", frame.h, _FLOAT, n),
        l=c if frame.l is None else _column("l", frame.l, _FLOAT, n),
        c=c,
        v=_column("v", frame.v, _FLOAT, n),
        seq=_column("seq", frame.seq, _INT, n),
    )


def bars_of(frame: _Bars) -> BarBatch:
    """The columns of a ``bars`` frame, without copying.

    Raises:
        PoisonRecord: a column is missing or of another length.
    """
    n = frame.n
    try:
        columns = {name: _column(name, frame.columns[name], _INT, n) for name in _BAR_INTS}
        columns |= {name: _column(name, frame.columns[name], _FLOAT, n) for name in _BAR_FLOATS}
    except KeyError as missing:
        raise PoisonRecord(f"bars frame has no column {missing}") from None
    return BarBatch(
        series=tuple(BarSeries(*s) for s in frame.series),
        code=_codes(frame.code, n, len(frame.series)),
        revision=_column("revision", frame.revision, _CODE, n),
        **columns,
    )


def decode_bars(value: bytes) -> BarBatch:
    """The bars of one record of the bars topic.

    Raises:
        PoisonRecord: it is not a bars frame.
    """
    if not value or value[0] != FRAME_BYTE:
        raise PoisonRecord("not a bars frame")
    frame = decode_frame(value)
    if not isinstance(frame, _Bars):
        raise PoisonRecord("a frame, but not of bars")
    return bars_of(frame)
