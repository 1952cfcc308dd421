"""Features: each kind against pandas, scipy and plain Python, on real and on adversarial bars; the same bits always."""

from __future__ import annotations

import io
import math
import os
import random
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_core.batch import BarBatch
from market_data_core.config_signals import FeatureKind, Features, FeatureWindow
from market_data_core.events import BarSeries, parse_interval
from market_data_pipeline.features.definitions import Feature, definitions, feature_names
from market_data_pipeline.features.offline import OfflineFeatures, feature_tables
from market_data_pipeline.features.rolling import RollingFeatures, history_for, look_back
from market_data_pipeline.features.table import FeatureTable
from tests.unit.feature_oracle import (
    INTERVAL,
    SECOND,
    T0,
    Candle,
    batch,
    candle,
    expected,
    walk,
    wilder,
    wilder_averages,
)
from tests.unit.strategies import SEEDS

DATA = Path(os.environ.get("MDP_DATA", Path(__file__).parents[3] / "shared" / "data")) / "equity"

_KINDS: tuple[FeatureKind, ...] = (
    *("vwap", "ret", "logret", "vol", "mom", "skew", "kurt"),
    *("open", "high", "low", "close", "volume", "rsi"),
)
_POPULATION: tuple[FeatureKind, ...] = ("vol", "skew", "kurt")


