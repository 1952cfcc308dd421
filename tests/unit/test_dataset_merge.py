"""Many files as one stream in time order."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_core.batch import EventBatch
from market_data_core.errors import DatasetError
from market_data_core.events import Series
from market_data_pipeline.producers.merge import Disorder, merged
from market_data_pipeline.producers.provider import BadRow
from market_data_pipeline.producers.sources import Source


def batch(symbol: str, times: list[int], first_row: int = 1) -> EventBatch:
    n = len(times)
    price = np.arange(n, dtype=np.float64)
    at = np.array(times, np.int64)
    seq = np.arange(first_row, first_row + n, dtype=np.int64)
    series = (Series("p", symbol, "tick", "1s"),)
    return EventBatch(series, np.zeros(n, np.int32), at, at * 0, price, price, price, price, price, seq)


def source(
    name: str, times: list[int], cut: int, *, known: bool = False, opened: list[str] | None = None
) -> Source:
    """A file of one symbol, read ``cut`` rows at a time."""

    def read(block_bytes: int) -> Iterator[EventBatch | BadRow]:
        if opened is not None:
            opened.append(name)
        for start in range(0, len(times), cut):
            yield batch(name, times[start : start + cut], start + 1)

    return Source(name, min(times, default=0) if known else None, None, read)


def rows(items: list[EventBatch | BadRow]) -> list[tuple[int, str, int]]:
    return [(e.src_ts, e.symbol, e.seq) for b in items if isinstance(b, EventBatch) for e in b.events()]


@settings(max_examples=200, deadline=None)
@given(
    files=st.lists(st.lists(st.integers(0, 30), max_size=30).map(sorted), min_size=1, max_size=6),
    cuts=st.lists(st.integers(1, 8), min_size=6, max_size=6),
    known=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_sorted_files_merge_sorted(files: list[list[int]], cuts: list[int], known: list[bool]) -> None:
    sources = [source(f"S{i}", t, cuts[i], known=known[i]) for i, t in enumerate(files)]
    disorder = Disorder()
    got = rows(list(merged(sources, disorder=disorder)))
    want = [(t, f"S{i}", row) for i, times in enumerate(files) for row, t in enumerate(times, 1)]
    assert sorted(got) == sorted(want), "every row once"
    assert [t for t, _, _ in got] == sorted(t for t, _, _ in want), "in time order"
    for i in range(len(files)):
        mine = [row for _, name, row in got if name == f"S{i}"]
        assert mine == sorted(mine), "in the file's order"
    assert disorder.rows == 0


@settings(max_examples=100, deadline=None)
@given(
    files=st.lists(st.lists(st.integers(0, 30), max_size=30), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 8), min_size=4, max_size=4),
)
def test_a_file_out_of_order_keeps_its_order(files: list[list[int]], cuts: list[int]) -> None:
    disorder = Disorder()
    got = rows(list(merged([source(f"S{i}", t, cuts[i]) for i, t in enumerate(files)], disorder=disorder)))
    back = 0
    for i, times in enumerate(files):
        assert [(t, row) for t, name, row in got if name == f"S{i}"] == [
            (t, r) for r, t in enumerate(times, 1)
        ]
        back += sum(t < max(times[: r + 1]) for r, t in enumerate(times))
    assert disorder.rows == back


def test_a_file_is_opened_when_it_is_its_turn() -> None:
    opened: list[str] = []
    days = [
        source(f"D{d}", list(range(d * 100, d * 100 + 50)), 10, known=True, opened=opened) for d in range(5)
    ]
    stream = merged(days[::-1])
    first = next(stream)
    assert isinstance(first, EventBatch)
    assert opened == ["D0"]
    assert rows([first, *stream]) == [(t, f"D{t // 100}", t % 100 + 1) for t in range(500) if t % 100 < 50]
    assert opened == ["D0", "D1", "D2", "D3", "D4"]


def test_leaving_early_closes_the_files() -> None:
    closed = []

    def read(block_bytes: int) -> Iterator[EventBatch | BadRow]:
        try:
            yield batch("A", [1, 2, 3])
            yield batch("A", [4, 5, 6], 4)
        finally:
            closed.append(True)

    stream = merged([Source("a", None, None, read)])
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert closed == [True]


def test_bad_rows_pass_through_and_rows_are_chosen() -> None:
    def read(block_bytes: int) -> Iterator[EventBatch | BadRow]:
        yield BadRow("a:1", "why", b"x")
        yield batch("A", [1, 2, 3, 4])
        yield BadRow("a:6", "why", b"y")

    def even(rows: EventBatch) -> EventBatch:
        return rows.take(rows.src_ts % 2 == 0)

    items = list(merged([Source("a", None, None, read), source("B", [1, 2, 9], 2)], even))
    assert [i.place for i in items if isinstance(i, BadRow)] == ["a:1", "a:6"]
    assert rows(items) == [(2, "A", 2), (2, "B", 2), (4, "A", 4)]


def test_twins_of_two_files_are_refused() -> None:
    one, two = source("SPY", [1, 2, 3], 2), source("SPY", [1, 5, 6], 2)
    with pytest.raises(DatasetError, match="both have row 1 of SPY at 1970-01-01T00:00:00"):
        list(merged([one, replace(two, place="other")]))
    apart = source("SPY", [7, 8, 9], 2)
    assert len(rows(list(merged([one, apart])))) == 6


def test_memory_does_not_grow_with_the_files() -> None:
    """Ten days hold no more than two: only the day that is its turn is open."""

    def peak(days: int) -> int:
        def read(day: int) -> Source:
            def blocks(block_bytes: int) -> Iterator[EventBatch | BadRow]:
                for k in range(20):
                    yield batch(
                        "A", list(range(day * 10**6 + k * 2000, day * 10**6 + k * 2000 + 2000)), k * 2000
                    )

            return Source(f"d{day}", day * 10**6, None, blocks)

        tracemalloc.start()
        for _ in merged([read(d) for d in range(days)]):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(10) < peak(2) * 1.5
