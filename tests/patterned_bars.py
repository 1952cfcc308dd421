"""Bars of random prices in which there is something to learn, or nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import numpy as np

from market_data_core.batch import BarBatch
from market_data_core.events import BarSeries, parse_interval

T0 = 1_700_000_040 * 10**9
STEP = 2 * 10**9


def random_bars(
    count: int, *, memory: float, symbols: Sequence[str] = ("IBM", "SPY"), seed: int = 0
) -> BarBatch:
    """``count`` bars of 2 s of each symbol, by symbol and time.

    Each log return is ``memory`` times the one before, and noise of 10 bps: with 0 a random walk, in which nothing of
    the past tells of the future.
    """
    rng = np.random.default_rng(seed)
    n = count * len(symbols)
    returns = rng.normal(scale=1e-3, size=(len(symbols), count))
    for i in range(1, count):
        returns[:, i] += memory * returns[:, i - 1]
    close = (100.0 * np.exp(np.cumsum(returns, axis=1))).ravel()
    ts = np.tile(T0 + np.arange(count, dtype=np.int64) * STEP, len(symbols))
    volume, zero, one = np.full(n, 10.0), np.zeros(n), np.ones(n, np.int64)
    return BarBatch(
        series=tuple(BarSeries("sim", symbol, "2s") for symbol in symbols),
        code=np.repeat(np.arange(len(symbols), dtype=np.int32), count),
        ts=ts,
        open=close,
        high=close * 1.001,
        low=close * 0.999,
        close=close,
        volume=volume,
        volume_lo=zero,
        notional=close * volume,
        notional_lo=zero,
        n_events=one,
        first_ts=ts,
        first_seq=one,
        last_ts=ts + STEP - 1,
        last_seq=one + 1,
        revision=np.ones(n, np.int32),
    )


class Pages:
    """Hands out bars as the store does, a few at a time."""

    def __init__(self, bars: BarBatch, page: int = 700) -> None:
        self._bars = bars
        self._page = page

    async def bar_pages(
        self,
        symbols: Sequence[str] | None = None,
        *,
        interval: str,
        provider: str | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> AsyncIterator[BarBatch]:
        assert parse_interval(interval) == STEP
        kept = np.array([symbols is None or s.symbol in symbols for s in self._bars.series])[self._bars.code]
        kept &= (self._bars.ts >= (start or 0)) & (self._bars.ts < (end or 2**62))
        found = self._bars.take(kept)
        for begin in range(0, len(found), self._page):
            yield found.take(slice(begin, begin + self._page))