def every_kind(interval: str, windows: int) -> tuple[Feature, ...]:
    """Every kind over ``windows``, estimates of samples and of populations, and what is always there."""
    length = parse_interval(interval)
    horizon = f"{windows * length // 10**6}ms"
    windowed = [FeatureWindow(name=f"{kind}_n", horizon=horizon, kind=kind) for kind in _KINDS]
    windowed += [
        FeatureWindow(name=f"{kind}_population", horizon=horizon, kind=kind, sample=False)
        for kind in _POPULATION
    ]
    windowed.append(FeatureWindow(name="vol_year", horizon=horizon, annualised=True, min_bars=windows // 2))
    windowed.append(FeatureWindow(name="ret_odd", horizon=f"{length * 5 // 2 // 10**6}ms"))
    configured = Features(windows=tuple(windowed))
    return definitions(configured, length, feature_names(configured))


FEATURES = every_kind("2s", 12)


def table_of(
    bars: BarBatch, features: Sequence[Feature] = FEATURES, interval: int = INTERVAL
) -> FeatureTable:
    """All at once."""
    history = history_for(features, interval)
    history.put(bars)
    return RollingFeatures(features, history).table(history.codes_of(bars), bars.ts, with_previous=False)


def bits(table: FeatureTable) -> dict[tuple[str, int], bytes]:
    """Every feature of each bar, to the last bit."""
    values = np.stack([*table.columns.values()], axis=1)
    keys = zip([table.series[c].symbol for c in table.code.tolist()], table.ts.tolist(), strict=True)
    return {key: row.tobytes() for key, row in zip(keys, values, strict=True)}


def check(
    table: FeatureTable, candles: list[Candle], features: Sequence[Feature], rows: Sequence[int], rtol: float
) -> dict[str, float]:
    """Compare rows of one series with what they should be; the largest relative errors."""
    worst = {}
    for feature in features:
        want = np.array([expected(candles[: i + 1], feature, candles[i].window) for i in rows])
        got = table.columns[feature.name][list(rows)]
        # What is a difference of moments, or of them and 3, is small by chance: then by what it is made of.
        atol = 1e-11 if feature.kind in ("skew", "kurt") else 0.0
        np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, err_msg=str(feature))
        with np.errstate(all="ignore"):
            errors = np.abs(got - want) / np.maximum(np.abs(want), atol)
        worst[feature.name] = float(np.nanmax(np.where(got == want, 0.0, errors), initial=0.0))
    return worst


def _noise() -> list[Candle]:
    rng = np.random.default_rng(5)
    return [candle(i, 60_000 + 0.1 * float(rng.standard_normal()), rng) for i in range(400)]


def _thinned(keep: Callable[[int], bool]) -> list[Candle]:
    return [c for c in walk(6, 500) if keep(c.window)]


ADVERSARIAL = {
    "walk": walk(1, 400),
    "constant": [Candle(i, 100.0) for i in range(300)],
    "constant growth": [Candle(i, 2.0**i) for i in range(30)],
    "one jump": [Candle(i, 100.0 if i < 150 else 150.0) for i in range(400)],
    "price 1e-8": walk(2, 400, 1e-8),
    "price 1e9": walk(3, 400, 1e9),
    "price 60000, variance 0.01": _noise(),
    "leaps of orders of magnitude": walk(4, 300, 1.0, 3.0),
    "a few bars": _thinned(lambda w: (w * 7919) % 10 < 3),
    "long gaps": _thinned(lambda w: w // 37 % 3 != 0),
    "longer gaps than anything looks": _thinned(lambda w: w % 331 < 9),
    "single bar": [Candle(7, 100.0)],
    "nothing traded": [Candle(i, 100.0 + i, volume=0.0, notional=0.0) for i in range(30)],
}


@pytest.mark.parametrize("name", list(ADVERSARIAL))
def test_against_pandas_scipy_and_plain_python(name: str) -> None:
    candles = ADVERSARIAL[name]
    check(table_of(batch(candles)), candles, FEATURES, range(len(candles)), rtol=1e-10)


def real(interval: str) -> tuple[BarBatch, list[Candle]]:
    """SPY's bars of 2013-10-07, made of its trades by polars."""
    path = DATA / "tick_spy_20131007_trade.zip"
    if not path.is_file():
        pytest.skip(f"no real market data at {DATA}; set MDP_DATA")
    with zipfile.ZipFile(path) as file:
        columns = ["ms", "price", "size", "venue", "condition", "suspicious"]
        trades = pl.read_csv(
            io.BytesIO(file.read(file.namelist()[0])),
            has_header=False,
            new_columns=columns,
            infer_schema=False,
        ).with_columns(pl.col("ms", "price", "size").cast(pl.Int64))
    length = parse_interval(interval)
    frame = (
        trades.with_columns(window=pl.col("ms") * 10**6 // length, price=pl.col("price") / 10_000)
        .with_columns(money=pl.col("price") * pl.col("size"))
        .group_by("window", maintain_order=True)
        .agg(
            pl.col("price").last().alias("close"),
            pl.col("price").first().alias("open"),
            pl.col("price").max().alias("high"),
            pl.col("price").min().alias("low"),
            pl.col("size").sum().cast(pl.Float64).alias("volume"),
            pl.col("money").sum().alias("notional"),
            pl.len().alias("n_events"),
        )
    )
    candles = [Candle(**row) for row in frame.iter_rows(named=True)]
    return batch(candles, interval, length), candles


@pytest.mark.parametrize(("interval", "every"), [("2s", 61), ("1m", 5)])
def test_real_bars(interval: str, every: int) -> None:
    bars, candles = real(interval)
    assert len(candles) > {"2s": 11_000, "1m": 700}[interval]
    features = every_kind(interval, 30)
    tables = list(feature_tables([bars], features, parse_interval(interval)))
    columns = {name: np.concatenate([t.columns[name] for t in tables]) for name in tables[0].columns}
    table = FeatureTable(tables[0].series, bars.code, bars.ts, bars.ts, columns, np.full(len(bars), -1))
    check(table, candles, features, range(0, len(candles), every), rtol=1e-10)


def test_real_bars_against_rolling_pandas() -> None:
    """Whole columns, where no window is empty: pandas' own rolling statistics, which lose some digits."""
    bars, candles = real("1m")
    features = every_kind("1m", 20)
    tables = list(feature_tables([bars], features, 60 * SECOND))
    got = {name: np.concatenate([t.columns[name] for t in tables]) for name in tables[0].columns}
    series = pd.Series([c.close for c in candles])
    returns = pd.Series(np.log(series.to_numpy())).diff().rolling(19)
    windows = np.array([c.window for c in candles])
    full = np.flatnonzero(windows[19:] - windows[:-19] == 19) + 19
    assert len(full) > 300
    for name, column in (("vol_n", returns.std()), ("skew_n", returns.skew()), ("kurt_n", returns.kurt())):
        np.testing.assert_allclose(got[name][full], column.to_numpy()[full], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got["mom_n"][full], series.pct_change(19).to_numpy()[full], atol=1e-15)


@pytest.mark.parametrize("interval", ["2s", "1m"])
def test_rsi_forgets_next_to_nothing(interval: str) -> None:
    """Against averages that never end: what is cut off weighs as little as the docstring says."""
    period = 14
    bars, candles = real(interval)
    (feature,) = definitions(Features(), parse_interval(interval), ["rsi"])
    tables = list(feature_tables([bars], [feature], parse_interval(interval)))
    got = np.concatenate([t.columns["rsi"] for t in tables])
    windows = np.array([c.window for c in candles])
    closes = [c.close for c in candles]
    largest = float(np.abs(np.diff(closes)).max())
    worst = {"nearly all": 0.0, "others": 0.0}
    for i in range(period, len(candles), 97 if interval == "2s" else 7):
        changes = i - int(np.searchsorted(windows, windows[i] - feature.reach))
        if changes < period:
            assert math.isnan(got[i])
            continue
        gain, loss = wilder_averages(closes[: i + 1], period)
        off = abs(got[i] - wilder(closes[: i + 1], period))
        cut = (1 - 1 / period) ** (changes - period)
        assert off <= 200 * cut * largest / (gain + loss) + 1e-9, i
        where = "nearly all" if changes > 0.95 * feature.reach else "others"
        worst[where] = max(worst[where], off)
    assert 0 < worst["nearly all"] < 1e-6 < worst["others"], worst


def test_prices_that_are_not_positive_have_no_logarithm() -> None:
    candles = [Candle(i, 5.0 - i) for i in range(12)]
    table = table_of(batch(candles))
    check(table, candles, FEATURES, range(len(candles)), rtol=1e-12)
    assert np.isnan(table.columns["vol_n"][6:]).all()
    assert np.isnan(table.columns["mom_n"][5:]).sum() == 0
    assert np.isnan(table.columns["returns"][6]), "a change from 0"


def test_the_values_that_are_defined() -> None:
    rising = table_of(batch([Candle(i, 100.0 + i) for i in range(40)])).columns
    falling = table_of(batch([Candle(i, 100.0 - i) for i in range(40)])).columns
    still = table_of(batch([Candle(i, 100.0) for i in range(40)])).columns
    assert (rising["rsi"][14:] == 100).all()
    assert (falling["rsi"][14:] == 0).all()
    assert (still["rsi"][14:] == 50).all()
    assert np.isnan(still["rsi"][:14]).all()
    assert (still["vol_n"][2:] == 0).all()
    assert np.isnan(still["vol_n"][:2]).all()
    assert np.isnan(still["skew_n"]).all()
    assert np.isnan(still["kurt_population"]).all()


def test_the_same_steps_have_no_variance() -> None:
    """Returns that are equal but for rounding: the mean's own error must not look like a spread."""
    features = every_kind("2s", 300)
    table = table_of(batch([Candle(i, 1.5 * 2.0**i) for i in range(300)]), features)
    assert table.columns["vol_n"][-1] == 0
    assert math.isnan(table.columns["skew_n"][-1])


def test_fewer_bars_than_min_bars_are_missing() -> None:
    configured = Features(windows=(FeatureWindow(name="vwap_1m", horizon="60s", min_bars=5),))
    features = definitions(configured, INTERVAL, ["vwap_1m"])
    candles = [Candle(w, 100.0) for w in (0, 1, 2, 3, 4, 31, 32, 33)]
    got = table_of(batch(candles), features).columns["vwap_1m"]
    assert np.isnan(got).tolist() == [True, True, True, True, False, True, True, True]


def test_rows_and_the_rows_before_them() -> None:
    candles = [Candle(w, 100.0 + w, symbol=s) for s in ("A", "B") for w in (0, 1, 3, 4)]
    candles.append(Candle(3 + look_back(FEATURES), 1.0, symbol="B"))
    candles.append(Candle(4 + look_back(FEATURES) + 1, 1.0, symbol="A"))
    bars = batch(candles)
    history = history_for(FEATURES, INTERVAL)
    history.put(bars)
    rolling = RollingFeatures(FEATURES, history)
    rows = np.array([3, 2, 7, 0, 8, 9, 3])
    code = history.codes_of(bars)
    table = rolling.table(code[rows], bars.ts[rows], with_previous=True)
    found = [
        (table.series[c].symbol, (t - T0) // INTERVAL) for c, t in zip(table.code, table.ts, strict=True)
    ]
    assert found[:7] == [(candles[row].symbol, candles[row].window) for row in rows]
    assert sorted(found[7:]) == [("A", 1), ("B", 3)]
    before = [found[row] if row >= 0 else None for row in table.previous]
    assert before[:7] == [("A", 3), ("A", 1), ("B", 3), None, ("B", 4), None, ("A", 3)]
    assert {found[i]: before[i] for i in range(7, len(found))} == {("A", 1): ("A", 0), ("B", 3): None}
    assert (table.at == table.ts + INTERVAL).all()
    everything = bits(rolling.table(code, bars.ts, with_previous=False))
    assert bits(table).items() <= everything.items()


def some_bars(seed: int, windows: int = 400) -> list[Candle]:
    """Bars of a few symbols, with gaps, over less time than a history of :data:`FEATURES` holds."""
    rng = random.Random(seed)
    candles = []
    for symbol in rng.sample(["A", "B", "C", "D"], rng.randint(1, 4)):
        price, density = 10.0 ** rng.randint(-8, 9), rng.choice([0.05, 0.5, 0.95, 1.0])
        for w in range(rng.randint(0, 50), rng.randint(50, windows)):
            price *= math.exp(rng.gauss(0, 1e-3))
            if rng.random() < density:
                volume = float(rng.randint(0, 3))
                worth = rng.choice([None, price * volume])
                candles.append(
                    Candle(w, price, price, price * 1.01, price * 0.99, volume, worth, 2, 2, symbol)
                )
    return candles


@given(SEEDS)
def test_any_order_and_any_batches_give_the_same_bits(seed: int) -> None:
    candles = some_bars(seed)
    if not candles:
        return
    rng = random.Random(seed + 1)
    everything = bits(table_of(batch(candles)))
    stale = [
        Candle(c.window, c.close * 2, volume=99.0, n_events=1, revision=1, symbol=c.symbol)
        for c in rng.sample(candles, len(candles) // 3)
    ]
    shuffled = candles + stale + rng.sample(candles, len(candles) // 5)
    rng.shuffle(shuffled)
    history = history_for(FEATURES, INTERVAL)
    rolling = RollingFeatures(FEATURES, history)
    while shuffled:
        size = rng.choice([1, 2, 7, 50, 1000])
        history.put(batch(shuffled[:size]))
        shuffled = shuffled[size:]
    rng.shuffle(candles)
    while candles:
        size = rng.choice([1, 2, 3, 40, 1000])
        bars = batch(candles[:size])
        table = rolling.table(history.codes_of(bars), bars.ts, with_previous=rng.random() < 0.5)
        assert bits(table).items() <= everything.items()
        candles = candles[size:]


@given(SEEDS, st.booleans())
@settings(max_examples=25)
def test_bar_by_bar_is_at_once_and_never_looks_ahead(seed: int, by_symbol: bool) -> None:
    candles = sorted(
        some_bars(seed), key=lambda c: (c.symbol, c.window) if by_symbol else (c.window, c.symbol)
    )
    if not candles:
        return
    everything = bits(table_of(batch(candles)))
    offline = OfflineFeatures(FEATURES, INTERVAL, by_symbol=by_symbol)
    one_by_one: dict[tuple[str, int], bytes] = {}
    for one in candles:
        for table in offline.tables(batch([one])):
            one_by_one |= bits(table)
    assert one_by_one == everything


@given(SEEDS)
def test_an_amended_bar_is_as_if_it_had_come_so(seed: int) -> None:
    candles = some_bars(seed)
    if not candles:
        return
    rng = random.Random(seed + 1)
    history = history_for(FEATURES, INTERVAL)
    rolling = RollingFeatures(FEATURES, history)
    history.put(batch(candles))
    before = bits(rolling.table(history.codes_of(batch(candles)), batch(candles).ts, with_previous=False))
    places = rng.sample(range(len(candles)), min(len(candles), 3))
    for i in places:
        c = candles[i]
        candles[i] = Candle(c.window, c.close * 1.5, n_events=9, revision=3, symbol=c.symbol)
    # And one that comes for the first time, between the others.
    late = [
        Candle(w, 7.0, symbol=s) for s, w in {("A", 201), ("B", 2)} - {(c.symbol, c.window) for c in candles}
    ]
    amended = batch([candles[i] for i in places] + late)
    history.put(amended)
    bars = batch(candles + late)
    code = history.codes_of(bars)
    after = bits(rolling.table(code, bars.ts, with_previous=False))
    assert after == bits(table_of(bars))
    touched_code, touched_ts = history.after(history.codes_of(amended), amended.ts, rolling.reach)
    touched = {
        (history.series[c].symbol, t) for c, t in zip(touched_code.tolist(), touched_ts.tolist(), strict=True)
    }
    touched |= {
        (amended.series[c].symbol, t) for c, t in zip(amended.code.tolist(), amended.ts.tolist(), strict=True)
    }
    changed = {key for key in after if before.get(key) != after[key]}
    assert changed <= touched


def test_a_day_bar_by_bar_is_the_day_at_once_and_offline() -> None:
    bars, _ = real("2s")
    features = definitions(Features(), INTERVAL, ["vwap_1m", "ret_30s", "vol_5m", "rsi", "kurtosis"])
    offline: dict[tuple[str, int], bytes] = {}
    for table in feature_tables(
        (bars.take(slice(i, i + 5000)) for i in range(0, len(bars), 5000)), features, INTERVAL
    ):
        offline |= bits(table)
    live: dict[tuple[str, int], bytes] = {}
    history = history_for(features, INTERVAL)
    rolling = RollingFeatures(features, history)
    for i in range(len(bars)):
        one = bars.take(slice(i, i + 1))
        history.put(one)
        live |= bits(rolling.table(history.codes_of(one), one.ts, with_previous=False))
    assert live == offline
    assert len(live) == len(bars)


def test_many_symbols_of_one_window_are_as_each_alone() -> None:
    """Slices of the grid, of all symbols and of some, against one symbol at a time."""
    rng = np.random.default_rng(8)
    candles = [
        Candle(w, 100 + float(rng.standard_normal()), volume=float(rng.integers(0, 5)), symbol=f"S{s}")
        for w in range(400)
        for s in range(150)
        if s < 75 or rng.random() < 0.7
    ]
    history = history_for(FEATURES, INTERVAL)
    rolling = RollingFeatures(FEATURES, history)
    alone: dict[tuple[str, int], bytes] = {}
    for window in (397, 398, 399):
        history.put(batch([c for c in candles if c.window == window or c.window < window == 397]))
        bars = batch([c for c in candles if c.window == window])
        code = history.codes_of(bars)
        for rows in (np.arange(len(bars)), np.arange(0, len(bars), 4), np.array([5])):
            together = bits(rolling.table(code[rows], bars.ts[rows], with_previous=True))
            for key, row in together.items():
                assert alone.setdefault(key, row) == row
    for symbol in ("S3", "S80", "S149"):
        single = bits(table_of(batch([c for c in candles if c.symbol == symbol])))
        assert {k: v for k, v in alone.items() if k[0] == symbol}.items() <= single.items()


def test_a_bar_that_is_not_held_is_no_row() -> None:
    history = history_for(FEATURES, INTERVAL)
    code = history.codes([BarSeries("sim", "SPY", "2s")])
    with pytest.raises(ValueError, match=r"no bar of SPY at 2023-11-14T22:13:20.* is held; put it first"):
        RollingFeatures(FEATURES, history).table(code, np.array([T0]), with_previous=True)
