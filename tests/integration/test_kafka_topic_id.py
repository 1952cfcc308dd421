"""A topic of Kafka that is deleted and made anew begins at offset 0 again, where no position from before counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from market_data_core.errors import BusError, BusUnavailable, ConfigError
from market_data_core.events import StreamEvent
from market_data_pipeline.consumers.stats import RunStats
from market_data_pipeline.streaming.bus import Bus, Record
from market_data_pipeline.streaming.drivers import open_bus
from market_data_store import StoreClient
from tests.integration.pipeline import (
    SETTINGS,
    TOPIC,
    assert_equal,
    batcher,
    drain,
    publish,
    stored,
    tick,
    until,
)
from tests.oracle import recount
from tests.servers.kafka import KafkaServer, delete_topics
from tests.servers.kafka import running as kafka_running


@pytest.fixture(scope="module")
def server() -> Iterator[KafkaServer]:
    yield from kafka_running()


@pytest.fixture
async def bus(server: KafkaServer) -> AsyncIterator[Bus]:
    await delete_topics(server)
    async with open_bus("kafka", server.bootstrap) as bus:
        yield bus


def events(first: int, count: int) -> list[StreamEvent]:
    return [tick("SPY", i * 40, 100 + i % 7, 1 + i % 5, i) for i in range(first, first + count)]


async def made_anew(server: KafkaServer, topic: str = TOPIC) -> None:
    """By somebody else, at once."""
    async with open_bus("kafka", server.bootstrap) as other:
        before = await other.topic_id(topic)
        await delete_topics(server)
        await other.ensure_topic(topic, 1)
        assert await other.topic_id(topic) != before


async def test_the_id_is_that_of_the_broker(server: KafkaServer, bus: Bus) -> None:
    with pytest.raises(BusUnavailable, match="topic some is not known in Kafka at"):
        await bus.topic_id("some")
    await bus.ensure_topic("some", 2)
    await bus.publish("some", [Record("K", b"1")], partition=0)
    assert await bus.topic_id("some") == server.topic_id("some", 0)
    async with open_bus("kafka", server.bootstrap) as other:
        assert await other.topic_id("some") == server.topic_id("some", 0)


async def test_positions_of_the_topic_before_are_not_used(
    server: KafkaServer, bus: Bus, store: StoreClient
) -> None:
    await bus.ensure_topic(TOPIC, 1)
    await publish(bus, events(0, 200))
    await drain(bus, store)
    before = await stored(store)
    await made_anew(server)
    async with open_bus("kafka", server.bootstrap) as again:
        # More than were read of the one before: by its offset alone the position would do.
        new = events(1000, 500)
        await publish(again, new)
        with pytest.raises(
            ConfigError, match=r"another topic t\.events .*take another bus\.redis\.consumer_group"
        ):
            await drain(again, store)
        assert await stored(store) == before
        await drain(again, store, group="another")
    assert_equal(await stored(store), recount([*events(0, 200), *new], SETTINGS.windows.window_ns))


async def test_positions_from_before_ids_were_kept_are_used(bus: Bus, store: StoreClient) -> None:
    await bus.ensure_topic(TOPIC, 1)
    await publish(bus, events(0, 200))
    await drain(bus, store)
    async with store.session() as connection:
        await connection.execute("UPDATE stream_claims SET topic_id = ''")
    await publish(bus, events(200, 100))
    await drain(bus, store)
    assert_equal(await stored(store), recount(events(0, 300), SETTINGS.windows.window_ns))
    (claim,) = await store.claims(TOPIC)
    assert claim.topic_id == await bus.topic_id(TOPIC)


async def test_who_pauses_while_it_is_made_anew_is_told(server: KafkaServer, bus: Bus) -> None:
    await bus.ensure_topic(TOPIC, 1)
    await publish(bus, events(0, 10))
    async with bus.consumer(TOPIC, "g", "m") as member:

        async def read() -> bool:
            poll = await member.poll(0.1)
            for partition in poll.assigned:
                await member.seek(partition, None)
            return bool(poll.deliveries)

        await until(read)
        member.pause(0)
        await member.poll(1.5)
        await made_anew(server)
        async with open_bus("kafka", server.bootstrap) as other:
            await publish(other, events(1000, 100))
        member.resume(0)
        with pytest.raises(BusError, match=r"made anew while it was read"):
            await until(read, seconds=5)


async def test_who_reads_while_it_is_made_anew_ends(
    server: KafkaServer, bus: Bus, store: StoreClient
) -> None:
    await bus.ensure_topic(TOPIC, 1)
    await publish(bus, events(0, 200))
    stats = RunStats()
    reading = asyncio.create_task(batcher(bus, store, stats).run(asyncio.Event()))

    async def some_stored() -> bool:
        return stats.stored > 0

    try:
        await until(some_stored)
        await made_anew(server)
        async with open_bus("kafka", server.bootstrap) as other:
            await publish(other, events(1000, 500))
        with pytest.raises((BusError, ConfigError), match=r"take another bus\.redis\.consumer_group"):
            await asyncio.wait_for(reading, 30)
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    bars = await stored(store)
    want = recount(events(0, 200), SETTINGS.windows.window_ns)
    assert_equal(bars, {key: want[key] for key in bars})
