"""What followed a signal: on examples made by hand, and against a slow recount by pandas, scipy and a double loop."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from market_data_core.batch import F64, BarBatch
from market_data_core.events import BarSeries, Signal
from market_data_pipeline.signals.estimate import WIDTH, estimate, student_975
from market_data_pipeline.signals.outcomes import Outcomes
from market_data_pipeline.signals.prices import NEVER, PricesAt
from market_data_pipeline.signals.reading import Question, read_outcomes, steps_to
from market_data_pipeline.signals.report import Figures, curves, figures
from tests.unit.strategies import BASE, SECOND, SEEDS

LENGTH = 2
"""Of the bars, s."""


@dataclass(frozen=True, slots=True)
class Close:
    """A bar: when it ended, in seconds after BASE, and its close."""

    ended: int
    close: float
    symbol: str = "SPY"
    provider: str = "sim"


class Stored:
    """The bars and signals of a store, in the order in which StoreClient gives them, in pages of ``page``."""

    def __init__(self, bars: Sequence[Close], signals: Sequence[Signal], page: int = 3) -> None:
        self._bars = sorted(bars, key=lambda b: (b.symbol, b.ended, b.provider))
        self._signals = sorted(signals, key=lambda s: (s.symbol, s.ts, s.provider, s.name))
        self._page = page

    async def signal_pages(
        self,
        *,
        symbols: list[str] | None = None,
        provider: str | None = None,
        name: str | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> AsyncIterator[list[Signal]]:
        assert start is not None
        assert end is not None
        chosen = [
            s
            for s in self._signals
            if start <= s.ts < end
            and (symbols is None or s.symbol in symbols)
            and provider in (None, s.provider)
            and name in (None, s.name)
        ]
        for at in range(0, len(chosen), self._page):
            yield chosen[at : at + self._page]

    async def bar_pages(
        self,
        symbols: list[str] | None = None,
        *,
        interval: str,
        provider: str | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> AsyncIterator[BarBatch]:
        assert interval == f"{LENGTH}s"
        chosen = [
            b
            for b in self._bars
            if b.symbol in (symbols or ())
            and b.provider == provider
            and (start is None or start <= _begun(b))
            and (end is None or _begun(b) < end)
        ]
        for at in range(0, len(chosen), self._page):
            yield _batch(chosen[at : at + self._page])


def _begun(bar: Close) -> int:
    return BASE + (bar.ended - LENGTH) * SECOND


def _batch(bars: Sequence[Close]) -> BarBatch:
    n = len(bars)
    ts, close = np.array([_begun(b) for b in bars]), np.array([b.close for b in bars])
    zero, count = np.zeros(n), np.ones(n, np.int64)
    series = (BarSeries(bars[0].provider, bars[0].symbol, f"{LENGTH}s"),)
    return BarBatch(
        series=series, code=np.zeros(n, np.int32), ts=ts, open=close, high=close, low=close, close=close,
        volume=zero, volume_lo=zero, notional=zero, notional_lo=zero, n_events=count, first_ts=ts,
        first_seq=count, last_ts=ts, last_seq=count, revision=count.astype(np.int32),
    )  # fmt: skip


def signal(at: int, value: float = 1.0, *, name: str = "up", symbol: str = "SPY", **meta: bool) -> Signal:
    return Signal("sim", symbol, BASE + at * SECOND, name, value, 0.5, dict(meta))


def outcomes_of(
    bars: Sequence[Close], signals: Sequence[Signal], horizon: int, *, page: int = 3, steps: bool = False
) -> Outcomes:
    """``horizon`` in s."""
    question = Question(BASE - 10**9 * SECOND, BASE + 10**9 * SECOND, horizon * SECOND, f"{LENGTH}s")
    to = steps_to(horizon * SECOND, (LENGTH if steps else horizon) * SECOND)
    return asyncio.run(read_outcomes(Stored(bars, signals, page), question, to))


def figures_of(bars: Sequence[Close], signals: Sequence[Signal], horizon: int) -> list[Figures]:
    return figures(outcomes_of(bars, signals, horizon), horizon * SECOND)


# --- examples made by hand -----------------------------------------------------------------------------------

RISING = [Close(0, 100.0), Close(2, 101.0), Close(4, 103.0), Close(6, 106.0), Close(8, 110.0)]


@pytest.mark.parametrize(
    ("at", "horizon", "expected"),
    [
        (2, 2, 103 / 101 - 1),
        (2, 4, 106 / 101 - 1),
        (2, 3, 103 / 101 - 1),  # the bar that ends at 6 is not over at 5
        (3, 2, 103 / 101 - 1),  # nor is that which ends at 4 at 3: the price at 3 is 101
        (3, 3, 106 / 101 - 1),
        (8, 2, None),  # the bars do not reach
        (7, 2, None),
        (6, 2, 110 / 106 - 1),  # they just do
        (2, 1, None),  # none ended within the horizon
        (-1, 4, None),  # no price to start from
        (100, 2, None),
    ],
)
def test_a_forward_return_knows_nothing_before_its_time(
    at: int, horizon: int, expected: float | None
) -> None:
    found = outcomes_of(RISING, [signal(at)], horizon)
    if expected is None:
        assert np.isnan(found.forward).all()
    else:
        assert found.forward.tolist() == [pytest.approx(expected, abs=1e-15)]
    assert found.unpriced.tolist() == [at < 0]


def test_a_jump_in_the_bar_that_made_the_signal_earns_nothing() -> None:
    """The bar jumps by 10 % and the signal is made of its close: afterwards nothing moves."""
    bars = [Close(0, 100.0), Close(2, 110.0), Close(4, 110.0), Close(6, 110.0)]
    all_, *_ = figures_of(bars, [signal(2)], 4)
    assert (all_.mean_bps, all_.hit_rate) == (0.0, 0.0)


def test_figures_are_signed_by_the_direction() -> None:
    bars = [Close(2 * i, c) for i, c in enumerate([100.0, 101.0, 100.0, 102.0, 102.0, 51.0])]
    signals = [
        signal(0),  # +100 bps
        signal(2, -3.0),  # falls from 101 to 100: +99.0099
        signal(4, -0.5),  # rises from 100 to 102: -200
        signal(6),  # nothing: no hit
        signal(8, 0.0, name="flat"),  # halves
        signal(8, 2.0, withdrawn=True),
        signal(10),  # open
    ]
    all_, flat, up, flat_spy, up_spy = figures_of(bars, signals, 2)
    assert (all_.count, all_.scored, all_.open, all_.withdrawn, all_.undirected) == (7, 5, 1, 1, 1)
    assert (up.count, up.scored, up.open, up.withdrawn, up.undirected) == (6, 4, 1, 1, 0)
    assert up.hit_rate == 0.5
    assert up.mean_bps == pytest.approx((100 + 1e4 / 101 - 200 + 0) / 4)
    assert up.median_bps == pytest.approx(1e4 / 101 / 2)
    assert up.worst_bps == pytest.approx(-200)
    assert up.best_bps == pytest.approx(100)
    assert (up.mean_abs_bps, up.mean_score) == (None, 0.5)
    assert (flat.scored, flat.hit_rate, flat.mean_bps, flat.t) == (1, None, None, None)
    assert flat.mean_abs_bps == pytest.approx(5000)
    assert [(row.group, row.name, row.symbol) for row in (all_, up, up_spy)] == [
        ("overall", None, None),
        ("name", "up", None),
        ("symbol", "up", "SPY"),
    ]
    assert (flat_spy.symbol, flat_spy.mean_abs_bps) == ("SPY", flat.mean_abs_bps)


def test_each_series_has_its_own_prices() -> None:
    bars = [
        *(Close(0, 100.0), Close(2, 110.0)),
        *(Close(0, 100.0, provider="vendor"), Close(2, 90.0, provider="vendor")),
        *(Close(0, 100.0, "IBM"), Close(2, 130.0, "IBM")),
    ]
    other = Signal("vendor", "SPY", BASE, "up", 1.0, 0.5)
    found = outcomes_of(bars, [signal(0), other, signal(0, symbol="IBM"), signal(0, symbol="NONE")], 2)
    assert found.forward.tolist() == [
        *(pytest.approx(x) for x in (0.3,)),
        pytest.approx(math.nan, nan_ok=True),
        *(pytest.approx(x) for x in (0.1, -0.1)),
    ]


def test_the_price_at_a_signal_may_be_old() -> None:
    """After a gap the last bar is far behind; it is found however far."""
    bars = [Close(0, 100.0), Close(1_000_000, 200.0)]
    found = outcomes_of(bars, [signal(999_999)], 2)
    assert found.forward.tolist() == [pytest.approx(math.nan, nan_ok=True)], "the bars do not reach 1,000,001"
    assert not found.unpriced.any()
    found = outcomes_of([*bars, Close(1_000_002, 1.0)], [signal(999_999)], 2)
    assert found.forward.tolist() == [pytest.approx(1.0)]


@pytest.mark.parametrize("price", [0.0, -37.0])
def test_no_return_is_made_of_a_price_that_is_not_above_zero(price: float) -> None:
    found = outcomes_of([Close(0, price), Close(2, 10.0)], [signal(0)], 2)
    assert np.isnan(found.forward).all()
    assert found.unpriced.all()


def test_without_signals_there_is_one_row_of_nothing() -> None:
    (row,) = figures_of(RISING, [], 2)
    assert (row.group, row.count, row.scored, row.mean_bps, row.blocks) == ("overall", 0, 0, None, 0)
    assert curves(outcomes_of(RISING, [], 4, steps=True), 4 * SECOND) == []


def test_a_curve_goes_from_the_signal_to_the_horizon() -> None:
    signals = [signal(0), signal(2, -1.0), signal(0, 0.0, name="flat"), signal(6)]
    (curve,) = curves(outcomes_of(RISING, signals, 4, steps=True), 4 * SECOND)
    assert (curve.name, curve.n, curve.steps.tolist()) == ("up", 2, [0, 2 * SECOND, 4 * SECOND])
    at_2, at_4 = (1e4 * (1 / 100 - 2 / 101) / 2, 1e4 * (3 / 100 - 5 / 101) / 2)
    assert curve.mean.tolist() == pytest.approx([0.0, at_2, at_4], rel=1e-5)


@pytest.mark.parametrize(
    ("horizon", "interval", "expected"),
    [(60, 2, 30), (61, 2, 30), (59, 2, 30), (7, 2, 4), (2, 2, 1), (1, 2, 1), (3600, 2, 30)],
)
def test_steps_end_at_the_horizon(horizon: int, interval: int, expected: int) -> None:
    steps = steps_to(horizon * SECOND, interval * SECOND)
    assert len(steps) == expected
    assert steps[-1] == horizon * SECOND
    assert (np.diff(steps, prepend=0) > 0).all()


# --- recounts ------------------------------------------------------------------------------------------------


def _made(seed: int) -> tuple[list[Close], list[Signal], int]:
    """Bars with holes, signals on and beside their ends, and a horizon, in s."""
    rng = random.Random(seed)
    bars = [
        Close(2 * i, round(100 * math.exp(rng.gauss(0, 0.05)), 4), symbol, provider)
        for symbol in ("A", "B")
        for provider in ("sim", "vendor")
        for i in range(rng.randint(0, 40))
        if rng.random() < 0.8
    ]
    keys = {
        (rng.choice(("sim", "vendor")), rng.choice(("A", "B", "C")), rng.randint(-3, 90), rng.choice("xyz"))
        for _ in range(rng.randint(0, 60))
    }
    values = (1.0, -1.0, 0.25, -7.0, 0.0, math.nan)
    signals = [
        Signal(
            provider, symbol, BASE + at * SECOND, name, rng.choice(values), rng.random(),
            {"withdrawn": True} if rng.random() < 0.1 else {},
        )
        for provider, symbol, at, name in keys
    ]  # fmt: skip
    return bars, signals, rng.choice([1, 2, 3, 8, 30])


def _recount(bars: Sequence[Close], signals: Sequence[Signal], horizon: int) -> pd.DataFrame:
    """The signals with their forward returns, joined by pandas."""
    left = pd.DataFrame(
        [
            (s.provider, s.symbol, (s.ts - BASE) // SECOND, s.name, s.value, s.score, "withdrawn" in s.meta)
            for s in signals
        ],
        columns=["provider", "symbol", "at", "name", "value", "score", "withdrawn"],
    )
    left["until"] = left["at"] + horizon
    prices = pd.DataFrame(
        [(b.provider, b.symbol, b.ended, b.close) for b in bars],
        columns=["provider", "symbol", "ended", "close"],
    ).astype({"provider": "str", "symbol": "str", "ended": np.int64, "close": np.float64})
    prices = prices.sort_values("ended")
    by = ["provider", "symbol"]
    last = prices.groupby(by)["ended"].max().rename("last").reset_index()
    for key, suffix in (("at", "_in"), ("until", "_out")):
        renamed = prices.rename(columns={"ended": f"ended{suffix}", "close": f"close{suffix}"})
        left = pd.merge_asof(
            left.astype({key: np.int64}).sort_values(key),
            renamed,
            left_on=key,
            right_on=f"ended{suffix}",
            by=by,
        )
    left = left.merge(last, on=by, how="left")
    left["forward"] = left["close_out"] / left["close_in"] - 1
    bad = ~(left["last"] >= left["until"]) | ~(left["ended_out"] > left["at"]) | left["withdrawn"]
    left.loc[bad, "forward"] = np.nan
    return left


@given(seed=SEEDS, page=st.integers(1, 50))
def test_figures_are_those_of_a_recount(seed: int, page: int) -> None:
    bars, signals, horizon = _made(seed)
    found = figures(outcomes_of(bars, signals, horizon, page=page), horizon * SECOND)
    if not signals:
        assert len(found) == 1
        return
    table = _recount(bars, signals, horizon)
    assert len(found) == 1 + table["name"].nunique() + len(table.groupby(["name", "symbol"]))
    for row in found:
        of = table
        if row.name is not None:
            of = of[of["name"] == row.name]
        if row.symbol is not None:
            of = of[of["symbol"] == row.symbol]
        _same(row, of)


def _same(row: Figures, of: pd.DataFrame) -> None:
    scored = of[of["forward"].notna()]
    sign = np.sign(scored["value"].fillna(0.0))
    signed = (1e4 * scored["forward"] * sign)[sign != 0]
    still = scored[sign == 0]
    assert row.count == len(of) == row.scored + row.open + row.withdrawn
    assert (row.scored, row.withdrawn) == (len(scored), of["withdrawn"].sum())
    assert row.unpriced == (of["close_in"].isna() & ~of["withdrawn"]).sum() <= row.open
    assert row.undirected == len(still)
    expected = {
        "hit_rate": (signed > 0).mean(),
        "mean_bps": signed.mean(),
        "median_bps": signed.median(),
        "worst_bps": signed.min(),
        "best_bps": signed.max(),
        "mean_abs_bps": 1e4 * still["forward"].abs().mean(),
        "mean_score": scored["score"].mean(),
    }
    for key, value in expected.items():
        got = getattr(row, key)
        assert (math.nan if got is None else got) == pytest.approx(value, rel=1e-9, abs=1e-8, nan_ok=True), (
            key
        )


@given(seed=SEEDS)
def test_a_curve_ends_at_the_mean(seed: int) -> None:
    bars, signals, horizon = _made(seed)
    outcomes = outcomes_of(bars, signals, horizon, steps=True)
    means = {row.name: row for row in figures(outcomes, horizon * SECOND) if row.group == "name"}
    drawn = curves(outcomes, horizon * SECOND)
    assert [c.name for c in drawn] == [n for n, row in means.items() if row.mean_bps is not None]
    for curve in drawn:
        row = means[curve.name]
        ends = [float(x[-1]) for x in (curve.mean, curve.low, curve.high)]
        expected = [math.nan if x is None else x for x in (row.mean_bps, row.low_bps, row.high_bps)]
        assert ends == pytest.approx(expected, rel=1e-4, abs=1e-2, nan_ok=True)
        assert curve.n == row.scored - row.undirected


@given(seed=SEEDS, pages=st.integers(1, 9))
def test_prices_do_not_depend_on_the_pages(seed: int, pages: int) -> None:
    rng = np.random.default_rng(seed)
    ended = np.unique(rng.integers(0, 60, rng.integers(0, 30)))
    close, times = rng.random(len(ended)), np.sort(rng.integers(-5, 70, 20))
    prices = PricesAt(times)
    for part in np.array_split(np.arange(len(ended)), pages):
        prices.feed(ended[part], close[part])
    reached = np.array([bool((ended >= at).any()) for at in times.tolist()])
    expected = np.array(
        [close[ended <= at][-1] if (ended <= at).any() else math.nan for at in times.tolist()]
    )
    assert prices.close.tolist() == pytest.approx(np.where(reached, expected, math.nan).tolist(), nan_ok=True)
    assert prices.complete == reached.all()
    prices.finish()
    assert prices.close.tolist() == pytest.approx(expected.tolist(), nan_ok=True)
    assert (prices.ended == NEVER).tolist() == np.isnan(expected).tolist()


# --- the interval --------------------------------------------------------------------------------------------


def _slow_error(values: F64, ts: Sequence[int], width: int) -> float:
    """The standard error by the formula, pair by pair."""
    deviation = values - values.mean()
    pairs = sum(
        max(0.0, 1 - abs(a - b) / width) * x * y
        for a, x in zip(ts, deviation, strict=True)
        for b, y in zip(ts, deviation, strict=True)
    )
    blocks = len({(t - ts[0]) // width for t in ts})
    return math.sqrt(max(float(pairs), 0.0) / len(ts) ** 2 * blocks / (blocks - 1))


@given(seed=SEEDS, n=st.integers(2, 60), spread=st.integers(1, 2000), horizon=st.integers(1, 50))
def test_an_interval_is_that_of_the_formula(seed: int, n: int, spread: int, horizon: int) -> None:
    rng = np.random.default_rng(seed)
    ts = np.sort(rng.integers(0, spread, n)) + BASE
    values = rng.normal(3, 10, n)
    found = estimate(values, ts, horizon)
    blocks = len({(t - ts[0]) // (WIDTH * horizon) for t in ts.tolist()})
    assert found.blocks == blocks
    if blocks == 1:
        assert math.isnan(found.low)
        return
    error = _slow_error(values, ts.tolist(), WIDTH * horizon)
    half = stats.t.ppf(0.975, blocks - 1) * error
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), rel=1e-4, abs=1e-5
    )


@given(seed=SEEDS, n=st.integers(2, 300))
def test_what_is_far_apart_gets_the_interval_of_the_textbook(seed: int, n: int) -> None:
    values = np.random.default_rng(seed).normal(1, 5, n)
    found = estimate(values, np.arange(n) * 1000 * SECOND, SECOND)
    error = float(stats.sem(values))
    expected = stats.t.interval(0.95, n - 1, values.mean(), error)
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert found.t == pytest.approx(stats.ttest_1samp(values, 0.0).statistic)


def test_a_year_of_signals_loses_no_digits() -> None:
    rng = np.random.default_rng(5)
    ts = np.sort(rng.integers(0, 365 * 86_400, 100_000)) * SECOND
    values = rng.normal(0.1, 10, len(ts))
    far = estimate(values, ts, 10 * SECOND)
    half = len(ts) // 2
    # Moved in time, everything is as before; and the pairs are those of a sum that knows no running sums.
    assert estimate(values, ts + 10**17, 10 * SECOND).low == pytest.approx(far.low, rel=1e-9)
    near = slice(half, half + 400)
    one = estimate(values[near], ts[near], 10 * SECOND)
    error = _slow_error(values[near], ts[near].tolist(), 30 * SECOND)
    assert one.mean / one.t == pytest.approx(error, rel=1e-9)


def test_equal_values_have_no_t() -> None:
    found = estimate(np.full(50, 0.1), np.arange(50) * SECOND, SECOND)
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))
    assert math.isnan(found.t)


def test_points_of_student_are_those_of_scipy() -> None:
    freedoms = [*range(1, 300), 1000, 10**6]
    expected = [stats.t.ppf(0.975, f) for f in freedoms]
    assert [student_975(f) for f in freedoms] == pytest.approx(expected, rel=2e-5)


def test_an_interval_covers_the_truth_although_horizons_overlap() -> None:
    """Random walks with a signal at each bar and 30 bars of horizon: the mean return is 0 in truth."""
    rng = np.random.default_rng(11)
    covered = naive = 0
    runs, n, horizon = 400, 1800, 30
    ts = np.arange(n, dtype=np.int64)
    for _ in range(runs):
        walk = np.cumsum(rng.standard_normal(n + horizon))
        values = walk[horizon:] - walk[:-horizon]
        found = estimate(values, ts, horizon)
        covered += found.low <= 0 <= found.high
        naive += abs(values.mean()) <= 1.96 * values.std(ddof=1) / math.sqrt(n)
    assert 0.92 <= covered / runs <= 0.98
    assert naive / runs < 0.5, "the textbook's interval would not do"
