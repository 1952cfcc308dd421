"""Names of partitions, and how they spread over members."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_core.errors import BusError
from market_data_core.partitioner import partition_of
from market_data_pipeline.streaming.bus import Record
from market_data_pipeline.streaming.partitions import (
    MAX_PARTITIONS,
    check_clash,
    check_partitions,
    check_topic,
    grouped,
    preference,
    quota,
    stream_of,
)

members = st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=40)
counts = st.integers(1, 300)


def test_a_single_partition_is_the_stream_of_the_topics_own_name() -> None:
    assert stream_of("mdp.events", 0, 1) == "mdp.events"
    assert [stream_of("mdp.events", p, 3) for p in range(3)] == [
        "mdp.events.0",
        "mdp.events.1",
        "mdp.events.2",
    ]


@given(members, counts)
def test_quotas_add_up_and_differ_by_one_at_most(names: set[str], partitions: int) -> None:
    quotas = [quota(names, name, partitions) for name in names]
    assert sum(quotas) == partitions
    assert max(quotas) - min(quotas) <= 1


@given(members, counts)
def test_members_prefer_all_partitions_each_once_and_begin_apart(names: set[str], partitions: int) -> None:
    orders = [preference(names, name, partitions) for name in names]
    assert all(sorted(order) == list(range(partitions)) for order in orders)
    if len(names) <= partitions:
        assert len({order[0] for order in orders}) == len(names)


def test_preferences_taken_in_full_leave_nothing_over() -> None:
    names = {"a", "b", "c"}
    wanted = [p for name in names for p in preference(names, name, 7)[: quota(names, name, 7)]]
    assert len(wanted) == 7


@given(st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=3)), max_size=60), st.integers(1, 9))
def test_records_are_grouped_by_key_in_order(pairs: list[tuple[str, bytes]], partitions: int) -> None:
    records = [Record(key, value) for key, value in pairs]
    groups = grouped(records, partitions, None)
    assert sorted(map(id, (r for some in groups.values() for r in some))) == sorted(map(id, records))
    for partition, some in groups.items():
        assert some
        assert {partition_of(r.key, partitions) for r in some} == {partition}
        assert list(some) == [r for r in records if partition_of(r.key, partitions) == partition]


def test_a_named_partition_takes_all() -> None:
    records = [Record(str(i), b"") for i in range(5)]
    assert grouped(records, 4, 3) == {3: records}
    assert grouped([], 4, 3) == {}
    for wrong in (-1, 4):
        with pytest.raises(BusError, match=f"no partition {wrong}: the topic has 4"):
            grouped(records, 4, wrong)


@pytest.mark.parametrize("topic", ["mdp.events", "a", "A_b-9.dlq", "x" * 249])
def test_topics_every_driver_takes(topic: str) -> None:
    assert check_topic(topic) == topic


@pytest.mark.parametrize("topic", ["", ".", "..", "a\n", "a b", "{a}", "a:b", "ä", "x" * 250])
def test_topics_some_driver_refuses(topic: str) -> None:
    with pytest.raises(BusError, match="cannot be a topic"):
        check_topic(topic)


def test_numbers_of_partitions() -> None:
    assert check_partitions("t", MAX_PARTITIONS) == MAX_PARTITIONS
    for wrong in (0, -3, MAX_PARTITIONS + 1):
        with pytest.raises(BusError, match=f"cannot have {wrong} partitions: use 1 to"):
            check_partitions("t", wrong)


def test_topics_that_would_share_a_stream() -> None:
    check_clash("a", 4, [("a", 4), ("b", 2), ("a.4", 1), ("a.dlq", 1)])
    with pytest.raises(BusError, match=r"share the stream a\.1"):
        check_clash("a.1", 1, [("a", 2)])
    with pytest.raises(BusError, match=r"share the stream a\.1"):
        check_clash("a", 2, [("a.1", 1)])
