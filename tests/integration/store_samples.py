"""Events, bars and flushes for the tests of the store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from market_data_core.batch import BarBatch, EventBatch
from market_data_core.events import Bar, BarSeries, StreamEvent
from market_data_core.protocols import Claim, Flush, LaneFlush, Position

S = 10**9
T0 = 1_700_000_040 * S
"""A whole minute."""


def tick(
    at: float, price: float, size: float = 1.0, *, seq: int = 0, symbol: str = "SPY", provider: str = "sim"
) -> StreamEvent:
    """One trade, ``at`` seconds after :data:`T0`."""
    ts = T0 + round(at * S)
    return StreamEvent(provider, symbol, "tick", "1s", ts, ts, price, price, price, price, size, seq)


def events(*rows: StreamEvent) -> EventBatch:
    return EventBatch.from_events(rows)


def bars(
    count: int,
    *,
    symbols: Sequence[str] = ("SPY",),
    interval: str = "1m",
    step: int = 60 * S,
    start: int = T0,
    n_events: int = 3,
    provider: str = "sim",
    price: float = 100.0,
    notional: bool = True,
) -> BarBatch:
    """``count`` bars of each symbol, one every ``step``."""
    n = count * len(symbols)
    code = np.repeat(np.arange(len(symbols), dtype=np.int32), count)
    ts = np.tile(start + np.arange(count, dtype=np.int64) * step, len(symbols))
    open_ = price + np.arange(n, dtype=np.float64)
    volume = np.full(n, 10.0)
    known = open_ * volume if notional else np.full(n, np.nan)
    zero, seq = np.zeros(n), np.arange(n, dtype=np.int64)
    return BarBatch(
        series=tuple(BarSeries(provider, s, interval) for s in symbols),
        code=code,
        ts=ts,
        open=open_,
        high=open_ + 1,
        low=open_ - 1,
        close=open_ + 0.5,
        volume=volume,
        volume_lo=zero,
        notional=known,
        notional_lo=zero,
        n_events=np.full(n, n_events, np.int64),
        first_ts=ts,
        first_seq=seq,
        last_ts=ts + step - 1,
        last_seq=seq + 1,
        revision=np.ones(n, np.int32),
    )


def flush(
    claim: Claim,
    number: int,
    closed: BarBatch | None = None,
    late: EventBatch | None = None,
    *,
    lane: str = "live",
    window: int = 60 * S,
    force: bool = False,
    positions: Sequence[Position] = (),
    forget: Sequence[str] = (),
    published: Sequence[int] = (),
) -> Flush:
    """A flush of one lane."""
    one = LaneFlush(
        lane, BarBatch.empty() if closed is None else closed, late or EventBatch.empty(), window, force
    )
    return Flush(claim, [one], list(positions), number=number, forget=list(forget), published=list(published))


def values(batch: BarBatch) -> list[Bar]:
    """The bars, in key order."""
    return sorted(batch.bars(), key=lambda b: (b.symbol, b.ts, b.provider))


def exact(batch: BarBatch) -> dict[tuple[str, str, str, int], tuple[float, ...]]:
    """Everything of each bar but its revision, by key."""
    names = (
        *("open", "high", "low", "close", "volume", "volume_lo", "notional", "notional_lo"),
        *("n_events", "first_ts", "first_seq", "last_ts", "last_seq"),
    )
    rows = zip(*(getattr(batch, name).tolist() for name in names), strict=True)
    keys = zip(batch.code.tolist(), batch.ts.tolist(), strict=True)
    return {(*batch.series[code], ts): row for (code, ts), row in zip(keys, rows, strict=True)}
