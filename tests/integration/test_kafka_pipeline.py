"""The whole way on Kafka: events in records and in frames, a consumer cut off, brokers killed; bars as recounted."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from market_data_core.batch import EventBatch
from market_data_core.codecs import DeadLetter, decode_bars
from market_data_core.errors import BusUnavailable
from market_data_core.events import Bar, StreamEvent
from market_data_core.frames import encode_frame
from market_data_core.partitioner import partition_of
from market_data_pipeline.consumers.stats import RunStats
from market_data_pipeline.streaming.bus import Bus, Record
from market_data_pipeline.streaming.dead_letters import DeadLetters, Which
from market_data_pipeline.streaming.drivers import open_bus
from market_data_pipeline.streaming.kafka_address import Address
from market_data_pipeline.streaming.kafka_link import KafkaLink
from market_data_store import StoreClient
from tests.integration.pipeline import (
    SETTINGS,
    TOPIC,
    assert_equal,
    drain,
    publish,
    running,
    stored,
    tick,
    until,
)
from tests.oracle import Key, recount
from tests.servers.kafka import KafkaCluster, KafkaServer, running_cluster
from tests.servers.kafka import running as kafka_running

WINDOW = SETTINGS.windows.window_ns
PARTITIONS = 3


@pytest.fixture(scope="module")
def server() -> Iterator[KafkaServer]:
    yield from kafka_running()


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    yield from running_cluster()


@pytest.fixture
async def bus(server: KafkaServer) -> AsyncIterator[Bus]:
    async with open_bus("kafka", server.bootstrap) as bus:
        yield bus


def events_of(count: int, *, first: int = 0) -> list[StreamEvent]:
    symbols = ("SPY", "AAPL", "MSFT", "TSLA", "株式")
    numbers = range(first, first + count)
    return [tick(s, i * 40, 100 + i % 7, 1 + i % 5, i) for i in numbers for s in symbols]


async def publish_frames(bus: Bus, events: list[StreamEvent]) -> None:
    """As the producer does: frames of one partition each, of the events in their order."""
    for partition in range(PARTITIONS):
        mine = [e for e in events if partition_of(e.symbol, PARTITIONS) == partition]
        for start in range(0, len(mine), 70):
            frame = encode_frame(EventBatch.from_events(mine[start : start + 70]))
            await bus.publish(TOPIC, [Record(mine[start].symbol, frame)], partition=partition)


async def publish_mixed(bus: Bus, events: list[StreamEvent], rng: random.Random) -> None:
    """In pieces, each as records or as frames, some of them twice."""
    start = 0
    while start < len(events):
        piece = events[start : start + rng.randint(20, 150)]
        start += len(piece)
        for _ in range(rng.choice((1, 1, 2))):
            await (publish(bus, piece) if rng.random() < 0.5 else publish_frames(bus, piece))


async def published_bars(bus: Bus) -> dict[Key, Bar]:
    """The newest revision of each bar on the bars topic."""
    newest: dict[Key, Bar] = {}
    for partition in range(await bus.partitions("t.bars")):
        for record in await bus.read("t.bars", partition, None, 10_000):
            for bar in decode_bars(record.value).bars():
                key = (bar.provider, bar.symbol, bar.ts)
                if key not in newest or bar.revision > newest[key].revision:
                    newest[key] = bar
    return newest


async def test_a_killed_consumer_and_a_killed_broker_change_no_bar(
    server: KafkaServer, bus: Bus, store: StoreClient
) -> None:
    rng = random.Random(7)
    events = events_of(400)
    want = recount(events, WINDOW)
    await bus.ensure_topic(TOPIC, PARTITIONS)
    third = len(events) // 3 + 50
    await publish_mixed(bus, events[:third], rng)
    stats = RunStats()

    async def some_stored() -> bool:
        return stats.stored >= 10

    async with running(bus, store, stats):
        await until(some_stored)
    # Cut off in the middle of windows. The next one has the broker killed under it.
    assert 0 < len(await stored(store)) < len(want)
    await publish_mixed(bus, events[third : 2 * third], rng)
    stats = RunStats()
    async with running(bus, store, stats):
        await until(some_stored)
        await asyncio.to_thread(server.kill9)
        await asyncio.to_thread(server.start)
        await publish_through(bus, events[2 * third :])
        before = stats.stored

        async def going_on() -> bool:
            return stats.stored > before

        await until(going_on)
    await drain(bus, store)
    bars = await stored(store)
    assert_equal(bars, want)
    assert {b.revision for b in bars.values()} == {1}, "no window was stored in parts"
    assert await published_bars(bus) == bars
    (status,) = await bus.status([TOPIC])
    assert [(p.lag, p.pending) for g in status.groups for p in g.partitions] == [(0, 0)] * PARTITIONS


async def test_one_of_three_brokers_dies_and_nothing_is_missed(
    cluster: KafkaCluster, store: StoreClient
) -> None:
    events = events_of(200)
    half = len(events) // 2
    async with open_bus("kafka", cluster.bootstrap) as bus:
        assert await bus.ensure_topic(TOPIC, PARTITIONS) == PARTITIONS
        assert "3 replicas" in (await bus.ping())["durability"]
        await publish(bus, events[:half])
        stats = RunStats()

        async def some_stored() -> bool:
            return stats.stored >= 5

        async with running(bus, store, stats):
            await until(some_stored)
            cluster.brokers[0].kill9()
            # With two of them everything goes on: the outage lasts until the brokers miss the third.
            await publish_through(bus, events[half:])

            async def all_stored() -> bool:
                return len(await stored(store)) == len(recount(events, WINDOW))

            await until(all_stored, seconds=60)
        assert_equal(await stored(store), recount(events, WINDOW))


async def test_a_cancellation_meets_who_closes_and_not_what_is_closed(server: KafkaServer) -> None:
    link = KafkaLink(Address.parse(server.bootstrap))
    await link.brokers()
    closing = asyncio.create_task(link.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await link.close()


async def test_groups_of_every_broker_are_told_and_trimmed_by(cluster: KafkaCluster) -> None:
    """Each broker coordinates some groups; whoever misses one of them trims what it has not read."""
    groups = [f"group-{i}" for i in range(12)]
    async with open_bus("kafka", cluster.bootstrap) as bus:
        await bus.ensure_topic("grouped", 1)
        await bus.publish("grouped", [Record("k", str(i).encode()) for i in range(10)], partition=0)
        offsets = [record.offset for record in await bus.read("grouped", 0, None, 10)]
        for number, group in enumerate(groups):
            async with bus.consumer("grouped", group, "a") as member:
                while not (await member.poll(0.5)).assigned:
                    pass
                await member.seek(0, None)
                await member.ack(0, offsets[2 + number % 3])
        (status,) = await bus.status(["grouped"])
        assert [g.group for g in status.groups] == sorted(groups)
        assert {g.partitions[0].lag for g in status.groups} == {7, 6, 5}
        trimmed = await bus.trim("grouped", retention_ms=0, max_records=1000)
        assert (trimmed.expired, trimmed.forced) == (3, 0)


async def publish_through(bus: Bus, events: list[StreamEvent]) -> None:
    """Until it works, as a producer does."""

    async def done() -> bool:
        try:
            await publish(bus, events)
        except BusUnavailable:
            return False
        return True

    await until(done, seconds=30)


async def test_dead_letters_are_requeued_and_purged_one_by_one(server: KafkaServer, bus: Bus) -> None:
    topic = "letters.events"
    await bus.ensure_topic(topic, 2)
    letters = DeadLetters(bus, topic)
    made = [DeadLetter(f"bad {i % 2}", topic, 1, str(i), "K", None, b"%d" % i, i) for i in range(6)]
    await letters.put([*made, made[3]])
    found = await letters.letters()
    assert [b.letter for b in found] == made
    assert await letters.requeue(Which(ids=[found[3].id])) == 1
    assert [r.value for r in await bus.read(topic, 1, None, 10)] == [b"3"]
    assert [b.letter.value for b in await letters.letters()] == [b"0", b"1", b"2", b"4", b"5"]
    assert await letters.purge(Which(reason="bad 0")) == 3
    assert await letters.reasons() == {"bad 1": 2}
    # Another process sees the same, and what lies before the first letter is gone for good.
    async with open_bus("kafka", server.bootstrap) as other:
        assert [b.letter.value for b in await DeadLetters(other, topic).letters()] == [b"1", b"5"]
        (status,) = await other.status([letters.topic])
        assert status.records == 6
    assert await letters.purge(Which()) == 2
    (status,) = await bus.status([letters.topic])
    assert status.records == 0
    await letters.put(made[:1])
    assert [b.letter for b in await letters.letters()] == made[:1]


async def test_a_broker_that_has_just_come_back_trims_nothing_unread(server: KafkaServer, bus: Bus) -> None:
    """It lists no group until it has read them, and says so to nobody."""
    topic = "unread.events"
    await bus.ensure_topic(topic, 1)
    await bus.publish(topic, [Record("K", b"%d" % i) for i in range(100)])
    for group in ("one", "two", "three", "four"):
        async with bus.consumer(topic, group, "m") as member:
            while not (await member.poll(0.5)).assigned:
                pass
            await member.seek(0, None)
            await member.ack(0, 9)
    for _ in range(2):
        await asyncio.to_thread(server.kill9)
        await asyncio.to_thread(server.start)
        trimmed = 0

        async def trimming() -> bool:
            nonlocal trimmed
            try:
                await bus.trim(topic, retention_ms=0, max_records=10_000)
            except BusUnavailable:
                return False
            trimmed += 1
            return trimmed == 20

        await until(trimming)
        assert [r.value for r in await bus.read(topic, 0, None, 1)] == [b"10"]


@pytest.mark.parametrize(
    ("compression", "codec"), [("none", 0), ("gzip", 1), ("snappy", 2), ("lz4", 3), ("zstd", 4), ("", 4)]
)
async def test_batches_are_compressed_as_configured(
    server: KafkaServer, bus: Bus, compression: str, codec: int
) -> None:
    topic = f"pressed.{compression}"
    query = f"?compression={compression}" if compression else ""
    some = [Record("K", b'{"number": %d}' % number) for number in range(1000)]
    async with open_bus("kafka", f"kafka://{server.bootstrap}{query}") as publishing:
        await publishing.ensure_topic(topic, 1)
        await publishing.publish(topic, some)
    assert [r.value for r in await bus.read(topic, 0, None, 2000)] == [r.value for r in some]
    # Of a batch: offset, length, epoch, version and checksum (21 bytes), then its attributes.
    assert server.stored(topic, 0)[22] & 0b111 == codec


async def test_publishing_gives_up_on_a_broker_that_does_not_answer(server: KafkaServer, bus: Bus) -> None:
    """So that a producer spools, and does not wait for ever. What it then sends again may be there twice."""
    topic = "frozen.events"
    await bus.ensure_topic(topic, 2)
    await bus.publish(topic, [Record("K", b"0")], partition=0)
    server.freeze()
    try:
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(BusUnavailable):
                await bus.publish(topic, [Record("K", b"1")], partition=0)
            assert time.monotonic() - began < 30
    finally:
        server.thaw()

    async def published() -> bool:
        try:
            await bus.publish(topic, [Record("K", b"1")], partition=0)
        except BusUnavailable:
            return False
        return True

    await until(published)
    values = [r.value for r in await bus.read(topic, 0, None, 10)]
    assert values[0] == b"0"
    assert set(values[1:]) == {b"1"}
