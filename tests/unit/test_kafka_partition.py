"""A partition as a member of a Kafka group reads it: nothing left out, nothing twice, whatever a fetch brings."""

from __future__ import annotations

import pytest
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from market_data_core.errors import BusError, BusUnavailable
from market_data_pipeline.streaming.bus import Delivery, Record
from market_data_pipeline.streaming.kafka_marks import Mark
from market_data_pipeline.streaming.kafka_partition import Backlog, PartitionReading
from market_data_pipeline.streaming.kafka_reading import Fetched
from market_data_pipeline.streaming.kafka_records import headers

SECOND = 10**9


def batch(first: int, count: int, lane: str | None = None) -> bytes:
    """A batch as a broker keeps it."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1 << 20,
    )
    for i in range(count):
        builder.append(i, 1000 + i, b"K", b"%d" % (first + i), headers(Record("K", b"", lane)))
    # The offset of its first record is the broker's to write, and no part of the checksum.
    return first.to_bytes(8, "big") + bytes(builder.build())[8:]


def reading(
    first: int, sizes: list[int], *, end: int | None = None, gone: set[int] | None = None
) -> PartitionReading:
    """A partition of batches of these sizes, fetched from ``first`` on."""
    buffer, offset = b"", 0
    for size in sizes:
        buffer += batch(offset, size)
        offset += size
    p = PartitionReading(0, cursor=first, position=first, sought=True, mark=Mark(first, first))
    fetched = Fetched(0, first, buffer, offset if end is None else end, began=7)
    p.cursor = fetched.next
    p.ready.append(Backlog(fetched, gone or ()))
    return p


def drained(p: PartitionReading, count: int) -> list[Delivery]:
    out = []
    while delivery := p.take(count):
        out.append(delivery)
    return out


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=6),
    st.integers(1, 40),
    st.integers(0, 100),
    st.sets(st.integers(0, 100), max_size=20),
)
def test_everything_comes_once_and_in_order(sizes: list[int], count: int, first: int, gone: set[int]) -> None:
    first = min(first, sum(sizes))
    p = reading(first, sizes, gone=gone)
    deliveries = drained(p, count)
    want = [o for o in range(first, sum(sizes)) if o not in gone]
    assert [o for d in deliveries for o in d.offsets] == want
    assert [v for d in deliveries for v in d.values] == [b"%d" % o for o in want]
    assert all(len(d.values) <= count for d in deliveries)
    assert [d.caught_up for d in deliveries] == [False] * (len(deliveries) - 1) + [True] * bool(deliveries)
    assert p.cursor == sum(sizes)
    assert p.mark is not None
    assert (p.mark.done, p.mark.handed) == (first, want[-1] + 1 if want else first)


def test_who_has_not_read_to_the_end_has_not_caught_up() -> None:
    (delivery,) = drained(reading(0, [5], end=6), 10)
    assert not delivery.caught_up
    assert delivery.polled_at == 7


def test_what_was_damaged_is_read_again_from_the_last_delivery() -> None:
    p = reading(0, [3, 3])
    damaged = bytearray(p.ready[0].fetched.buffer)
    damaged[-1] ^= 0xFF
    p.ready.clear()
    p.ready.append(Backlog(Fetched(0, 0, bytes(damaged), 6, began=7), ()))
    first = p.take(2)
    assert first is not None
    assert list(first.offsets) == [0, 1]
    before = p.generation
    with pytest.raises(CorruptRecordException):
        p.take(2)
    assert (p.cursor, p.position, len(p.ready)) == (2, 2, 0)
    assert p.generation > before, "a fetch under way is void"


def test_a_position_before_the_first_record_goes_on_there() -> None:
    p = PartitionReading(0, cursor=3, position=3)
    p.misplaced("t", 10, 20, SECOND)
    assert (p.cursor, p.position) == (10, 10)


def test_a_position_past_the_end_is_told_when_it_stays_so() -> None:
    p = PartitionReading(0, cursor=30, position=30)
    with pytest.raises(BusUnavailable, match="ends at 20"):
        p.misplaced("t", 10, 20, 1 * SECOND)
    with pytest.raises(BusUnavailable):
        p.misplaced("t", 10, 20, 30 * SECOND)
    with pytest.raises(BusError, match="consumer_group") as caught:
        p.misplaced("t", 10, 20, 31 * SECOND)
    assert not caught.value.retriable
