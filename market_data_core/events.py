"""The contracts in row form: what a person, a test or a provider of one event handles.

The hot path never makes these; it works on the columns of :mod:`market_data_core.batch`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

EVENT_VERSION: Final = 1
KINDS: Final = ("tick", "bar", "quote")

MAX_PRICE: Final = 1e12
"""Largest absolute price accepted, so that exact sums cannot overflow."""
MAX_VOLUME: Final = 1e15
"""Largest volume of one event accepted."""
MAX_NOTIONAL: Final = 1e21
"""Largest price times volume of one event accepted."""

_UNITS: Final = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9}
_INTERVAL = re.compile(r"([1-9][0-9]{0,8})(ms|s|m|h|d)\Z")


class Series(NamedTuple):
    """What a column of events belongs to: one symbol of one provider, in one kind and interval."""

    provider: str
    symbol: str
    kind: str
    interval: str


class BarSeries(NamedTuple):
    """What a column of bars belongs to."""

    provider: str
    symbol: str
    interval: str


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One observation, version 1. Times are int64 nanoseconds UTC; ``v`` is the size traded."""

    provider: str
    symbol: str
    kind: str
    interval: str
    src_ts: int
    ingest_ts: int
    o: float
    h: float
    l: float
    c: float
    v: float
    seq: int

    @property
    def event_id(self) -> str:
        """``provider|symbol|src_ts|seq``: the same observation always has the same id."""
        from market_data_core.codecs import format_time

        return f"{self.provider}|{self.symbol}|{format_time(self.src_ts)}|{self.seq}"


@dataclass(frozen=True, slots=True)
class Bar:
    """One OHLCV bar of the window ``[ts, ts + interval)``. ``vwap`` is None when nothing was traded."""

    provider: str
    symbol: str
    interval: str
    ts: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    vwap: float | None
    n_events: int
    first_ts: int
    last_ts: int
    revision: int


@dataclass(frozen=True, slots=True)
class Signal:
    """One decision about a symbol at a time, version 1. Key: provider, symbol, ts, name.

    ``ts`` is when the bar that it was made of ended, in ns UTC.
    """

    provider: str
    symbol: str
    ts: int
    name: str
    value: float
    score: float
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def signal_id(self) -> str:
        """``provider|symbol|ts|name``: the same decision always has the same id."""
        from market_data_core.codecs import format_time

        return f"{self.provider}|{self.symbol}|{format_time(self.ts)}|{self.name}"


def parse_interval(text: str) -> int:
    """Nanoseconds of ``500ms``, ``2s``, ``1m``, ``60s``, ``1h`` or ``1d``.

    Raises:
        ValueError: the text is not a positive whole number with one of those units.
    """
    match = _INTERVAL.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a duration such as 500ms, 2s, 1m, 1h or 1d")
    return int(match[1]) * _UNITS[match[2]]


def format_interval(ns: int) -> str:
    """The canonical text of an interval: the largest unit that divides it (``60s`` is ``1m``)."""
    for unit in ("d", "h", "m", "s", "ms"):
        if ns > 0 and ns % _UNITS[unit] == 0:
            return f"{ns // _UNITS[unit]}{unit}"
    raise ValueError(f"{ns} ns is not a whole number of milliseconds")
