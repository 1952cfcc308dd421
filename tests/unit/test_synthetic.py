"""The synthetic provider: what is promised of its prices, times and disturbances."""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_core.batch import EventBatch
from market_data_core.clock import ManualClock
from market_data_core.codecs import faults
from market_data_core.config import Settings
from market_data_core.errors import UsageError
from market_data_pipeline.producers import synthetic
from market_data_pipeline.producers.provider import ProviderRequest
from market_data_pipeline.producers.synthetic import SyntheticProvider, SyntheticSpec, provider

START = 1_700_000_000_000_000_000


def events(batches: int | None = None, **wanted: Any) -> EventBatch:
    spec = SyntheticSpec(**({"start_ts": START, "seed": 7} | wanted))
    return EventBatch.concat(list(islice(SyntheticProvider(spec).batches(), batches)))


def same(a: EventBatch, b: EventBatch) -> bool:
    columns = ("src_ts", "ingest_ts", "o", "h", "l", "c", "v", "seq")
    names_a = [a.series[c] for c in a.code.tolist()]
    names_b = [b.series[c] for c in b.code.tolist()]
    return names_a == names_b and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in columns)


def of_symbol(batch: EventBatch, symbol: str) -> EventBatch:
    wanted = [i for i, s in enumerate(batch.series) if s.symbol == symbol]
    return batch.take(np.isin(batch.code, wanted))


DISTURBED = {"disorder_ms": 300, "late_ratio": 0.01, "duplicate_ratio": 0.05, "gap_ratio": 0.1}


@pytest.mark.parametrize("disturbances", [{}, DISTURBED])
def test_same_seed_and_start_give_identical_events(disturbances: dict[str, float]) -> None:
    wanted: dict[str, Any] = {"symbols": ("A", "B", "C"), "rate": 1000.0, "limit": 150_000, **disturbances}
    assert same(events(**wanted), events(**wanted))
    assert not same(events(**wanted), events(**{**wanted, "seed": 8}))


