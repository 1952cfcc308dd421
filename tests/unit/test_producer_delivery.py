"""Parcels reach the bus in order, through outages, within bounds. On the memory bus, which can be cut off."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_core.batch import EventBatch
from market_data_core.codecs import EventDecoder
from market_data_core.errors import BusError
from market_data_core.events import StreamEvent
from market_data_core.partitioner import partition_of
from market_data_pipeline.producers.counts import Counts, ProducerObserver, Tally
from market_data_pipeline.producers.delivery import Delivery
from market_data_pipeline.producers.framing import Framer, Parcel
from market_data_pipeline.producers.spool import Spool
from market_data_pipeline.streaming.bus import Record
from market_data_pipeline.streaming.memory_bus import MemoryBus

TOPIC = "t"
_names = itertools.count()


async def soon(seconds: float) -> None:
    """Retries take no time."""
    await asyncio.sleep(0)


def parcel(number: int, partition: int = 0, size: int = 10) -> Parcel:
    return Parcel(partition, [Record("k", str(number).encode().ljust(size))], 1, size)


class Way:
    """A bus that can be cut off, and a delivery to it."""

    def __init__(self, bus: MemoryBus, delivery: Delivery, counts: Counts) -> None:
        self.bus = bus
        self.delivery = delivery
        self.counts = counts

    async def arrived(self, partition: int = 0) -> list[int]:
        return [int(r.value) for r in await self.bus.read(TOPIC, partition, None, 100_000)]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - counts are no events
                await asyncio.sleep(0)


@asynccontextmanager
async def way(
    *, spool: Spool | None = None, memory: int = 1 << 20, partitions: int = 1, bus: MemoryBus | None = None
) -> AsyncIterator[Way]:
    bus = bus or MemoryBus(f"memory://{next(_names)}")
    await bus.ensure_topic(TOPIC, partitions)
    counts = Counts("p", TOPIC)
    tally = Tally(counts, ProducerObserver())
    delivery = Delivery(bus, TOPIC, partitions, tally, spool=spool, memory_bytes=memory, sleep=soon)
    delivery.start()
    try:
        yield Way(bus, delivery, counts)
    finally:
        await delivery.abandon()
        if spool is not None:
            spool.close()


async def test_in_order() -> None:
    async with way() as w:
        for i in range(500):
            assert w.delivery.offer(parcel(i))
        await w.delivery.finish()
        assert await w.arrived() == list(range(500))
        assert (w.counts.published, w.counts.records, w.counts.bytes) == (500, 500, 5000)


async def test_an_outage_goes_through_the_spool_in_order(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, "p", 1 << 20)
    async with way(spool=spool) as w:
        for i in range(300):
            if i == 100:
                await w.until(lambda: w.counts.published == 100)
                w.bus.cut()
            if i == 200:
                await w.until(lambda: len(spool) == 100)
                w.bus.heal()
            assert w.delivery.offer(parcel(i))
        await w.delivery.finish()
        assert await w.arrived() == list(range(300))
        assert w.counts.spooled >= 100
        assert (w.counts.spool_events, len(spool)) == (0, 0)
        assert w.counts.retries > 0


async def test_an_outage_without_a_spool_waits_in_memory() -> None:
    async with way(memory=100) as w:
        w.bus.cut()
        taken = [w.delivery.offer(parcel(i)) for i in range(20)]
        assert taken == [True] * 10 + [False] * 10
        await w.until(lambda: w.counts.retries > 3)
        assert not w.delivery.offer(parcel(99))
        w.bus.heal()
        await w.delivery.room()
        assert w.delivery.offer(parcel(10))
        await w.delivery.finish()
        assert await w.arrived() == list(range(11))


async def test_the_bound_is_memory_and_spool(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, "p", 200)
    async with way(spool=spool, memory=100) as w:
        w.bus.cut()
        w.delivery.offer(parcel(0))
        await w.until(lambda: len(spool) == 1)
        taken = 1
        while w.delivery.offer(parcel(taken)):
            taken += 1
        assert spool.bytes == 200
        assert taken == 30
        w.bus.heal()
        await w.delivery.finish()
        assert await w.arrived() == list(range(30))


@contextmanager
def full(spool: Spool) -> Iterator[None]:
    """A disk that takes no page more than it has, as SQLite sees it."""
    pages = spool._db.execute("PRAGMA page_count").fetchone()[0]
    spool._db.execute(f"PRAGMA max_page_count = {pages}")
    try:
        yield
    finally:
        spool._db.execute("PRAGMA max_page_count = 1000000")


@pytest.mark.parametrize("freed", [False, True])
async def test_on_a_full_disk_memory_holds_what_it_may_and_nothing_is_lost(
    tmp_path: Path, freed: bool
) -> None:
    big = 3000
    spool = Spool.open(tmp_path, "p", 1 << 30)
    async with way(spool=spool, memory=10 * big) as w:
        w.bus.cut()
        for number in range(3):
            assert w.delivery.offer(parcel(number, size=big))
        await w.until(lambda: len(spool) == 3)
        taken = 3
        with full(spool):
            while w.delivery.offer(parcel(taken, size=big)):
                taken += 1
            assert 10 < taken < 20, "it says no instead of growing"
            if not freed:
                w.bus.heal()
                await w.delivery.finish()
                assert await w.arrived() == list(range(taken))
        if freed:
            for number in range(taken, 50):
                await w.until(partial(w.delivery.offer, parcel(number, size=big)))
            assert len(spool) > 30, "the disk is used again"
            w.bus.heal()
            await w.delivery.finish()
            assert await w.arrived() == list(range(50))
    assert not list(tmp_path.glob("*.sqlite"))


async def test_an_outage_that_begins_on_a_full_disk_uses_it_once_it_has_room(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, "p", 1 << 30)
    async with way(spool=spool, memory=1 << 20) as w:
        with full(spool):
            w.bus.cut()
            for number in range(5):
                assert w.delivery.offer(parcel(number, size=5000))
            await w.until(lambda: w.delivery._full)
            assert len(spool) == 0
        await w.until(lambda: len(spool) == 5)
        w.bus.heal()
        await w.delivery.finish()
        assert await w.arrived() == list(range(5))


async def test_what_a_full_disk_does_not_take_at_the_end_is_counted(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, "p", 1 << 30)
    async with way(spool=spool, memory=1 << 20) as w:
        with full(spool):
            w.bus.cut()
            w.delivery.offer(parcel(0, size=50_000))
            await w.until(lambda: w.delivery._full)
            assert await w.delivery.abandon() == 1


@settings(max_examples=80, deadline=None)
@given(
    steps=st.lists(
        st.one_of(st.integers(1, 20), st.sampled_from(["cut", "heal", "turn", "turn"])), max_size=40
    ),
    partitions=st.integers(1, 3),
    spooling=st.booleans(),
    memory=st.sampled_from([30, 100, 10_000]),
    disk=st.sampled_from([5, 10, 200, 100_000]),
)
async def test_nothing_is_lost_and_order_is_kept(
    tmp_path_factory: pytest.TempPathFactory,
    steps: Sequence[int | str],
    partitions: int,
    spooling: bool,
    memory: int,
    disk: int,
) -> None:
    spool = Spool.open(tmp_path_factory.mktemp("s"), "p", disk) if spooling else None
    numbers = itertools.count()
    sent: list[int] = []
    async with way(spool=spool, memory=memory, partitions=partitions) as w:
        for step in steps:
            if step == "cut":
                w.bus.cut()
            elif step == "heal":
                w.bus.heal()
            elif isinstance(step, str):
                for _ in range(8):
                    await asyncio.sleep(0)
            else:
                for _ in range(step):
                    number = next(numbers)
                    if w.delivery.offer(parcel(number, number % partitions)):
                        sent.append(number)
            if spool is not None:
                assert spool.bytes <= disk
        w.bus.heal()
        await w.delivery.finish()
        for partition in range(partitions):
            assert await w.arrived(partition) == [n for n in sent if n % partitions == partition]
        assert w.counts.published == len(sent)


async def test_what_is_left_at_the_end_is_for_the_next_start(tmp_path: Path) -> None:
    bus = MemoryBus(f"memory://{next(_names)}")
    other = MemoryBus(f"memory://{next(_names)}")
    async with way(spool=Spool.open(tmp_path, "p", 1 << 20), bus=other) as w:
        w.bus.cut()
        for i in range(50):
            w.delivery.offer(parcel(i))
        assert await w.delivery.abandon() == 0
    async with way(spool=Spool.open(tmp_path, "p", 1 << 20), bus=bus) as w:
        for i in range(50, 60):
            w.delivery.offer(parcel(i))
        await w.delivery.finish()
        assert await w.arrived() == list(range(60)), "what was left goes first"


async def test_what_has_no_place_at_the_end_is_counted(tmp_path: Path) -> None:
    async with way(spool=Spool.open(tmp_path, "p", 30), memory=50) as w:
        w.bus.cut()
        taken = sum(w.delivery.offer(parcel(i)) for i in range(100))
        assert await w.delivery.abandon() == taken - 3
    async with way(memory=50) as w:
        w.bus.cut()
        taken = sum(w.delivery.offer(parcel(i)) for i in range(100))
        assert await w.delivery.abandon() == taken == 5


class Refusing(MemoryBus):
    """A bus that refuses for good, as one does whose rights were taken away."""

    async def publish(self, topic: str, records: Sequence[Record], *, partition: int | None = None) -> None:
        raise BusError("no rights to write")


async def test_a_refusal_ends_the_delivery_and_keeps_what_it_had(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, "p", 1 << 20)
    async with way(spool=spool, bus=Refusing(f"memory://{next(_names)}")) as w:
        for i in range(5):
            w.delivery.offer(parcel(i))
        with pytest.raises(BusError, match="no rights"):
            await w.delivery.finish()
        with pytest.raises(BusError, match="no rights"):
            w.delivery.offer(parcel(5))
        assert await w.delivery.abandon() == 0
        assert len(spool) == 5


@pytest.mark.parametrize("codec", ["frame", "json"])
async def test_a_spool_of_a_topic_cut_differently(tmp_path: Path, codec: str) -> None:
    """What was framed for two partitions goes to the right ones of five."""
    events = [
        StreamEvent("p", f"S{i % 13}", "tick", "1s", i, 1, 1.0, 1.0, 1.0, 1.0, 1.0, i) for i in range(200)
    ]
    spool = Spool.open(tmp_path, "p", 1 << 20)
    spool.append(2, Framer(2, codec).parcels(EventBatch.from_events(events)))  # type: ignore[arg-type]
    async with way(spool=spool, partitions=5) as w:
        await w.delivery.finish()
        got: list[StreamEvent] = []
        for partition in range(5):
            records = await w.bus.read(TOPIC, partition, None, 1000)
            batch = EventDecoder().decode([r.value for r in records]).batch.events()
            assert {partition_of(e.symbol, 5) for e in batch} <= {partition}
            got += batch
        assert sorted(e.seq for e in got) == list(range(200))
        assert len(spool) == 0
