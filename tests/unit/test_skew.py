"""Which partitions are hot, by the records and by the lag."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.streaming.bus import GroupPartition, GroupStatus, TopicStatus
from market_data_pipeline.streaming.skew import hot, remarks, shares

AMOUNTS = st.lists(st.integers(0, 10**9), max_size=40)


@given(AMOUNTS)
def test_shares_add_up(amounts: list[int]) -> None:
    assert sum(shares(amounts)) == pytest.approx(1.0 if sum(amounts) else 0.0)


@given(AMOUNTS)
def test_the_hottest_comes_first_and_an_even_share_is_not_hot(amounts: list[int]) -> None:
    found = hot(amounts)
    assert [amounts[p] for p in found] == sorted((amounts[p] for p in found), reverse=True)
    assert all(amounts[p] * len(amounts) > sum(amounts) for p in found)


@pytest.mark.parametrize(
    ("amounts", "places"),
    [
        ([], []),
        ([1000], []),
        ([500, 500], []),
        ([800, 200], [0]),
        ([700, 300], []),
        ([100, 100, 100, 700], [3]),
        ([24, 25, 26, 25], []),
        ([0, 0, 0, 99], []),
        ([0, 0, 0, 100], [3]),
        ([300, 0, 400, 0, 0, 0, 0, 0], [2, 0]),
    ],
)
def test_examples(amounts: list[int], places: list[int]) -> None:
    assert hot(amounts) == places


def test_a_hot_partition_is_named_by_records_and_by_lag() -> None:
    lags = [5, 1000, 5, 5]
    parts = [GroupPartition(p, "w", lag, 10, 0, 0) for p, lag in enumerate(lags)]
    status = TopicStatus("t", 4, 1000, [GroupStatus("g", ["w"], parts)], [100, 700, 100, 100])
    assert list(remarks(status)) == [
        "partition 1 of t is hot: 70 % of the records, where 25 % would be even",
        "partition 1 of t is hot: 99 % of the lag of group g, where 25 % would be even",
    ]
