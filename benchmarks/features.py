"""Measured processes that compute the features of one new bar of each of many symbols: ours, pandas, river.

All see the same bars, and return the mean over the symbols of each feature of the first bars measured, which
:mod:`benchmarks.suites` compares: figures of wrong features would say nothing.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from benchmarks.measure import Measured, Stopwatch
from market_data_core.batch import F64, BarBatch
from market_data_core.config_signals import Features, FeatureWindow
from market_data_core.events import BarSeries
from market_data_pipeline.features.definitions import RSI_MEMORY, Feature, definitions

NAMES: Final = ("vwap_1m", "ret_30s", "vol_5m", "rsi", "momentum", "volatility")
INTERVAL_NS: Final = 2_000_000_000
START: Final = 1_761_314_520 * 10**9
WARM: Final = 600
"""Windows that are there before the first one measured: more than anything looks back at."""


def wanted(stretch: int = 1) -> tuple[Feature, ...]:
    """The three of the seed and three more; with ``stretch``, of horizons that many times as long."""
    given = [
        FeatureWindow.model_validate(
            {
                "name": f.name,
                "kind": f.kind,
                "horizon": f"{f.windows * stretch * 2}s",
                "annualised": f.scale != 1,
            }
        )
        for f in definitions(Features(), INTERVAL_NS, NAMES)
    ]
    return definitions(Features(windows=tuple(given)), INTERVAL_NS, NAMES)


def prices(symbols: int, windows: int) -> F64:
    """Random walks, ``[windows, symbols]``."""
    random = np.random.default_rng(11)
    return 100.0 * np.exp(np.cumsum(1e-4 * random.standard_normal((windows, symbols)), axis=0))


def volumes(symbols: int, window: int) -> F64:
    return np.random.default_rng(window).integers(1, 500, symbols).astype(np.float64)


def bars(series: tuple[BarSeries, ...], window: int, close: F64) -> BarBatch:
    """One bar of each symbol."""
    n = len(series)
    volume, zero, count = volumes(n, window), np.zeros(n), np.full(n, 40, np.int64)
    ts = np.full(n, START + window * INTERVAL_NS)
    return BarBatch(
        series=series,
        code=np.arange(n, dtype=np.int32),
        ts=ts,
        open=close,
        high=close + 0.01,
        low=close - 0.01,
        close=close,
        volume=volume,
        volume_lo=zero,
        notional=close * volume,
        notional_lo=zero,
        n_events=count,
        first_ts=ts,
        first_seq=count,
        last_ts=ts,
        last_seq=count,
        revision=np.ones(n, np.int32),
    )


async def ours(given: dict[str, Any]) -> Measured:
    """``symbols``, ``windows`` measured, ``stretch``; ``missing``: the share of bars that are not there, ``previous``:
    with the rows of the bars before."""
    from market_data_pipeline.features.rolling import RollingFeatures, history_for

    symbols, windows = given["symbols"], given["windows"]
    warm = WARM * given.get("stretch", 1)
    features = wanted(given.get("stretch", 1))
    previous = given.get("previous", False)
    history = history_for(features, INTERVAL_NS, with_previous=previous)
    rolling = RollingFeatures(features, history)
    series = tuple(BarSeries("bench", f"SYM{i:05d}", "2s") for i in range(symbols))
    random, walks = np.random.default_rng(3), prices(symbols, warm + windows)
    batches = (bars(series, window, close) for window, close in enumerate(walks))
    if given.get("missing"):
        batches = (batch.take(random.random(symbols) >= given["missing"]) for batch in batches)
    history.codes(series)
    for _ in range(warm):
        history.put(next(batches))
    measured = list(batches)
    # What is used for the first time, such as a page of memory, is not part of the work.
    rolling.table(history.codes_of(measured[0])[:0], measured[0].ts[:0], with_previous=False)
    watch, done, tables = Stopwatch({}), 0, []
    watch.start()
    for batch in measured:
        history.put(batch)
        tables.append(rolling.table(history.codes_of(batch), batch.ts, with_previous=previous))
        done += len(batch)
    watch.lap()
    means = {name: float(np.nanmean(column)) for name, column in tables[0].columns.items()}
    return watch.result(done, means=means, bytes_a_series=history.bytes_a_series)


async def by_pandas(given: dict[str, Any]) -> Measured:
    """Everything that the newest bars look back at, computed anew by ``groupby().rolling()``."""
    import pandas as pd

    symbols = given["symbols"]
    features = {feature.name: feature for feature in wanted()}
    deepest = RSI_MEMORY * features["rsi"].windows
    walks = prices(symbols, WARM + 1)[-deepest:]
    volume = np.stack([volumes(symbols, WARM + 1 - deepest + i) for i in range(deepest)])
    frame = pd.DataFrame(
        {"symbol": np.tile(np.arange(symbols), deepest), "close": walks.ravel(), "volume": volume.ravel()}
    ).sort_values("symbol", kind="stable", ignore_index=True)
    frame["notional"] = frame["close"] * frame["volume"]
    watch = Stopwatch({})
    watch.start()
    by = frame.groupby("symbol", sort=False)

    def back(name: str) -> pd.Series[float]:
        return by["close"].shift(features[name].lag or features[name].windows - 1)

    def deviation(name: str) -> pd.Series[float]:
        returns = frame["log_return"].groupby(frame["symbol"], sort=False)
        return returns.rolling(features[name].windows - 1).std().droplevel(0) * features[name].scale

    frame["log_return"] = np.log(frame["close"]) - np.log(by["close"].shift())
    sums = by[["notional", "volume"]].rolling(features["vwap_1m"].windows).sum().droplevel(0)
    change = by["close"].diff()
    weight = 1 / features["rsi"].windows
    ends = frame["symbol"]
    gain = change.clip(lower=0).groupby(ends, sort=False).ewm(alpha=weight, adjust=False).mean().droplevel(0)
    loss = change.clip(upper=0).groupby(ends, sort=False).ewm(alpha=weight, adjust=False).mean().droplevel(0)
    found = pd.DataFrame(
        {
            "vwap_1m": sums["notional"] / sums["volume"],
            "ret_30s": frame["close"] / back("ret_30s") - 1,
            "vol_5m": deviation("vol_5m"),
            "rsi": 100 * gain / (gain - loss),
            "momentum": frame["close"] / back("momentum") - 1,
            "volatility": deviation("volatility"),
        }
    )
    last = found[deepest - 1 :: deepest]
    watch.lap()
    return watch.result(symbols, means={name: float(last[name].mean()) for name in NAMES})


async def by_river(given: dict[str, Any]) -> Measured:
    """Objects of each symbol, told of each bar: rolling sums that add what comes and take off what goes."""
    from collections import deque

    from river import stats, utils

    symbols, windows = given["symbols"], given["windows"]
    features = {feature.name: feature for feature in wanted()}
    n = {name: feature.windows for name, feature in features.items()}

    class Symbol:
        """The features of one symbol."""

        def __init__(self) -> None:
            # Annotated, because what it wraps it hands on by names that mypy cannot see.
            self.notional: Any = utils.Rolling(stats.Sum, window_size=n["vwap_1m"])
            self.volume: Any = utils.Rolling(stats.Sum, window_size=n["vwap_1m"])
            self.vol_5m: Any = utils.Rolling(stats.Var, window_size=n["vol_5m"] - 1)
            self.volatility: Any = utils.Rolling(stats.Var, window_size=n["volatility"] - 1)
            self.gain = stats.EWMean(fading_factor=1 / n["rsi"])
            self.loss = stats.EWMean(fading_factor=1 / n["rsi"])
            self.closes: deque[float] = deque(maxlen=n["ret_30s"] + 1)

        def learn(self, close: float, volume: float) -> None:
            self.notional.update(close * volume)
            self.volume.update(volume)
            if self.closes:
                change = close - self.closes[-1]
                log_return = float(np.log(close / self.closes[-1]))
                self.vol_5m.update(log_return)
                self.volatility.update(log_return)
                self.gain.update(max(change, 0.0))
                self.loss.update(max(-change, 0.0))
            self.closes.append(close)

        def get(self) -> tuple[float, ...]:
            gain, loss = self.gain.get(), self.loss.get()
            return (
                self.notional.get() / self.volume.get(),
                self.closes[-1] / self.closes[0] - 1,
                self.vol_5m.get() ** 0.5,
                100 * gain / (gain + loss),
                self.closes[-1] / self.closes[-n["momentum"]] - 1,
                self.volatility.get() ** 0.5 * features["volatility"].scale,
            )

    all_symbols = [Symbol() for _ in range(symbols)]
    walks = prices(symbols, WARM + windows).tolist()
    sizes = [volumes(symbols, window).tolist() for window in range(WARM + windows)]
    watch, found = Stopwatch({}), list[list[tuple[float, ...]]]()
    for window, (closes, volume) in enumerate(zip(walks, sizes, strict=True)):
        if window == WARM:
            watch.start()
        for symbol, close, size in zip(all_symbols, closes, volume, strict=True):
            symbol.learn(close, size)
        if window >= WARM:
            found.append([symbol.get() for symbol in all_symbols])
    watch.lap()
    means = dict(zip(NAMES, np.mean(found[0], axis=0).tolist(), strict=True))
    return watch.result(symbols * windows, means=means)
