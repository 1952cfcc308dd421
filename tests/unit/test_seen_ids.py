"""Remembering ids: as a set does, within a horizon of event time, and from where to read to know them again."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_core.batch import EventBatch
from market_data_core.events import Series, StreamEvent
from market_data_pipeline.windows.seen_ids import U64, IdTable, SeenIds, _scatter, event_hashes, series_hashes
from tests.unit.strategies import BASE, SECOND, SEEDS


def ids(*values: int) -> U64:
    return np.array(values, np.uint64)


# Few values that share their low bits: nearly everything collides.
CROWDED = st.lists(st.integers(1, 40).map(lambda i: (i << 20) | 7), max_size=60)
ANY = st.lists(st.integers(1, 2**64 - 1), max_size=60)


@given(st.lists(CROWDED | ANY, max_size=12))
def test_a_table_is_a_set(batches: list[list[int]]) -> None:
    table = IdTable(slots=8)
    known: set[int] = set()
    for batch in batches:
        fresh = []
        for value in batch:
            fresh.append(value not in known)
            known.add(value)
        assert table.add(ids(*batch)).tolist() == fresh
        assert len(table) == len(known)
        probe = sorted(known)[:20] + [v + 1 for v in sorted(known)[:20] if v < 2**64 - 1]
        assert table.contains(ids(*probe)).tolist() == [v in known for v in probe]


@given(SEEDS)
@settings(max_examples=5)
def test_a_large_table_is_a_set(seed: int) -> None:
    rng = random.Random(seed)
    table, known = IdTable(), set[int]()
    for _ in range(5):
        batch = [rng.randrange(1, 30_000) * 0x9E3779B97F4A7C15 % 2**64 for _ in range(4000)]
        fresh = []
        for value in batch:
            fresh.append(value not in known)
            known.add(value)
        assert table.add(ids(*batch)).tolist() == fresh
    assert len(table) == len(known)


def test_an_empty_table_knows_nothing() -> None:
    table = IdTable()
    assert table.contains(ids(1, 2, 3)).tolist() == [False] * 3
    assert table.add(ids()).tolist() == []
    assert len(table) == 0


def test_an_id_is_remembered_for_the_horizon_at_least_and_twice_that_at_most() -> None:
    seen = SeenIds(100)
    assert seen.first_offset is None
    seen.advance(0)
    assert seen.add(ids(1, 2, 1), 10).tolist() == [True, True, False]
    seen.advance(99)
    assert seen.add(ids(3), 20).tolist() == [True]
    seen.advance(100)
    assert seen.add(ids(1, 2, 3, 4), 30).tolist() == [False, False, False, True]
    seen.advance(199)
    assert seen.add(ids(3), 40).tolist() == [False], "100 after it came, it is still known"
    seen.advance(200)
    assert seen.add(ids(1, 2), 50).tolist() == [False, False], "what comes again is remembered anew"
    seen.advance(300)
    assert seen.add(ids(4), 60).tolist() == [True]
    assert seen.add(ids(1, 3), 60).tolist() == [False, True]


def test_time_that_goes_back_forgets_nothing() -> None:
    seen = SeenIds(100)
    seen.advance(1000)
    seen.add(ids(1), 1)
    seen.advance(10)
    seen.advance(999)
    assert seen.add(ids(1), 2).tolist() == [False]
    assert seen.first_offset == 1


def test_reading_from_the_first_offset_restores_what_is_remembered() -> None:
    seen = SeenIds(100)
    for step in range(50):
        seen.advance(step * 30)
        seen.add(ids(step * 2 + 1, step * 2 + 2), step)
        first = seen.first_offset
        assert first is not None
        assert first <= step
        again = SeenIds(100)
        for old in range(first, step + 1):
            again.add(ids(old * 2 + 1, old * 2 + 2), old)
        probe = ids(*range(1, step * 2 + 3))
        known_now = seen._now.contains(probe) | seen._before.contains(probe)
        assert (again._now.contains(probe) | ~known_now).all()
        assert len(seen) <= 2 * (100 // 30 + 2) * 2, "memory is bounded by the horizon"


def test_the_memory_of_forgotten_ids_is_used_again() -> None:
    """Let go of, it would often stay with the process, and more would be taken."""
    seen = SeenIds(100)
    rng = np.random.default_rng(1)
    memory = set()
    for turn in range(8):
        seen.advance(turn * 100)
        assert seen.add(rng.integers(1, 2**63, 5000).astype(np.uint64), turn).all()
        if turn >= 2:
            memory.add(id(seen._now._slots))
    assert len(memory) == 2
    seen.advance(800)
    assert not len(seen._now)
    assert len(seen._now._slots) > 10_000
    # What hardly anything was in is not kept large.
    for turn in range(9, 12):
        seen.advance(turn * 100)
        seen.add(ids(turn), turn)
    assert len(seen._now._slots) < 5000


@given(SEEDS, st.sampled_from([60, 250, 1000]))
def test_within_the_horizon_a_copy_is_always_found(seed: int, horizon: int) -> None:
    """Against a dictionary of times: a copy within the horizon is known, and one beyond twice that, seen in steps of
    time smaller than the horizon, is not."""
    rng = random.Random(seed)
    seen = SeenIds(horizon)
    last: dict[int, int] = {}
    now = 0
    for step in range(200):
        now += rng.randrange(horizon // 4)
        seen.advance(now)
        value = rng.randrange(1, 60)
        fresh = bool(seen.add(ids(value), step)[0])
        if value in last and now - last[value] < horizon:
            assert not fresh
        if value not in last or now - last[value] > 3 * horizon:
            assert fresh
        last[value] = now


def batch(*events: StreamEvent) -> EventBatch:
    return EventBatch.from_events(events)


def hashes(some: EventBatch) -> list[int]:
    return event_hashes(some, series_hashes(some.series)).tolist()  # type: ignore[no-any-return]


def test_the_identity_of_an_event_is_provider_symbol_time_and_seq() -> None:
    def event(**changes: object) -> StreamEvent:
        fields: dict[str, object] = {"provider": "p", "symbol": "A", "kind": "tick", "interval": "1s"}
        fields |= {
            "src_ts": BASE,
            "ingest_ts": BASE,
            "o": 1.0,
            "h": 1.0,
            "l": 1.0,
            "c": 1.0,
            "v": 1.0,
            "seq": 5,
        }
        return StreamEvent(**(fields | changes))  # type: ignore[arg-type]

    [base] = hashes(batch(event()))
    for same in ({"ingest_ts": 0}, {"c": 2.0, "h": 2.0}, {"v": 9.0}, {"kind": "bar"}, {"interval": "1m"}):
        assert hashes(batch(event(**same))) == [base]
    others = (
        {"provider": "q"},
        {"symbol": "B"},
        {"src_ts": BASE + 1},
        {"seq": 6},
        {"src_ts": 5, "seq": BASE},
    )
    different = {base} | {hashes(batch(event(**other)))[0] for other in others}
    assert len(different) == 6
    # The code that a series happens to have is no part of it.
    assert hashes(batch(event(symbol="Z"), event()))[1] == base


def test_names_do_not_run_together() -> None:
    a, b = series_hashes((Series("ab", "c", "tick", "1s"), Series("a", "bc", "tick", "1s"))).tolist()
    assert a != b


def test_neighbours_have_ids_far_apart() -> None:
    n = 200_000
    column = np.arange(n, dtype=np.int64)
    zeros, prices = np.zeros(n, np.int32), np.ones(n)
    series = (Series("p", "A", "tick", "1s"), Series("p", "B", "tick", "1s"))
    for code, src_ts, seq in (
        (zeros, BASE + column, column * 0),
        (zeros, BASE + column * 1000, column),
        ((column % 2).astype(np.int32), BASE + column * 0, column // 2),
        (zeros, BASE - column, column - n // 2),
    ):
        some = EventBatch(series, code, src_ts, src_ts, prices, prices, prices, prices, prices, seq)
        found = event_hashes(some, series_hashes(series))
        assert len(np.unique(found)) == n
        assert (found != 0).all()
        # The low bits choose the slot: they must spread.
        assert len(np.unique(found & np.uint64(0xFFF))) == 4096


def test_zero_is_never_an_id() -> None:
    """It marks an empty slot."""
    some = batch(StreamEvent("p", "A", "tick", "1s", BASE, BASE, 1, 1, 1, 1, 1, 1))
    inverse = pow(0xC2B2AE3D27D4EB4F, -1, 2**64)
    # Found by undoing the mixing: the seq with which the hash of this very event would be zero.
    zero = event_hashes(some, series_hashes(some.series))
    assert zero[0] != 0
    first = _scatter(series_hashes(some.series) + some.src_ts.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    seq = -int(first[0]) * inverse % 2**64
    some.seq[0] = seq - 2**64 if seq >= 2**63 else seq
    assert event_hashes(some, series_hashes(some.series)).tolist() == [1]


def test_the_horizon_of_nothing_remembers_the_batch_at_least() -> None:
    seen = SeenIds(0)
    seen.advance(SECOND)
    assert seen.add(ids(1, 1), 0).tolist() == [True, False]