@pytest.mark.parametrize("disturbances", [{}, DISTURBED])
def test_events_do_not_change_with_the_blocks_that_they_are_made_in(
    disturbances: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: dict[str, Any] = {"symbols": ("A", "B", "C"), "rate": 1000.0, "limit": 30_000, **disturbances}
    found = events(**wanted)
    for seconds in (0.1, 1.0, 1e9):
        monkeypatch.setattr(synthetic, "_BLOCK_S", seconds)
        assert same(found, events(**wanted))


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    short = events(symbols=("A", "B"), rate=1000.0, limit=70_001, gap_ratio=0.2)
    long = events(symbols=("A", "B"), rate=1000.0, limit=140_000, gap_ratio=0.2)
    assert same(short, long.take(slice(70_001)))


def test_a_symbol_does_not_depend_on_the_others() -> None:
    """At the same share of the rate; only the turn within a round, and so the time, moves."""
    alone = events(symbols=("SPY",), rate=100.0, limit=5000)
    among = of_symbol(events(symbols=("SPY", "A", "B", "C"), rate=400.0, limit=20_000), "SPY")
    assert same(alone, among)
    last = of_symbol(events(symbols=("A", "B", "C", "SPY"), rate=400.0, limit=20_000), "SPY")
    assert np.array_equal(alone.c, last.c)
    assert np.array_equal(alone.v, last.v)
    assert set(last.src_ts - alone.src_ts) == {7_500_000}


def test_events_are_events() -> None:
    batch = events(symbols=tuple(f"S{i}" for i in range(9)), rate=0.0, limit=200_000, volatility=5.0)
    assert faults(batch) == {}
    assert batch.c.min() > 0
    assert np.array_equal(batch.c, np.round(batch.c, 2)), "prices are on the grid of a cent"
    assert np.array_equal(batch.v, np.floor(batch.v))
    assert batch.v.min() >= 1
    for symbol in ("S0", "S8"):
        one = of_symbol(batch, symbol)
        assert np.array_equal(one.seq, np.arange(len(one)))
        assert len({(t, q) for t, q in zip(one.src_ts.tolist(), one.seq.tolist(), strict=True)}) == len(one)


@pytest.mark.parametrize("tick", [0.01, 0.05, 0.25, 1.0, 5.0, 1e-5])
def test_prices_are_on_the_grid(tick: float) -> None:
    batch = events(symbols=("A",), limit=10_000, rate=10.0, price_tick=tick)
    steps = batch.c / tick
    assert np.allclose(steps, np.rint(steps), rtol=1e-12)
    assert batch.c.min() >= tick


def test_volatility_is_of_a_day() -> None:
    """The daily standard deviation that comes out is the one asked for: 2,000 days of a tick a minute."""
    n = 1440 * 400
    batch = events(symbols=("A",), rate=1 / 60, limit=n, volatility=0.02, price_tick=1e-5)
    daily = np.diff(np.log(batch.c[::1440]))
    assert daily.std() == pytest.approx(0.02, rel=0.12)  # 400 days: three standard errors


@pytest.mark.parametrize(
    ("rate", "last"),
    [(3.0, 333_333_000 * 1), (0.1, 10_000_000_000), (1e6, 1000), (2.5, 400_000_000), (7.0, 142_857_000)],
)
def test_event_time_is_the_schedule(rate: float, last: int) -> None:
    batch = events(symbols=("A",), rate=rate, limit=2)
    assert batch.src_ts.tolist() == [START, START + last]
    assert batch.ingest_ts.tolist() == batch.src_ts.tolist()


def test_the_schedule_does_not_drift() -> None:
    batch = events(symbols=("A",), rate=3.0, limit=300_001)
    assert batch.src_ts[-1] == START + 100_000 * 10**9


def test_event_time_starts_now() -> None:
    clock = ManualClock(START)
    batches = SyntheticProvider(SyntheticSpec(rate=10.0), clock).batches()
    clock.advance(123_456_789)
    assert next(batches).src_ts[0] == START + 123_456_000


def test_as_fast_as_possible_keeps_to_the_clock() -> None:
    """However fast events are made, none is ahead of the clock, or later live events would be late."""
    clock = ManualClock(START)
    seen = []
    for batch in islice(SyntheticProvider(SyntheticSpec(("A", "B"), 0.0, seed=1), clock).batches(), 20):
        assert batch.src_ts.max() <= clock.now()
        assert np.all(batch.src_ts % 1000 == 0)
        seen.append(batch)
        clock.advance(12_345_678)
    times = np.concatenate([batch.src_ts for batch in seen])
    assert np.all(np.diff(times) >= 0)
    assert times[-1] > START + 18 * 12_345_678
    ids = {
        (s, t, q)
        for b in seen
        for s, t, q in zip(b.code.tolist(), b.src_ts.tolist(), b.seq.tolist(), strict=True)
    }
    assert len(ids) == len(times)


def test_disorder_is_bounded_and_events_stay() -> None:
    plain = events(symbols=("A", "B"), rate=100.0, limit=70_000)
    mixed = events(symbols=("A", "B"), rate=100.0, limit=70_000, disorder_ms=250)
    order = np.lexsort((mixed.code, mixed.src_ts))
    assert np.array_equal(mixed.src_ts[order], plain.src_ts)
    assert np.array_equal(mixed.c[order], plain.c)
    assert np.all(np.diff(mixed.ingest_ts) >= 0), "in order of arrival"
    behind = np.maximum.accumulate(mixed.src_ts) - mixed.src_ts
    assert 200e6 < behind.max() <= 250e6


def test_late_events_are_late() -> None:
    batch = events(symbols=("A",), rate=1000.0, limit=100_000, late_ratio=0.01, late_ms=5000)
    late = (batch.ingest_ts - batch.src_ts) == 5_000_000_000
    assert 800 < late.sum() < 1200
    assert np.all(batch.ingest_ts[~late] == batch.src_ts[~late])
    behind = np.maximum.accumulate(batch.src_ts) - batch.src_ts
    in_the_middle = late & (np.arange(len(batch)) < 90_000)
    assert np.all(behind[in_the_middle] >= 4_990_000_000)


def test_duplicates_have_the_same_id_and_come_later() -> None:
    batch = events(symbols=("A", "B"), rate=1000.0, limit=50_000, duplicate_ratio=0.05)
    ids = Counter(zip(batch.code.tolist(), batch.src_ts.tolist(), batch.seq.tolist(), strict=True))
    assert len(ids) == 50_000
    copies = sum(count - 1 for count in ids.values())
    assert 2200 < copies < 2800
    assert max(ids.values()) == 2
    assert len(batch) == 50_000 + copies


def test_gaps_are_silences_that_leave_numbers_out() -> None:
    batch = events(symbols=("A",), rate=1000.0, limit=100_000, gap_ratio=0.2)
    assert len(batch) == 100_000
    step = np.diff(batch.seq)
    assert 0.15 < 1 - len(batch) / (batch.seq[-1] + 1) < 0.25
    assert set(np.unique(step[step > 1] % 100).tolist()) == {1}, "whole stretches of 100"
    assert np.array_equal(np.diff(batch.src_ts), step * 1_000_000)


@settings(max_examples=25, deadline=None)
@given(
    symbols=st.integers(1, 400),
    limit=st.integers(0, 3000),
    rate=st.sampled_from([0.0, 0.1, 3.0, 999.0, 1e6]),
    duplicates=st.sampled_from([0.0, 0.3]),
    disorder=st.sampled_from([0, 50]),
)
def test_any_run_gives_each_event_once(
    symbols: int, limit: int, rate: float, duplicates: float, disorder: int
) -> None:
    names = tuple(f"S{i}" for i in range(symbols))
    spec = SyntheticSpec(names, rate, START, 3, limit, duplicate_ratio=duplicates, disorder_ms=disorder)
    got = [
        e
        for b in SyntheticProvider(spec).batches()
        for e in zip(b.code.tolist(), b.seq.tolist(), strict=True)
    ]
    assert set(got) == {(i % symbols, i // symbols) for i in range(limit)}
    assert duplicates > 0 or len(got) == limit


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"symbols": ()}, "--symbols"),
        ({"symbols": ("A", "A")}, "--symbols"),
        ({"symbols": ("A|B",)}, "A|B"),
        ({"rate": -1.0}, "--rate"),
        ({"rate": float("nan")}, "--rate"),
        ({"rate": 1e12}, "1e9"),
        ({"seed": -1}, "--seed"),
        ({"limit": -1}, "--limit"),
        ({"price_tick": 0.0}, "tick"),
        ({"late_ratio": 1.0}, "late_ratio"),
        ({"disorder_ms": -1}, "disorder_ms"),
    ],
)
def test_impossible_wishes_are_refused_by_name(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=re.escape(named)):
        SyntheticSpec(**wrong)


def test_settings_and_options_make_the_provider() -> None:
    given = Settings.model_validate(
        {"producers": {"synthetic": {"symbols": ["X", "Y"], "tick_rate": 5.0, "seed": 4, "disorder_ms": 20}}}
    )
    spec = provider(ProviderRequest(settings=given)).spec
    assert (spec.symbols, spec.rate, spec.seed, spec.disorder_ms) == (("X", "Y"), 10.0, 4, 20)
    asked = ProviderRequest(
        settings=given, symbols=("spy",), rate=0.0, seed=9, limit=3, start_ts=START, name="n"
    )
    spec = provider(asked).spec
    assert (spec.symbols, spec.rate, spec.seed, spec.limit, spec.start_ts) == (("SPY",), 0.0, 9, 3, START)
    assert provider(asked).name == "n"


def test_without_a_seed_each_run_is_another() -> None:
    request = ProviderRequest(settings=Settings(), limit=10, start_ts=START)
    first, second = (EventBatch.concat(list(provider(request).batches())) for _ in range(2))
    assert not np.array_equal(first.v, second.v)
