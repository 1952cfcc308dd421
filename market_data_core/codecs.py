"""Records to columns and back.

:class:`EventDecoder` turns many bus records, JSON, msgpack and frames mixed, straight into one
:class:`EventBatch`. The fast path takes the whole batch; only when something in it is wrong does the slow
path look closer, to find the poison and its reason, and then takes the rest the fast way again.

``event_id`` on the wire must be ``provider|symbol|src_ts|seq`` with ``src_ts`` as written in the event (or in
canonical form); identity inside mdp is that tuple, so a record whose id says something else is poison.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from market_data_core import frames
from market_data_core.batch import EventBatch
from market_data_core.errors import PoisonRecord
from market_data_core.events import (
    EVENT_VERSION,
    KINDS,
    MAX_NOTIONAL,
    MAX_PRICE,
    MAX_VOLUME,
    Series,
    StreamEvent,
    format_interval,
    parse_interval,
)
from market_data_core.frames import (
    decode_bars,
    encode_bars,
    encode_end_of_lane,
    encode_frame,
)
from market_data_core.times import (
    MAX_TIME,
    MAX_YEAR,
    MIN_TIME,
    MIN_YEAR,
    format_time,
    format_times,
    parse_time,
    parse_times,
)

__all__ = [
    "Codec",
    "DeadLetter",
    "Decoded",
    "EventDecoder",
    "decode_bars",
    "decode_dead_letter",
    "encode_bars",
    "encode_dead_letter",
    "encode_end_of_lane",
    "encode_events",
    "encode_frame",
    "faults",
    "format_time",
    "format_times",
    "parse_time",
    "parse_times",
]

Codec = Literal["json", "msgpack", "frame"]

MAX_NAME: Final = 128
MAX_LANE: Final = 400
MAX_SERIES: Final = 200_000
_TABLES: Final = 64
_MAPS: Final = frozenset(bytes([first]) for first in (*range(0x80, 0x90), 0xDE, 0xDF))
"""How a msgpack map begins."""
_Seq = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class _Wire(msgspec.Struct, gc=False):
    """One event as JSON or msgpack has it. Unknown fields are ignored, as version 1 allows additions."""

    ver: Literal[1]
    provider: str
    symbol: str
    kind: str
    interval: str
    src_ts: str
    ingest_ts: str
    o: float
    h: float
    l: float
    c: float
    v: float
    seq: _Seq
    event_id: str


@dataclass(slots=True)
class Decoded:
    """What a list of records held.

    ``record[i]`` is the index of the record that row ``i`` of ``batch`` came from (None: row ``i`` is record
    ``i``). ``lanes`` has one entry a record, or is None when no record names a lane. ``ends``: records that
    end a lane. ``poison``: records that are no events, with the reason.
    """

    batch: EventBatch
    record: NDArray[np.int32] | None
    lanes: list[str | None] | None
    ends: list[tuple[int, str]] = field(default_factory=list)
    poison: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that was put aside: its original bytes, why, and where it came from. ``at`` in ns UTC."""

    reason: str
    topic: str
    partition: int
    offset: str
    key: str
    lane: str | None
    value: bytes
    at: int


class _DeadLetterWire(msgspec.Struct):
    ver: Literal[1]
    reason: str
    topic: str
    partition: int
    offset: str
    key: str
    lane: str | None
    value: bytes
    at: int


_json_one: Callable[[bytes], _Wire] = msgspec.json.Decoder(_Wire).decode
_msgpack_one: Callable[[bytes], _Wire] = msgspec.msgpack.Decoder(_Wire).decode
_json_encode = msgspec.json.Encoder().encode
_msgpack_encode = msgspec.msgpack.Encoder().encode
_dead_letter = msgspec.msgpack.Decoder(_DeadLetterWire).decode
_DECODE_ERRORS: Final = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError)


def encode_dead_letter(letter: DeadLetter) -> bytes:
    """The record of a dead letter topic."""
    names = ("reason", "topic", "partition", "offset", "key", "lane", "value", "at")
    return _msgpack_encode({"ver": 1} | {name: getattr(letter, name) for name in names})


def decode_dead_letter(value: bytes) -> DeadLetter:
    """The inverse of :func:`encode_dead_letter`.

    Raises:
        PoisonRecord: it is not a dead letter.
    """
    try:
        wire = _dead_letter(value)
    except _DECODE_ERRORS as error:
        raise PoisonRecord(f"not a dead letter: {frames.shortened(error)}") from None
    return DeadLetter(
        wire.reason, wire.topic, wire.partition, wire.offset, wire.key, wire.lane, wire.value, wire.at
    )


