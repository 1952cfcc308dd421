"""One event a record, as JSON or msgpack.

``event_id`` on the wire must be ``provider|symbol|src_ts|seq`` with ``src_ts`` as written in the event (or in
canonical form); identity inside mdp is that tuple, so a record whose id says something else is poison.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final, Literal

import msgspec

from market_data_core.batch import EventBatch
from market_data_core.errors import PoisonRecord
from market_data_core.events import EVENT_VERSION
from market_data_core.frames import shortened
from market_data_core.times import format_time, format_times, parse_time

MAPS: Final = frozenset(bytes([first]) for first in (*range(0x80, 0x90), 0xDE, 0xDF))
"""How a msgpack map begins."""
DECODE_ERRORS: Final = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError)

_Seq = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class WireEvent(msgspec.Struct, gc=False):
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


of_json: Callable[[bytes], WireEvent] = msgspec.json.Decoder(WireEvent).decode
of_msgpack: Callable[[bytes], WireEvent] = msgspec.msgpack.Decoder(WireEvent).decode
_json_encode = msgspec.json.Encoder().encode
_msgpack_encode = msgspec.msgpack.Encoder().encode


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
        wire = WireEvent(1, provider, symbol, kind, interval, at, stamp, o, h, low, c, v, seq, event_id)
        out.append(encode(wire))
    return out


def read_single(value: bytes) -> WireEvent:
    """The event of one record.

    Raises:
        PoisonRecord, or one of DECODE_ERRORS (see :func:`reason`): it is none.
    """
    if value[:1] in MAPS:
        return of_msgpack(value)
    if not value:
        raise PoisonRecord("the record is empty")
    if value.lstrip()[:1] != b"{":
        raise PoisonRecord("neither a JSON object, nor a msgpack map, nor a frame")
    return of_json(value)


def check_id(wire: WireEvent) -> None:
    """Raise PoisonRecord or ValueError unless ``event_id`` is that of the event."""
    if wire.event_id == f"{wire.provider}|{wire.symbol}|{wire.src_ts}|{wire.seq}":
        return
    canonical = f"{wire.provider}|{wire.symbol}|{format_time(parse_time(wire.src_ts))}|{wire.seq}"
    if wire.event_id != canonical:
        raise PoisonRecord(f"event_id {wire.event_id[:100]!r} is not provider|symbol|src_ts|seq")


def reason(error: Exception) -> str:
    """Why a record cannot be decoded, for a person."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    text = shortened(error)
    if text.endswith("`$.ver`"):
        return f"ver is not {EVENT_VERSION}: {text}"
    return text
