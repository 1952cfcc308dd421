"""Signals on the wire: version 1 as JSON, one record a signal, and the parcel in which many wait in the outbox."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec

from market_data_core.errors import PoisonRecord
from market_data_core.events import Signal
from market_data_core.frames import shortened
from market_data_core.times import format_time, parse_time

_PARCEL: Final = b"\xc1\xc1"
"""No frame begins so: in one, a map follows the first byte."""
_Name = Annotated[str, msgspec.Meta(min_length=1)]


class _Signal(msgspec.Struct):
    ver: Literal[1]
    provider: _Name
    symbol: _Name
    ts: str
    name: _Name
    value: float
    score: float
    meta: dict[str, Any] = {}


_to_json = msgspec.json.Encoder().encode
_from_json = msgspec.json.Decoder(_Signal).decode
_to_msgpack = msgspec.msgpack.Encoder().encode
_from_msgpack = msgspec.msgpack.Decoder(list[tuple[str, bytes]]).decode


def encode_signal(signal: Signal) -> bytes:
    """One signal as a JSON record."""
    return _record(signal, format_time(signal.ts))


def _record(s: Signal, ts: str) -> bytes:
    return _to_json(_Signal(1, s.provider, s.symbol, ts, s.name, s.value, s.score, s.meta))


def decode_signal(value: bytes) -> Signal:
    """The signal of one record.

    Raises:
        PoisonRecord: it is none, with the reason.
    """
    try:
        s = _from_json(value)
        ts = parse_time(s.ts)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise PoisonRecord(f"not a signal: {shortened(error)}") from None
    return Signal(s.provider, s.symbol, ts, s.name, s.value, s.score, s.meta)


def encode_parcel(signals: Iterable[Signal]) -> bytes:
    """Many signals as one value of the outbox: (key, record) of each."""
    # Many are of the same time.
    times: dict[int, str] = {}
    records = []
    for s in signals:
        ts = times.get(s.ts) or times.setdefault(s.ts, format_time(s.ts))
        records.append((s.symbol, _record(s, ts)))
    return _PARCEL + _to_msgpack(records)


def parcel_of(value: bytes) -> Sequence[tuple[str, bytes]] | None:
    """The (key, record) pairs of a parcel; None when ``value`` is something else."""
    return _from_msgpack(memoryview(value)[2:]) if value[:2] == _PARCEL else None
