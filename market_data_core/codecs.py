"""Records to columns and back: all of it by one name. Each part says more of itself."""

from __future__ import annotations

from typing import Literal

from market_data_core.dead_letter import DeadLetter, decode_dead_letter, encode_dead_letter
from market_data_core.event_decoder import Decoded, EventDecoder, event_of
from market_data_core.frames import decode_bars, encode_bars, encode_end_of_lane, encode_frame
from market_data_core.single_event import encode_events
from market_data_core.times import format_time, format_times, parse_time, parse_times
from market_data_core.validation import MAX_SERIES, canonical_series, faults

__all__ = [
    "MAX_SERIES",
    "Codec",
    "DeadLetter",
    "Decoded",
    "EventDecoder",
    "canonical_series",
    "decode_bars",
    "decode_dead_letter",
    "encode_bars",
    "encode_dead_letter",
    "encode_end_of_lane",
    "encode_events",
    "encode_frame",
    "event_of",
    "faults",
    "format_time",
    "format_times",
    "parse_time",
    "parse_times",
]

Codec = Literal["json", "msgpack", "frame"]
