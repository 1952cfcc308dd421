"""The record of a dead letter topic: the bytes that were put aside, why, and where they came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from market_data_core.errors import PoisonRecord
from market_data_core.frames import shortened
from market_data_core.single_event import DECODE_ERRORS


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


class _Wire(msgspec.Struct):
    ver: Literal[1]
    reason: str
    topic: str
    partition: int
    offset: str
    key: str
    lane: str | None
    value: bytes
    at: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Wire).decode


def encode_dead_letter(letter: DeadLetter) -> bytes:
    """The record of a dead letter topic."""
    names = ("reason", "topic", "partition", "offset", "key", "lane", "value", "at")
    return _encode({"ver": 1} | {name: getattr(letter, name) for name in names})


def decode_dead_letter(value: bytes) -> DeadLetter:
    """The inverse of :func:`encode_dead_letter`.

    Raises:
        PoisonRecord: it is not a dead letter.
    """
    try:
        wire = _decode(value)
    except DECODE_ERRORS as error:
        raise PoisonRecord(f"not a dead letter: {shortened(error)}") from None
    return DeadLetter(
        wire.reason, wire.topic, wire.partition, wire.offset, wire.key, wire.lane, wire.value, wire.at
    )