def encode_events(batch: EventBatch, codec: Literal["json", "msgpack"] = "json") -> list[bytes]:
    """One record a row."""
    encode = _json_encode if codec == "json" else _msgpack_encode
    src, ingest = format_times(batch.src_ts), format_times(batch.ingest_ts)
    columns = (batch.o, batch.h, batch.l, batch.c, batch.v, batch.seq)
    out = []
    rows = zip(batch.code.tolist(), src, ingest, *(c.tolist() for c in columns), strict=True)
    for code, at, stamp, o, h, low, c, v, seq in rows:
        provider, symbol, kind, interval = batch.series[code]
        event_id = f"{provider}|{symbol}|{at}|{seq}"
        wire = _Wire(1, provider, symbol, kind, interval, at, stamp, o, h, low, c, v, seq, event_id)
        out.append(encode(wire))
    return out


def faults(batch: EventBatch) -> dict[int, str]:
    """Rows whose numbers cannot be an event's, with the reason; empty when all are good."""
    o, h, low, c, v = batch.o, batch.h, batch.l, batch.c, batch.v
    with np.errstate(invalid="ignore", over="ignore"):
        good = (np.abs(c) <= MAX_PRICE) & (v >= 0) & (v <= MAX_VOLUME) & (np.abs(c) * v <= MAX_NOTIONAL)
        if not (o is c and h is c and low is c):
            good &= (np.abs(h) <= MAX_PRICE) & (np.abs(low) <= MAX_PRICE)
            good &= (low <= h) & (low <= o) & (o <= h) & (low <= c) & (c <= h)
            good &= (np.abs(h) * v <= MAX_NOTIONAL) & (np.abs(low) * v <= MAX_NOTIONAL)
    for times in (batch.src_ts, batch.ingest_ts):
        good &= (times >= MIN_TIME) & (times <= MAX_TIME)
    if good.all():
        return {}
    return {i: _fault(batch.take(slice(i, i + 1))) for i in np.flatnonzero(~good).tolist()}


def _fault(row: EventBatch) -> str:
    o, h, low, c, v = (float(x[0]) for x in (row.o, row.h, row.l, row.c, row.v))
    for name, value in zip("ohlcv", (o, h, low, c, v), strict=True):
        if not np.isfinite(value):
            return f"{name} is not a finite number"
    for name, value in zip("ohlc", (o, h, low, c), strict=True):
        if abs(value) > MAX_PRICE:
            return f"{name} {value:g} is beyond the largest price {MAX_PRICE:g}"
    if v < 0:
        return f"v {v:g} is negative"
    if v > MAX_VOLUME:
        return f"v {v:g} is beyond the largest volume {MAX_VOLUME:g}"
    if low > h:
        return f"l {low:g} is above h {h:g}"
    if not (low <= o <= h and low <= c <= h):
        return f"o {o:g} or c {c:g} is outside of l {low:g} to h {h:g}"
    for name, at in (("src_ts", row.src_ts[0]), ("ingest_ts", row.ingest_ts[0])):
        if not MIN_TIME <= at <= MAX_TIME:
            return f"{name} is outside of the years {MIN_YEAR} to {MAX_YEAR}"
    return f"price times volume is beyond {MAX_NOTIONAL:g}"


def canonical_series(provider: str, symbol: str, kind: str, interval: str) -> Series:
    """The series with its interval in canonical form.

    Raises:
        PoisonRecord: a name, the kind or the interval is not acceptable.
    """
    for field_name, name in (("provider", provider), ("symbol", symbol)):
        if not 0 < len(name) <= MAX_NAME:
            raise PoisonRecord(f"{field_name} must have 1 to {MAX_NAME} characters, not {len(name)}")
        if "|" in name or not name.isprintable():
            raise PoisonRecord(f"{field_name} has a '|' or a character that cannot be printed")
    if kind not in KINDS:
        raise PoisonRecord(f"kind {kind[:32]!r} is none of {', '.join(KINDS)}")
    try:
        return Series(provider, symbol, kind, _canonical_interval(interval[:32]))
    except ValueError as error:
        raise PoisonRecord(f"interval {error}") from None


@lru_cache(maxsize=256)
def _canonical_interval(text: str) -> str:
    return format_interval(parse_interval(text))


def check_lane(lane: str) -> None:
    """Raise PoisonRecord unless ``lane`` can name one: it is kept in the store, and the empty name is taken."""
    if not (0 < len(lane) <= MAX_LANE and lane.isprintable()):
        raise PoisonRecord(f"a lane must have 1 to {MAX_LANE} printable characters")


