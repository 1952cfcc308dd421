"""Aggregation: equal to pandas, exact in its sums, and the same however events are ordered and cut."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from market_data_core.batch import BarBatch, EventBatch
from market_data_core.events import BarSeries, Series, StreamEvent
from market_data_core.ohlcv import exact_sums, merge_bars, partial_bars, typical_price
from tests import oracle
from tests.unit.strategies import BASE, SECOND, SEEDS, arrivals, events, pieces

COLUMNS = [f.name for f in dataclasses.fields(BarBatch) if f.name not in ("series", "code")]


def bits(bars: BarBatch) -> dict[tuple[BarSeries, int], tuple[bytes, ...]]:
    """Every column of every bar, to the bit."""
    columns = [getattr(bars, name) for name in COLUMNS]
    return {
        (bars.series[code], ts): tuple(column[i].tobytes() for column in columns)
        for i, (code, ts) in enumerate(zip(bars.code.tolist(), bars.ts.tolist(), strict=True))
    }


def of(some: Sequence[StreamEvent], window: int = 5 * SECOND) -> BarBatch:
    return partial_bars(EventBatch.from_events(some), window)


def ticks(prices: Sequence[float], sizes: Sequence[float]) -> EventBatch:
    """Ticks of one symbol in one window, in order of time."""
    at = BASE + np.arange(len(prices), dtype=np.int64)
    c = np.array(prices, np.float64)
    code = np.zeros(len(c), np.int32)
    return EventBatch(
        (Series("p", "A", "tick", "1s"),), code, at, at, c, c, c, c, np.array(sizes, np.float64), at
    )


@given(SEEDS, st.integers(1, 400))
@settings(max_examples=40)
def test_bars_are_those_of_the_recount(seed: int, n: int) -> None:
    made = arrivals(seed, n, providers=2, seconds=30.0)
    for window in (SECOND, 7 * SECOND, 3600 * SECOND):
        oracle.assert_equal(of(made.distinct, window).bars(), oracle.recount(made.distinct, window))


def test_bars_are_those_of_pandas() -> None:
    rng = np.random.default_rng(3)
    n = 5000
    at = np.sort(rng.integers(0, 600 * SECOND, n)) + BASE // (60 * SECOND) * 60 * SECOND
    price = np.round(rng.uniform(50, 60, n), 4)
    size = rng.integers(1, 500, n).astype(np.float64)
    series = (Series("p", "A", "tick", "1s"),)
    zeros = np.zeros(n, np.int32)
    bars = partial_bars(
        EventBatch(series, zeros, at, at, price, price, price, price, size, np.arange(n)), 60 * SECOND
    )
    frame = pd.DataFrame({"c": price, "v": size, "m": price * size}, index=pd.to_datetime(at))
    grouped = frame.resample("1min")
    ohlc = grouped["c"].ohlc()
    assert bars.ts.tolist() == [int(t.value) for t in ohlc.index]
    for name in ("open", "high", "low", "close"):
        assert getattr(bars, name).tolist() == ohlc[name].tolist()
    assert bars.volume.tolist() == grouped["v"].sum().tolist()
    assert bars.n_events.tolist() == grouped["c"].count().tolist()
    np.testing.assert_allclose(bars.vwap, grouped["m"].sum() / grouped["v"].sum(), rtol=1e-13)


@given(SEEDS, st.integers(1, 200))
@settings(max_examples=60)
def test_no_order_and_no_cut_changes_a_bit(seed: int, n: int) -> None:
    rng = random.Random(seed)
    some = arrivals(seed, n, providers=2, seconds=20.0).distinct
    want = bits(of(some))
    shuffled = rng.sample(some, len(some))
    assert bits(of(shuffled)) == want
    parts = [of(shuffled[cut]) for cut in pieces(rng, n, n)]
    rng.shuffle(parts)
    assert bits(merge_bars(BarBatch.concat(parts))) == want
    # Merged pair by pair, in any tree.
    while len(parts) > 1:
        a = parts.pop(rng.randrange(len(parts)))
        b = parts.pop(rng.randrange(len(parts)))
        parts.append(merge_bars(BarBatch.concat([a, b])))
    assert bits(parts[0]) == want


@given(
    SEEDS, st.integers(1, 60), st.sampled_from([1e-8, 1e-4, 1.0, 431.7, 6e4, 1e9]), st.sampled_from([0, 2, 8])
)
def test_sums_are_exact(seed: int, n: int, price: float, decimals: int) -> None:
    """At any price, with sizes of up to eight decimals: the pair is the sum of the float64 products, and no order
    and no cut changes a bit of it."""
    rng = random.Random(seed)
    prices = [price * rng.uniform(0.9, 1.1) for _ in range(n)]
    sizes = [round(10 ** rng.uniform(-decimals, 6), decimals) for _ in range(n)]
    batch = ticks(prices, sizes)
    bar = partial_bars(batch, 60 * SECOND)
    assert len(bar) == 1
    for name, terms in (("volume", sizes), ("notional", [p * s for p, s in zip(prices, sizes, strict=True)])):
        hi, lo = float(getattr(bar, name)[0]), float(getattr(bar, f"{name}_lo")[0])
        total = sum(map(Fraction, terms), Fraction())
        # What lies below 2**-96 is rounded, once a term.
        error = abs(Fraction(hi) + Fraction(lo) - total)
        assert error <= Fraction(n, 2**97), name
        assert hi == float(Fraction(hi) + Fraction(lo)), f"{name}: hi is not the nearest float64"
        assert hi == pytest.approx(float(total), rel=2**-52)
    parts = [partial_bars(batch.take(np.array(rows)), 60 * SECOND) for rows in _shares(rng, n)]
    assert bits(merge_bars(BarBatch.concat(parts))) == bits(bar)


def _shares(rng: random.Random, n: int) -> list[list[int]]:
    """``range(n)`` dealt out at random."""
    hands: list[list[int]] = [[] for _ in range(rng.randint(1, 5))]
    for i in rng.sample(range(n), n):
        rng.choice(hands).append(i)
    return [hand for hand in hands if hand]


@given(st.lists(st.floats(-1e21, 1e21, allow_subnormal=False), min_size=1, max_size=40), SEEDS)
def test_sums_of_any_numbers_are_right_to_the_last_place(values: list[float], seed: int) -> None:
    """Also where a pair cannot hold all of it."""
    total = sum(map(Fraction, values), Fraction())
    shuffled = random.Random(seed).sample(values, len(values))
    for order in (values, shuffled):
        hi, lo = exact_sums(np.array(order), None, np.array([0]))
        bound = Fraction(len(values), 2**97) + abs(total) * Fraction(1, 2**100)
        assert abs(Fraction(float(hi[0])) + Fraction(float(lo[0])) - total) <= bound


def test_sums_where_float64_fails() -> None:
    """One large and many small: a plain float64 sum loses all of the small ones."""
    values = np.array([1e16, *[0.1] * 1000, -1e16])
    hi, _ = exact_sums(values, None, np.array([0]))
    assert hi[0] == float(1000 * Fraction(0.1))
    assert float(values.sum()) != hi[0]


def test_whole_numbers_and_others_give_the_same_bits() -> None:
    """The short way for whole numbers is taken for a batch, not for a bar: it must not show."""
    whole, mixed = ticks([2.0, 3.0], [5.0, 7.0]), ticks([2.0, 3.0, 1.5], [5.0, 7.0, 0.25])
    third = mixed.take(np.array([2]))
    assert bits(
        merge_bars(BarBatch.concat([partial_bars(whole, SECOND), partial_bars(third, SECOND)]))
    ) == bits(partial_bars(mixed, SECOND))


ZEROS = st.lists(st.sampled_from([0.0, -0.0]), min_size=4, max_size=4)


@given(ZEROS, ZEROS)
@example([-0.0] * 4, [-0.0] * 4)
def test_there_is_one_zero(prices: list[float], sizes: list[float]) -> None:
    bar = partial_bars(ticks(prices, sizes), SECOND)
    merged = merge_bars(
        BarBatch.concat([partial_bars(ticks([p], [s]), SECOND) for p, s in zip(prices, sizes, strict=True)])
    )
    for name in ("open", "high", "low", "close", "volume", "volume_lo", "notional", "notional_lo"):
        assert getattr(bar, name).tobytes() == np.zeros(1).tobytes(), name
        assert getattr(merged, name).tobytes() == np.zeros(1).tobytes(), name


@given(st.lists(events(), min_size=1, max_size=20))
def test_any_valid_events_make_sane_bars(some: list[StreamEvent]) -> None:
    bars = of(some, 60 * SECOND)
    for bar in bars.bars():
        assert bar.low <= min(bar.open, bar.close)
        assert max(bar.open, bar.close) <= bar.high
        assert bar.ts <= bar.first_ts <= bar.last_ts < bar.ts + 60 * SECOND
        assert bar.ts % (60 * SECOND) == 0
        assert bar.volume >= 0
        assert (bar.vwap is None) == (bar.volume == 0)
    assert int(bars.n_events.sum()) == len(some)


def test_open_and_close_are_by_time_and_then_seq() -> None:
    def tick(at: int, seq: int, c: float) -> StreamEvent:
        return StreamEvent("p", "A", "tick", "1s", BASE + at, BASE, c, c, c, c, 1.0, seq)

    some = [
        tick(5, 2, 1.0),
        tick(5, 1, 2.0),
        tick(9, -3, 3.0),
        tick(9, -4, 4.0),
        tick(5, 3, 5.0),
        tick(7, 9, 6.0),
    ]
    for order in (some, some[::-1], some[3:] + some[:3]):
        [bar] = of(order).bars()
        assert (bar.open, bar.close) == (2.0, 3.0)
        merged = merge_bars(BarBatch.concat([of([e]) for e in order]))
        assert (merged.open[0], merged.close[0]) == (2.0, 3.0)
        assert (merged.first_seq[0], merged.last_seq[0]) == (1, -3)


def test_the_extreme_seqs_are_ordered_too() -> None:
    def tick(seq: int, c: float) -> StreamEvent:
        return StreamEvent("p", "A", "tick", "1s", BASE, BASE, c, c, c, c, 1.0, seq)

    some = [tick(2**63 - 1, 1.0), tick(-(2**63), 2.0), tick(0, 3.0)]
    merged = merge_bars(BarBatch.concat([of([e]) for e in some]))
    assert (merged.open[0], merged.close[0]) == (2.0, 1.0)
    assert bits(merged) == bits(of(some))


def test_vwap_weighs_the_typical_price_of_events_with_a_range() -> None:
    bar = StreamEvent("p", "A", "bar", "1s", BASE, BASE, 10.0, 12.0, 9.0, 11.0, 4.0, 1)
    tick = StreamEvent("p", "A", "tick", "1s", BASE + 1, BASE, 8.0, 8.0, 8.0, 8.0, 2.0, 2)
    assert typical_price(EventBatch.from_events([bar, tick])).tolist() == [(12 + 9 + 11) / 3, 8.0]
    [made] = of([bar, tick]).bars()
    assert made.vwap == pytest.approx(((12 + 9 + 11) / 3 * 4 + 16) / 6, rel=1e-15)
    assert (made.open, made.high, made.low, made.close) == (10.0, 12.0, 8.0, 8.0)


def test_kinds_and_intervals_of_a_symbol_fall_together_and_providers_do_not() -> None:
    def event(provider: str, kind: str, interval: str, seq: int) -> StreamEvent:
        return StreamEvent(provider, "A", kind, interval, BASE, BASE, 1, 1, 1, 1, 1, seq)

    bars = of([event("p", "tick", "1s", 1), event("p", "bar", "500ms", 2), event("q", "tick", "1s", 3)])
    assert {(b.provider, b.n_events) for b in bars.bars()} == {("p", 2), ("q", 1)}
    assert {b.interval for b in bars.bars()} == {"5s"}


def test_an_unknown_notional_stays_unknown() -> None:
    known, unknown = (
        of(arrivals(1, 5, symbols=1, copies=0, seconds=0.5, bars=0).distinct, 3600 * SECOND),
        None,
    )
    unknown = known.take(slice(None))
    unknown.notional[:] = np.nan
    merged = merge_bars(BarBatch.concat([known, unknown]))
    assert len(merged) == 1
    assert np.isnan(merged.notional[0])
    assert merged.bars()[0].vwap is None
    assert merged.volume[0] == 2 * known.volume[0]


def test_the_largest_revision_stays() -> None:
    one = of(arrivals(1, 5, symbols=1, copies=0, seconds=0.5).distinct, 3600 * SECOND)
    two = one.take(np.array([0]))
    two.revision[:] = 7
    assert merge_bars(BarBatch.concat([two, one])).revision.tolist() == [7]


def test_nothing_makes_nothing() -> None:
    assert len(partial_bars(EventBatch.empty(), SECOND)) == 0
    assert len(merge_bars(BarBatch.empty())) == 0
    assert BarBatch.empty().bars() == []


def test_more_series_than_16_bits_count() -> None:
    """Sorting goes another way there."""
    n = 70_000
    code = np.arange(n, dtype=np.int32)[::-1].copy()
    series = tuple(Series("p", f"S{i}", "tick", "1s") for i in range(n))
    at = np.full(n, BASE, np.int64)
    c = code.astype(np.float64)
    bars = partial_bars(EventBatch(series, code, at, at, c, c, c, c, c, at), SECOND)
    assert bars.open.tolist() == list(range(n))
    again = merge_bars(BarBatch.concat([bars, bars]))
    assert again.n_events.tolist() == [2] * n
    assert again.open.tolist() == bars.open.tolist()
