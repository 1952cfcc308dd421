"""Bars for the tests of features, and what their features should be: row by row, by pandas, scipy and plain Python."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy import stats

from market_data_core.batch import BarBatch
from market_data_core.events import BarSeries
from market_data_pipeline.features.definitions import RSI_MEMORY, Feature

SECOND = 10**9
INTERVAL = 2 * SECOND
T0 = 1_700_000_000 * SECOND


@dataclass(frozen=True)
class Candle:
    """A bar of the window ``T0 + window * INTERVAL``. Without ``notional`` it is a vendor's."""

    window: int
    close: float
    open: float | None = None
    high: float | None = None
    low: float | None = None
    volume: float = 10.0
    notional: float | None = None
    n_events: int = 3
    revision: int = 1
    symbol: str = "SPY"

    @property
    def bounds(self) -> tuple[float, float, float]:
        """Open, high and low."""
        open_ = self.close if self.open is None else self.open
        high = max(open_, self.close) if self.high is None else self.high
        return open_, high, min(open_, self.close) if self.low is None else self.low

    @property
    def worth(self) -> float:
        """Notional, or typical price times volume."""
        if self.notional is not None:
            return self.notional
        _, high, low = self.bounds
        return (high + low + self.close) / 3 * self.volume


def batch(candles: Sequence[Candle], interval: str = "2s", interval_ns: int = INTERVAL) -> BarBatch:
    """The candles as columns, in their order."""
    table: dict[BarSeries, int] = {}
    code = [table.setdefault(BarSeries("sim", c.symbol, interval), len(table)) for c in candles]
    ts = T0 // interval_ns * interval_ns + np.array([c.window for c in candles], np.int64) * interval_ns
    bounds = np.array([c.bounds for c in candles], np.float64).reshape(-1, 3)
    zero, none = np.zeros(len(candles)), np.zeros(len(candles), np.int64)
    notional = [math.nan if c.notional is None else c.notional for c in candles]
    return BarBatch(
        series=tuple(table),
        code=np.array(code, np.int32),
        ts=ts,
        open=bounds[:, 0].copy(),
        high=bounds[:, 1].copy(),
        low=bounds[:, 2].copy(),
        close=np.array([c.close for c in candles], np.float64),
        volume=np.array([c.volume for c in candles], np.float64),
        volume_lo=zero,
        notional=np.array(notional, np.float64),
        notional_lo=zero,
        n_events=np.array([c.n_events for c in candles], np.int64),
        first_ts=ts,
        first_seq=none,
        last_ts=ts,
        last_seq=none,
        revision=np.array([c.revision for c in candles], np.int32),
    )


def walk(seed: int, count: int, price: float = 100.0, step: float = 1e-3) -> list[Candle]:
    """A random walk: ranges, some windows without volume, every third bar a vendor's."""
    rng = np.random.default_rng(seed)
    closes = price * np.exp(np.cumsum(step * rng.standard_normal(count)))
    return [candle(i, float(close), rng) for i, close in enumerate(closes)]


def candle(window: int, close: float, rng: np.random.Generator) -> Candle:
    open_, volume = close * (1 + 1e-4 * float(rng.standard_normal())), float(rng.integers(0, 4))
    return Candle(
        window,
        close,
        open=open_,
        high=max(open_, close) * 1.0001,
        low=min(open_, close) * 0.9999,
        volume=volume,
        notional=None if window % 3 == 0 else close * volume,
        n_events=int(rng.integers(1, 9)),
    )


def expected(candles: Iterable[Candle], feature: Feature, window: int) -> float:
    """The feature of the bar of ``window``, from the bars (in order) of its series."""
    past = [c for c in candles if c.window <= window]
    n, now = feature.windows, past[-1]
    horizon = [c for c in past if c.window > window - n]
    if len(horizon) < feature.min_bars:
        return math.nan
    kind = feature.kind
    if kind in ("vol", "skew", "kurt"):
        return _moment(feature, log_returns([c.close for c in horizon]))
    if kind == "rsi":
        return wilder([c.close for c in past if c.window > window - RSI_MEMORY * n], n)
    if kind in ("ret", "logret"):
        bases = [c for c in past if window - feature.reach <= c.window <= window - feature.lag]
        if not bases:
            return math.nan
        if kind == "logret":
            return log_returns([bases[-1].close, now.close])[0]
        return _change(now.close, bases[-1].close)
    if kind == "mom":
        return _change(now.close, horizon[0].close) if len(horizon) > 1 else math.nan
    volume = math.fsum(c.volume for c in horizon)
    if kind == "vwap":
        return math.fsum(c.worth for c in horizon) / volume if volume else math.nan
    return {
        "open": horizon[0].bounds[0],
        "high": max(c.bounds[1] for c in horizon),
        "low": min(c.bounds[2] for c in horizon),
        "close": now.close,
        "volume": volume,
        "n_events": float(now.n_events),
    }[kind]


def log_returns(closes: Sequence[float]) -> list[float]:
    """In extended precision, NaN where a price is not positive."""
    pairs = [(np.longdouble(a), np.longdouble(b)) for a, b in pairwise(closes)]
    return [float(np.log1p((b - a) / a)) if a > 0 and b > 0 else math.nan for a, b in pairs]


def wilder(closes: Sequence[float], period: int) -> float:
    """The index as Wilder has it: averages that begin with the first close and never end."""
    if len(closes) <= period:
        return math.nan
    gain, loss = wilder_averages(closes, period)
    if loss == 0:
        return 100.0 if gain > 0 else 50.0
    return 100.0 - 100.0 / (1.0 + gain / loss)


def wilder_averages(closes: Sequence[float], period: int) -> tuple[float, float]:
    """The averages of gains and of losses."""
    changes = [b - a for a, b in pairwise(closes)]
    gain = sum(max(c, 0.0) for c in changes[:period]) / period
    loss = sum(max(-c, 0.0) for c in changes[:period]) / period
    for change in changes[period:]:
        gain = (gain * (period - 1) + max(change, 0.0)) / period
        loss = (loss * (period - 1) + max(-change, 0.0)) / period
    return gain, loss


def _change(now: float, then: float) -> float:
    return float((np.longdouble(now) - np.longdouble(then)) / np.longdouble(then)) if then else math.nan


def _moment(feature: Feature, returns: list[float]) -> float:
    least = {"vol": (2, 1), "skew": (3, 2), "kurt": (4, 2)}[feature.kind][0 if feature.sample else 1]
    if len(returns) < least or any(math.isnan(r) for r in returns):
        return math.nan
    if feature.kind == "vol":
        return float(pd.Series(returns).std(ddof=1 if feature.sample else 0)) * feature.scale
    if max(returns) == min(returns):
        return math.nan
    if feature.kind == "skew":
        return float(stats.skew(returns, bias=not feature.sample))
    return float(stats.kurtosis(returns, bias=not feature.sample))
