"""The partition of Kafka's topic of groups in which a group is kept."""

from __future__ import annotations

import pytest

from market_data_pipeline.streaming.kafka_groups import group_partition

# As Kafka 4.1 itself works them out: of 3 partitions, and of 50.
KAFKA = {
    "": (0, 0),
    "a": (1, 47),
    "hello": (1, 22),
    "株": (2, 16),
    "mdp": (0, 11),
    "mdp-micro-batch": (2, 39),  # a negative hash, as the next three
    "mdp-probe-0": (0, 43),
    "mdp-probe-1": (2, 42),
    "mdp-probe-2": (1, 41),
    "polygenelubricants": (0, 0),  # the one hash without an absolute value
}


@pytest.mark.parametrize("name", KAFKA)
def test_it_is_found_as_kafka_finds_it(name: str) -> None:
    assert (group_partition(name, 3), group_partition(name, 50)) == KAFKA[name]
    assert group_partition(name, 1) == 0
