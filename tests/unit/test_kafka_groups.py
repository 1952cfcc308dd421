"""The partition of Kafka's topic of groups in which a group is kept."""

from __future__ import annotations

import pytest

from market_data_pipeline.streaming.kafka_groups import group_partition

# java.lang.String.hashCode
JAVA = {"": 0, "a": 97, "hello": 99162322, "株": 26666, "polygenelubricants": -(1 << 31)}


@pytest.mark.parametrize("name", JAVA)
def test_it_is_found_by_the_hash_of_java(name: str) -> None:
    hashed = JAVA[name]
    for partitions in (1, 3, 50):
        assert group_partition(name, partitions) == (hashed & 0x7FFFFFFF) % partitions
