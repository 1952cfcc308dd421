"""The partition of a key is Kafka's: its published vectors, and the implementation of a Kafka client."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_core.partitioner import murmur2, partition_of

# org.apache.kafka.common.utils.UtilsTest.testMurmur2
KAFKA = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize("data", KAFKA)
def test_the_vectors_of_kafka(data: bytes) -> None:
    assert murmur2(data) == KAFKA[data] & 0xFFFFFFFF


@given(st.binary(max_size=100))
def test_a_kafka_client_hashes_alike(data: bytes) -> None:
    aiokafka = pytest.importorskip("aiokafka.partitioner", reason="aiokafka comes with the extra kafka")
    assert murmur2(data) == aiokafka.murmur2(data) & 0xFFFFFFFF


@given(st.text(max_size=40), st.integers(2, 500))
def test_a_kafka_client_chooses_the_same_partition(key: str, partitions: int) -> None:
    aiokafka = pytest.importorskip("aiokafka.partitioner", reason="aiokafka comes with the extra kafka")
    numbers = list(range(partitions))
    assert partition_of(key, partitions) == aiokafka.DefaultPartitioner()(key.encode(), numbers, numbers)


def test_symbols_spread_over_all_partitions() -> None:
    counts = [0] * 8
    for i in range(8000):
        counts[partition_of(f"SYM{i}", 8)] += 1
    assert min(counts) > 850
    assert max(counts) < 1150


def test_one_partition_takes_every_key() -> None:
    assert {partition_of(str(i), 1) for i in range(100)} == {0}
