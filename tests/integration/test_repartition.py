"""Another number of partitions in the middle of a stream: bars as recounted over both halves, and nothing twice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace

import pytest

from market_data_core.batch import EventBatch
from market_data_core.codecs import decode_bars, encode_frame
from market_data_core.errors import BusError, BusUnavailable, Fenced, StoreUnavailable
from market_data_core.events import StreamEvent
from market_data_core.partitioner import partition_of
from market_data_pipeline.consumers.moving import Moved
from market_data_pipeline.consumers.repartitioning import Repartitioning
from market_data_pipeline.consumers.stats import RunStats
from market_data_pipeline.streaming.bus import Bus, Record
from market_data_pipeline.streaming.drivers import open_bus
from market_data_pipeline.streaming.redis_bus import RedisBus
from market_data_pipeline.streaming.redis_repartition import RedisSwitch
from market_data_store import StoreClient
from market_data_store.repartitions import GroupPosition
from tests.integration.pipeline import (
    SECOND,
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
from tests.integration.signals_pipeline import SIGNALS, infer
from tests.integration.walk import assert_recounted, seed_rules, walk
from tests.oracle import Key, recount
from tests.servers.kafka import KafkaServer, delete_topics
from tests.servers.kafka import running as kafka_running
from tests.servers.redis import RedisServer
from tests.servers.redis import running as redis_running
from tests.servers.redis_cluster import RedisCluster
from tests.servers.redis_cluster import running as cluster_running

WINDOW = SETTINGS.windows.window_ns
BARS = "t.bars"
SYMBOLS = tuple(f"S{i}" for i in range(9))
# 400 events of 50 ms: twenty seconds, and the cut after 250 is in the middle of a window of two.
EVENTS = [tick(SYMBOLS[i % 9], i * 50, 60_000 + i % 7 * 0.25, 1 + i % 5, i) for i in range(400)]
CUT = 250


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    yield from redis_running("7")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    yield from cluster_running(lambda: RedisCluster(3))


@pytest.fixture(scope="module")
def kafka() -> Iterator[KafkaServer]:
    yield from kafka_running()


@pytest.fixture
async def bus(redis: RedisServer) -> AsyncIterator[Bus]:
    with redis.client() as client:
        client.flushall()
    async with open_bus("redis", redis.uri) as bus:
        yield bus


def moving(bus: Bus, store: StoreClient, partitions: int) -> Repartitioning:
    return Repartitioning(
        bus, store, [TOPIC, BARS], partitions, bars_topic=BARS, keep_ms=60_000, settle_s=0.05
    )


async def move(bus: Bus, store: StoreClient, partitions: int) -> dict[str, Moved]:
    return {m.topic: m for m in await moving(bus, store, partitions).run()}


async def send(bus: Bus, events: Sequence[StreamEvent], partitions: int) -> None:
    """Half as records of one event, half as frames, and each where its symbol belongs."""
    await publish(bus, list(events[::2]))
    framed: dict[int, list[StreamEvent]] = {}
    for event in events[1::2]:
        framed.setdefault(partition_of(event.symbol, partitions), []).append(event)
    for partition, some in framed.items():
        value = encode_frame(EventBatch.from_events(some))
        await bus.publish(TOPIC, [Record(some[0].symbol, value)], partition=partition)


async def published(bus: Bus) -> dict[Key, int]:
    """The newest revision of each bar on the bars topic; every bar lies where its symbol belongs."""
    count = await bus.partitions(BARS)
    out: dict[Key, int] = {}
    for partition in range(count):
        for record in await bus.read(BARS, partition, None, 10_000):
            for bar in decode_bars(record.value).bars():
                key = bar.provider, bar.symbol, bar.ts
                out[key] = max(out.get(key, 0), bar.revision)
    return out


async def both_halves(bus: Bus, store: StoreClient, before: int, after: int) -> None:
    await bus.ensure_topic(TOPIC, before)
    await send(bus, EVENTS[:CUT], before)
    await drain(bus, store)
    moved = await move(bus, store, after)
    assert {name: (m.before, m.after) for name, m in moved.items()} == {
        TOPIC: (before, after),
        BARS: (before, after),
    }
    assert moved[TOPIC].groups == ["g"]
    # A producer that was not sure sends its last events again: what was counted must not count twice.
    await send(bus, EVENTS[CUT - 60 :], after)
    stats = await drain(bus, store)
    assert stats.counts.duplicate == 60
    assert stats.dead_lettered == 0
    bars = await stored(store)
    assert_equal(bars, recount(EVENTS, WINDOW))
    assert len({bar.revision for bar in bars.values()}) > 1  # the window of the cut was amended
    (topic,) = await bus.status([TOPIC])
    assert topic.partitions == after
    assert [p.lag + p.pending for g in topic.groups for p in g.partitions] == [0] * after
    newest = await published(bus)
    assert {key: bars[key].revision for key in newest} == newest


@pytest.mark.parametrize(("before", "after"), [(2, 4), (1, 2), (4, 1), (2, 3), (3, 2)])
async def test_bars_are_those_of_both_halves(bus: Bus, store: StoreClient, before: int, after: int) -> None:
    await both_halves(bus, store, before, after)


async def test_there_and_back_again(bus: Bus, store: StoreClient) -> None:
    await bus.ensure_topic(TOPIC, 1)
    for first, partitions in enumerate((3, 1, 2, 4)):
        await publish(bus, EVENTS[first * 80 : first * 80 + 80])
        await drain(bus, store)
        await move(bus, store, partitions)
    await publish(bus, EVENTS[320:])
    await drain(bus, store)
    assert_equal(await stored(store), recount(EVENTS, WINDOW))


@pytest.mark.parametrize("after", [1, 3, 4])
async def test_a_partition_that_was_ahead_and_one_that_was_behind(
    bus: Bus, store: StoreClient, after: int
) -> None:
    """Both symbols have a window that was closed early, ten seconds apart, and go on in it."""
    windows = replace(SETTINGS.windows, dedupe_horizon_ns=SECOND // 2, amend_beyond_horizon=True)
    batching = replace(SETTINGS, windows=windows)
    ahead, behind = (next(s for s in SYMBOLS if partition_of(s, 2) == p) for p in (0, 1))
    first = [tick(ahead, ms, 10.0, 1, ms) for ms in range(0, 19_800, 100)]
    first += [tick(behind, ms, 20.0, 1, ms) for ms in range(0, 9_000, 500)]
    second = [tick(ahead, 19_000 + ms, 11.0, 1, 19_000 + ms) for ms in (850, 900, 6000)]
    second += [tick(behind, 9_000 + ms, 21.0, 1, 9_000 + ms) for ms in (0, 500, 900)]
    await bus.ensure_topic(TOPIC, 2)
    await publish(bus, first)
    await drain(bus, store, batching)
    await move(bus, store, after)
    await publish(bus, second)
    stats = await drain(bus, store, batching)
    assert stats.dead_lettered == 0
    assert_equal(await stored(store), recount(first + second, WINDOW))


async def test_on_a_cluster(cluster: RedisCluster, store: StoreClient) -> None:
    async with open_bus("redis", cluster.uri) as bus:
        await both_halves(bus, store, 2, 5)


async def test_on_kafka(kafka: KafkaServer, store: StoreClient) -> None:
    await delete_topics(kafka)
    async with open_bus("kafka", kafka.bootstrap) as bus:
        await both_halves(bus, store, 2, 4)
        with pytest.raises(BusError, match="Kafka takes none away"):
            await move(bus, store, 3)


async def test_a_worker_that_lives_is_in_the_way(bus: Bus, store: StoreClient) -> None:
    await bus.ensure_topic(TOPIC, 2)
    await publish(bus, EVENTS[:CUT])
    stats = RunStats()

    async def read() -> bool:
        return stats.events > 0

    async with running(bus, store, stats):
        await until(read)
        with pytest.raises(BusError, match="has members alive"):
            await move(bus, store, 4)
    assert await bus.partitions(TOPIC) == 2


async def test_lag_is_in_the_way(bus: Bus, store: StoreClient) -> None:
    await bus.ensure_topic(TOPIC, 2)
    await publish(bus, EVENTS[:CUT])
    await drain(bus, store)
    await publish(bus, EVENTS[CUT:])
    with pytest.raises(BusError, match=f"group g of {TOPIC} has 150 records to read"):
        await move(bus, store, 4)
    await drain(bus, store)
    await move(bus, store, 4)


async def test_a_producer_is_in_the_way(bus: Bus, store: StoreClient) -> None:
    await bus.ensure_topic(TOPIC, 2)

    async def meanwhile(seconds: float) -> None:
        await publish(bus, EVENTS[:1])

    work = Repartitioning(bus, store, [TOPIC], 4, bars_topic=BARS, keep_ms=60_000, sleep=meanwhile)
    with pytest.raises(BusError, match="somebody publishes to"):
        await work.run()


async def test_a_stream_of_somebody_else_is_in_the_way(
    bus: Bus, redis: RedisServer, store: StoreClient
) -> None:
    await bus.ensure_topic(TOPIC, 2)
    with redis.client() as client:
        client.xadd(f"{TOPIC}.3", {"a": "b"})
        with pytest.raises(BusError, match=rf"the key {TOPIC}\.3 .* is in the place of a new partition"):
            await move(bus, store, 4)
        assert client.xlen(f"{TOPIC}.3") == 1
    assert await bus.partitions(TOPIC) == 2


@pytest.mark.parametrize(("before", "after"), [(2, 3), (4, 1)])
async def test_inference_goes_along(bus: Bus, store: StoreClient, before: int, after: int) -> None:
    """Bars of a symbol are in one partition before and in another after; signals are those of all of them."""
    await inference_through(bus, store, before, after)


async def test_inference_goes_along_on_kafka(kafka: KafkaServer, store: StoreClient) -> None:
    await delete_topics(kafka)
    async with open_bus("kafka", kafka.bootstrap) as bus:
        await inference_through(bus, store, 2, 3)


async def inference_through(bus: Bus, store: StoreClient, before: int, after: int) -> None:
    events, cut = walk(600), 305
    for topic in (TOPIC, BARS, SIGNALS):
        await bus.ensure_topic(topic, before)
    await publish(bus, events[:100])
    await drain(bus, store)
    await infer(bus, store, seed_rules())
    await publish(bus, events[100:cut])
    await drain(bus, store)
    # Bars that are stored and not decided on yet are in the way.
    with pytest.raises(BusError, match=f"of {BARS} has [0-9]+ records to read"):
        await move(bus, store, after)
    await infer(bus, store, seed_rules())
    moved = await move(bus, store, after)
    assert moved[BARS].groups == ["i"]
    await publish(bus, events[cut - 40 :])
    await drain(bus, store)
    stats = await infer(bus, store, seed_rules())
    assert stats.dead_lettered == 0
    assert await assert_recounted(store, events) > 50
    (status,) = await bus.status([BARS])
    assert [p.lag + p.pending for g in status.groups for p in g.partitions] == [0] * after


class DyingSwitch(RedisSwitch):
    """Cut off when everything is copied and the number is the old one."""

    async def switch(self) -> None:
        raise BusUnavailable("cut off")


class DyingBus(RedisBus):
    def topic_switch(self, topic: str, old: int, new: int) -> RedisSwitch:
        made = super().topic_switch(topic, old, new)
        return DyingSwitch(
            self._server, self._topics, self._append, self._ask, made.topic, made.old, made.new
        )


class DyingStore(StoreClient):
    """Cut off when the number is the new one and the positions are the old ones."""

    async def finish_repartition(
        self,
        marks: dict[str, str],
        moved: Mapping[str, Sequence[GroupPosition]],
        topic_ids: Mapping[str, str],
    ) -> None:
        raise StoreUnavailable("cut off")


@pytest.mark.parametrize("where", ["fenced", "copied", "switched"])
@pytest.mark.parametrize(("before", "after"), [(2, 3), (4, 1)])
async def test_one_that_was_cut_off_is_finished_by_the_next(
    bus: Bus, redis: RedisServer, database: str, store: StoreClient, before: int, after: int, where: str
) -> None:
    await bus.ensure_topic(TOPIC, before)
    await publish(bus, EVENTS[:CUT])
    await drain(bus, store)
    if where == "fenced":
        await store.begin_repartition({TOPIC: f"repartition {before} to {after}"})
    elif where == "copied":
        async with DyingBus(redis.uri) as dying:
            with pytest.raises(BusUnavailable):
                await move(dying, store, after)
    else:
        async with await DyingStore.connect(database) as cut_off:
            with pytest.raises(StoreUnavailable):
                await move(bus, cut_off, after)
    with pytest.raises(BusError, match=f"halfway from {before} to {after} partitions"):
        await move(bus, store, 7)
    await move(bus, store, after)
    assert await bus.partitions(TOPIC) == after
    await publish(bus, EVENTS[CUT - 60 :])
    stats = await drain(bus, store)
    assert stats.counts.duplicate == 60
    assert_equal(await stored(store), recount(EVENTS, WINDOW))


async def test_whoever_claims_meanwhile_wins(bus: Bus, store: StoreClient) -> None:
    await bus.ensure_topic(TOPIC, 2)
    await publish(bus, EVENTS[:CUT])
    await drain(bus, store)
    marks = {TOPIC: "repartition 2 to 4"}
    await store.begin_repartition(marks)
    await store.claim(TOPIC, "g", 0, "early")
    before = await store.claims(TOPIC)
    with pytest.raises(Fenced, match="early has claimed partition 0"):
        await store.finish_repartition(marks, {TOPIC: []}, {TOPIC: ""})
    assert await store.claims(TOPIC) == before