class EventDecoder:
    """Decodes batches of records; names keep their codes from one batch to the next.

    One decoder serves one consumer. ``batch.series`` is the same tuple until a new series appears.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._codes: dict[tuple[str, str, str, str], int] = {}
        self._known: dict[tuple[str, str, str], dict[str, int]] = {}
        self._tables: dict[tuple[tuple[str, str, str, str], ...], tuple[NDArray[np.int32], str]] = {}
        self._last_table: list[tuple[str, str, str, str]] = []
        self._last_codes = (np.empty(0, np.int32), "")
        self._canonical: dict[Series, int] = {}
        self._table: list[Series] = []
        self._series: tuple[Series, ...] = ()

    def decode(self, values: Sequence[bytes], lanes: list[str | None] | None = None) -> Decoded:
        """Columns of all events in ``values``, in record order; what is no event is in ``poison``."""
        if len(self._table) > MAX_SERIES:
            self._forget()
        first = values[0][:1] if values else b""
        one = _json_one if first == b"{" else _msgpack_one if first in _MAPS else None
        if one is not None:
            try:
                for lane in {lane for lane in lanes or () if lane is not None}:
                    check_lane(lane)
                return Decoded(self._rows(list(map(one, values))), None, lanes)
            except (*_DECODE_ERRORS, PoisonRecord):
                pass
        return self._mixed(values, lanes)

    def _mixed(self, values: Sequence[bytes], lanes: list[str | None] | None) -> Decoded:
        out = Decoded(EventBatch.empty(), None, lanes and lanes.copy())
        singles: list[_Wire] = []
        single_at: list[int] = []
        parts: list[tuple[EventBatch, NDArray[np.int32]]] = []
        for index, value in enumerate(values):
            try:
                if lanes is not None and (lane := lanes[index]) is not None:
                    check_lane(lane)
                if value[:1] == b"\xc1":
                    self._frame(index, value, len(values), parts, out)
                else:
                    singles.append(_single(value))
                    single_at.append(index)
            except _DECODE_ERRORS as error:
                out.poison.append((index, _reason(error)))
            except PoisonRecord as error:
                out.poison.append((index, str(error)))
        if singles:
            parts.extend(self._good_rows(singles, single_at, out.poison))
        out.poison.sort()
        if len(parts) == 1:
            out.batch, out.record = parts[0]
        elif parts:
            record = np.concatenate([r for _, r in parts])
            batch = EventBatch.concat([b.with_series(self._names()) for b, _ in parts])
            if (record[1:] < record[:-1]).any():
                order = np.argsort(record, kind="stable")
                batch, record = batch.take(order), record[order]
            out.batch, out.record = batch, record
        if out.record is None:
            out.record = np.empty(0, np.int32)
        return out

    def _frame(
        self,
        index: int,
        value: bytes,
        count: int,
        parts: list[tuple[EventBatch, NDArray[np.int32]]],
        out: Decoded,
    ) -> None:
        frame = frames.decode_frame(value)
        if isinstance(frame, frames._Bars):
            raise PoisonRecord("a frame of bars, not of events")
        lane = frame.lane
        if lane is not None:
            check_lane(lane)
        if isinstance(frame, frames._End):
            out.ends.append((index, frame.lane))
        else:
            codes, unusable = self._codes_of(frame)
            batch = frames.events_of(frame, self._names(), codes)
            if unusable and len(batch) and int(batch.code.min()) < 0:
                raise PoisonRecord(unusable)
            bad = faults(batch)
            if bad:
                row, reason = next(iter(bad.items()))
                raise PoisonRecord(f"frame row {row}: {reason}")
            parts.append((batch, np.full(len(batch), index, np.int32)))
        if lane is not None:
            if out.lanes is None:
                out.lanes = [None] * count
            out.lanes[index] = lane

    def _codes_of(self, frame: frames._Events) -> tuple[NDArray[np.int32], str]:
        """The code of each series of a frame, -1 for a name that cannot be used, and why the first such cannot.

        A table sent whole may hold one, as long as no row refers to it.
        """
        # Mostly the table of the frame before, which is sooner compared than hashed.
        if frame.series == self._last_table:
            return self._last_codes
        key = tuple(frame.series)
        found = self._tables.get(key)
        if found is None:
            codes: list[int] = []
            unusable = ""
            for provider, kind, interval, symbols in frames.symbols_of(frame):
                try:
                    known = self._known[provider, kind, interval]
                    codes += [known[symbol] for symbol in symbols]
                except KeyError:
                    for symbol in symbols:
                        try:
                            codes.append(self._code((provider, symbol, kind, interval)))
                        except PoisonRecord as error:
                            codes.append(-1)
                            unusable = unusable or str(error)
            if len(self._tables) >= _TABLES:
                self._tables.clear()
            found = self._tables[key] = np.array(codes, np.int32), unusable
        self._last_table, self._last_codes = frame.series, found
        return found

    def _good_rows(
        self, singles: list[_Wire], at: list[int], poison: list[tuple[int, str]]
    ) -> list[tuple[EventBatch, NDArray[np.int32]]]:
        """The good rows; each bad one, first by its names and times, then by its numbers, is poison."""
        try:
            return [(self._rows(singles), np.array(at, np.int32))]
        except (PoisonRecord, ValueError):
            pass
        readable: list[int] = []
        for i, wire in enumerate(singles):
            try:
                self._check(wire)
                readable.append(i)
            except (PoisonRecord, ValueError) as error:
                poison.append((at[i], str(error)))
        if not readable:
            return []
        batch = self._columns([singles[i] for i in readable])
        record = np.array([at[i] for i in readable], np.int32)
        bad = faults(batch)
        poison.extend((int(record[row]), reason) for row, reason in bad.items())
        good = np.setdiff1d(np.arange(len(batch)), list(bad)) if bad else slice(None)
        return [(batch.take(good), record[good])]

    def _check(self, wire: _Wire) -> None:
        """Raise PoisonRecord or ValueError for what keeps one event out of :meth:`_columns`."""
        self._code((wire.provider, wire.symbol, wire.kind, wire.interval))
        parse_time(wire.src_ts)
        parse_time(wire.ingest_ts)
        if wire.event_id != f"{wire.provider}|{wire.symbol}|{wire.src_ts}|{wire.seq}":
            _check_canonical_id(wire)

    def _rows(self, rows: list[_Wire]) -> EventBatch:
        """Columns of decoded events.

        Raises:
            PoisonRecord, ValueError: some row is wrong.
        """
        batch = self._columns(rows)
        bad = faults(batch)
        if bad:
            raise PoisonRecord(next(iter(bad.values())))
        return batch

    def _columns(self, rows: list[_Wire]) -> EventBatch:
        """:meth:`_rows` before their numbers are checked."""
        codes = self._codes
        try:
            code = [codes[w.provider, w.symbol, w.kind, w.interval] for w in rows]
        except KeyError:
            code = [self._code((w.provider, w.symbol, w.kind, w.interval)) for w in rows]
        src_ts = parse_times([w.src_ts for w in rows])
        for w in rows:
            if w.event_id != f"{w.provider}|{w.symbol}|{w.src_ts}|{w.seq}":
                _check_canonical_id(w)
        o, h, low, c = (
            _floats([w.o for w in rows]),
            _floats([w.h for w in rows]),
            _floats([w.l for w in rows]),
            _floats([w.c for w in rows]),
        )
        if (o == c).all() and (h == c).all() and (low == c).all():
            o = h = low = c
        return EventBatch(
            series=self._names(),
            code=np.array(code, np.int32),
            src_ts=src_ts,
            ingest_ts=parse_times([w.ingest_ts for w in rows]),
            o=o,
            h=h,
            l=low,
            c=c,
            v=_floats([w.v for w in rows]),
            seq=np.array([w.seq for w in rows], np.int64),
        )

    def _names(self) -> tuple[Series, ...]:
        """All series so far; the same tuple until one is added."""
        if len(self._series) != len(self._table):
            self._series = tuple(self._table)
        return self._series

    def _code(self, key: tuple[str, str, str, str]) -> int:
        code = self._codes.get(key)
        if code is None:
            series = canonical_series(*key)
            code = self._canonical.setdefault(series, len(self._canonical))
            if code == len(self._table):
                self._table.append(series)
            self._codes[key] = code
            self._known.setdefault((key[0], *key[2:]), {})[key[1]] = code
        return code


def _floats(values: list[float]) -> NDArray[np.float64]:
    return np.fromiter(values, np.float64, len(values))


def _check_canonical_id(wire: _Wire) -> None:
    canonical = f"{wire.provider}|{wire.symbol}|{format_time(parse_time(wire.src_ts))}|{wire.seq}"
    if wire.event_id != canonical:
        raise PoisonRecord(f"event_id {wire.event_id[:100]!r} is not provider|symbol|src_ts|seq")


def _single(value: bytes) -> _Wire:
    if value[:1] in _MAPS:
        return _msgpack_one(value)
    if not value:
        raise PoisonRecord("the record is empty")
    if value.lstrip()[:1] != b"{":
        raise PoisonRecord("neither a JSON object, nor a msgpack map, nor a frame")
    return _json_one(value)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    text = frames.shortened(error)
    if text.endswith("`$.ver`"):
        return f"ver is not {EVENT_VERSION}: {text}"
    return text


def event_of(value: bytes) -> StreamEvent:
    """The single event of one JSON or msgpack record, for tools that show or test one.

    Raises:
        PoisonRecord: with the reason.
    """
    decoded = EventDecoder().decode([value])
    if decoded.poison:
        raise PoisonRecord(decoded.poison[0][1])
    if len(decoded.batch) != 1:
        raise PoisonRecord("a frame, not a single event")
    return decoded.batch.events()[0]
