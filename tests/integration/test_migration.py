"""From Redis to Kafka and back in the middle of a window: bars and signals as recounted over all, and nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace

import pytest

from market_data_core.clock import SystemClock
from market_data_core.codecs import DeadLetter, decode_bars
from market_data_core.errors import BusError, BusUnavailable, ConfigError, StoreUnavailable
from market_data_core.events import StreamEvent
from market_data_pipeline.consumers.migration import Migration
from market_data_pipeline.consumers.moving import Moved
from market_data_pipeline.consumers.repartitioning import Repartitioning
from market_data_pipeline.consumers.stats import RunStats
from market_data_pipeline.streaming.bus import Bus, Record
from market_data_pipeline.streaming.dead_letters import DeadLetters
from market_data_pipeline.streaming.drivers import open_bus
from market_data_pipeline.streaming.kafka_bus import KafkaBus
from market_data_store import StoreClient
from tests.integration.pipeline import SECOND, SETTINGS, TOPIC, batcher, drain, publish, running, until
from tests.integration.signals_pipeline import BARS, SIGNALS, infer
from tests.integration.test_repartition import DyingStore
from tests.integration.walk import assert_recounted, seed_rules, walk
from tests.servers.kafka import KafkaServer, delete_topics
from tests.servers.kafka import running as kafka_running
from tests.servers.redis import RedisServer
from tests.servers.redis import running as redis_running

# 84 seconds, and each cut is in the middle of a window of two.
EVENTS = walk(840)
TO_KAFKA, TO_REDIS = 285, 571


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    yield from redis_running("7")


@pytest.fixture(scope="module")
def kafka_server() -> Iterator[KafkaServer]:
    yield from kafka_running()


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Bus]:
    with redis_server.client() as client:
        client.flushall()
    async with open_bus("redis", redis_server.uri) as bus:
        for topic in (TOPIC, BARS, SIGNALS):
            await bus.ensure_topic(topic, 2)
        yield bus


@pytest.fixture
async def kafka(kafka_server: KafkaServer) -> AsyncIterator[Bus]:
    """Without topics."""
    async with open_bus("kafka", kafka_server.bootstrap) as bus:
        yield bus
    await delete_topics(kafka_server)


def migration(source: Bus, target: Bus, store: StoreClient) -> Migration:
    topics = [TOPIC, BARS, SIGNALS]
    return Migration(source, target, store, topics, bars_topic=BARS, keep_ms=60_000, settle_s=0.05)


async def migrate(source: Bus, target: Bus, store: StoreClient) -> dict[str, Moved]:
    return {m.topic: m for m in await migration(source, target, store).run()}


async def work(bus: Bus, store: StoreClient, events: Sequence[StreamEvent]) -> RunStats:
    """Everything of ``events`` becomes bars, and these signals, and every window is closed."""
    await publish(bus, list(events))
    stats = await drain(bus, store)
    await infer(bus, store, seed_rules())
    return stats


async def bars_on(bus: Bus) -> int:
    """How many bars are on the topic of bars."""
    found = [await bus.read(BARS, p, None, 1000) for p in range(await bus.partitions(BARS))]
    return sum(len(decode_bars(record.value)) for records in found for record in records)


async def test_a_topic_that_was_made_anew_does_not_move(
    redis: Bus, kafka: Bus, kafka_server: KafkaServer, store: StoreClient
) -> None:
    await kafka.ensure_topic(TOPIC, 2)
    await work(kafka, store, EVENTS[:TO_KAFKA])
    before = await store.claims(TOPIC)
    await delete_topics(kafka_server, [TOPIC])
    async with open_bus("kafka", kafka_server.bootstrap) as again:
        await again.ensure_topic(TOPIC, 2)
        await publish(again, EVENTS[:TO_KAFKA])
        with pytest.raises(ConfigError, match=r"another topic t\.events"):
            await migrate(again, redis, store)
    assert await store.claims(TOPIC) == before


async def test_there_and_back(redis: Bus, kafka: Bus, store: StoreClient) -> None:
    partitions = await kafka.ensure_topic(TOPIC, 4)
    await work(redis, store, EVENTS[:TO_KAFKA])
    held = [row.value for claim in await store.claims(TOPIC) for row in claim.outbox]
    there = await migrate(redis, kafka, store)
    assert {name: (m.before, m.after, m.groups) for name, m in there.items()} == {
        TOPIC: (2, partitions, ["g"]),
        BARS: (2, partitions, ["i"]),
    }
    # What the last flushes may not have published was published where it is read next.
    assert sum(map(len, map(decode_bars, held))) == await bars_on(kafka) > 0
    assert not [row for claim in await store.claims(TOPIC) for row in claim.outbox]
    # A producer that was not sure sends its last events again: what was counted must not count twice.
    stats = await work(kafka, store, EVENTS[TO_KAFKA - 60 : TO_REDIS])
    assert (stats.counts.duplicate, stats.dead_lettered) == (60, 0)
    back = await migrate(kafka, redis, store)
    assert {m.after for m in back.values()} == {2}
    # Of both buses before: the ids went along twice.
    stats = await work(redis, store, [*EVENTS[:40], *EVENTS[TO_REDIS - 60 :]])
    # The sixty that were copies on Kafka were carried over with the rest, and are met again.
    assert (stats.counts.duplicate, stats.dead_lettered) == (160, 0)
    assert stats.amended > 0  # the windows of the cut
    assert await assert_recounted(store, EVENTS) > 100
    assert await migrate(kafka, redis, store) == {}


async def test_a_copy_that_is_older_than_ids_are_remembered(
    redis: Bus, kafka: Bus, store: StoreClient
) -> None:
    windows = replace(SETTINGS.windows, dedupe_horizon_ns=20 * SECOND)
    batching = replace(SETTINGS, windows=windows)
    await publish(redis, EVENTS[:TO_KAFKA])
    await drain(redis, store, batching)
    await infer(redis, store, seed_rules())
    await migrate(redis, kafka, store)
    # Of 28.5 seconds the first are beyond the horizon of twenty.
    await publish(kafka, [*EVENTS[:50], *EVENTS[150:]])
    stats = await drain(kafka, store, batching)
    await infer(kafka, store, seed_rules())
    assert (stats.counts.duplicate, stats.dead_lettered) == (TO_KAFKA - 150, 50)
    await assert_recounted(store, EVENTS)


class DyingKafka(KafkaBus):
    """Cut off when some of what must be remembered is copied."""

    left = 3

    async def publish(self, topic: str, records: Sequence[Record], *, partition: int | None = None) -> None:
        self.left -= 1
        if self.left < 0:
            raise BusUnavailable("cut off")
        await super().publish(topic, records, partition=partition)


@pytest.mark.parametrize("where", ["copying", "copied"])
async def test_one_that_was_cut_off_is_finished_by_the_next(
    redis: Bus, kafka: Bus, kafka_server: KafkaServer, database: str, store: StoreClient, where: str
) -> None:
    await work(redis, store, EVENTS[:TO_KAFKA])
    if where == "copying":
        async with DyingKafka(kafka_server.bootstrap) as dying:
            with pytest.raises(BusUnavailable):
                await migrate(redis, dying, store)
    else:
        async with await DyingStore.connect(database) as cut_off:
            with pytest.raises(StoreUnavailable):
                await migrate(redis, kafka, cut_off)
    halfway = r"halfway already \(mdp stream migrate --from redis --to kafka\)"
    with pytest.raises(BusError, match=halfway):
        await migrate(kafka, redis, store)
    moving = Repartitioning(redis, store, [TOPIC, BARS], 4, bars_topic=BARS, keep_ms=60_000, settle_s=0)
    with pytest.raises(BusError, match="halfway to another bus"):
        await moving.run()
    await migrate(redis, kafka, store)
    stats = await work(kafka, store, EVENTS[TO_KAFKA - 60 :])
    assert stats.counts.duplicate == 60
    await assert_recounted(store, EVENTS)


async def test_a_worker_on_the_bus_that_was_left_changes_nothing(
    redis: Bus, kafka: Bus, store: StoreClient
) -> None:
    await work(redis, store, EVENTS[:TO_KAFKA])
    await migrate(redis, kafka, store)
    before = [c.positions for c in await store.claims(TOPIC)]
    with pytest.raises(
        ConfigError, match=f"group g has read partition . of {TOPIC} on another bus.*set bus.type back"
    ):
        await batcher(redis, store, RunStats()).run(asyncio.Event(), 0.3)
    with pytest.raises(ConfigError, match="group i has read"):
        await infer(redis, store, seed_rules())
    assert [c.positions for c in await store.claims(TOPIC)] == before
    await work(kafka, store, EVENTS[TO_KAFKA:])
    await assert_recounted(store, EVENTS)


async def test_dead_letters_are_moved(redis: Bus, kafka: Bus, store: StoreClient) -> None:
    letters = [
        DeadLetter("late", TOPIC, 0, f"1-{i}", "S", None, b"x%d" % i, SystemClock().now()) for i in range(3)
    ]
    await DeadLetters(redis, TOPIC).put([*letters, letters[0]])
    assert await migration(redis, kafka, store).move_letters() == 3
    assert await migration(redis, kafka, store).move_letters() == 0
    assert [b.letter.value for b in await DeadLetters(kafka, TOPIC).letters()] == [b"x0", b"x1", b"x2"]
    assert await DeadLetters(redis, TOPIC).letters() == []


async def test_who_is_in_the_way(redis: Bus, kafka: Bus, store: StoreClient) -> None:
    await publish(redis, EVENTS[:50])
    with pytest.raises(BusError, match="has 50 records that no group has read"):
        await migrate(redis, kafka, store)
    stats = RunStats()

    async def read() -> bool:
        return stats.events > 0

    async with running(redis, store, stats):
        await until(read)
        assert "has members alive" in await migration(redis, kafka, store).obstacle()
    await drain(redis, store)
    await infer(redis, store, seed_rules())
    # Somebody was too early.
    await kafka.ensure_topic(TOPIC, 2)
    await publish(kafka, EVENTS[50:60])
    with pytest.raises(BusError, match="on kafka has records that nobody has read there"):
        await migrate(redis, kafka, store)
    await publish(redis, EVENTS[50:60])
    with pytest.raises(BusError, match="has 10 records to read"):
        await migrate(redis, kafka, store)


async def test_bars_that_inference_has_never_read_on_this_bus(
    redis: Bus, kafka: Bus, store: StoreClient
) -> None:
    await work(redis, store, EVENTS[:TO_KAFKA])
    await migrate(redis, kafka, store)
    await publish(kafka, EVENTS[TO_KAFKA:TO_REDIS])
    await drain(kafka, store)
    with pytest.raises(BusError, match=f"group i has not read partition . of {BARS} to its end"):
        await migrate(kafka, redis, store)
    await infer(kafka, store, seed_rules())
    await migrate(kafka, redis, store)
    await work(redis, store, EVENTS[TO_REDIS:])
    await assert_recounted(store, EVENTS)
