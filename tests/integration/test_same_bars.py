"""The same events give the same bars: in any order within the lateness, however copied, cut, encoded and spread.

Many runs on the memory bus and on a real Redis into a store in memory, and some into PostgreSQL. Every bar is compared
with an independent recount, and to the bit with the bars that all events make when they are added up in one piece.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_core.batch import BarBatch, EventBatch
from market_data_core.clock import SystemClock
from market_data_core.codecs import decode_bars
from market_data_core.events import StreamEvent
from market_data_core.ohlcv import partial_bars
from market_data_core.partitioner import partition_of
from market_data_core.protocols import BarSink, Claim
from market_data_pipeline.consumers.exactly_once import ConsumerSettings, ExactlyOnceConsumer
from market_data_pipeline.consumers.micro_batcher import BatcherSettings, PartitionBars
from market_data_pipeline.consumers.stats import RunStats
from market_data_pipeline.streaming.bus import Bus, Record
from market_data_pipeline.streaming.memory_bus import MemoryBus
from market_data_pipeline.streaming.redis_bus import RedisBus
from market_data_pipeline.windows.tumbling import WindowSettings
from market_data_store import StoreClient
from tests import oracle
from tests.integration.sink import VALUES, Key, MemorySink
from tests.servers.redis import RedisServer
from tests.servers.redis import running as redis_running
from tests.unit.strategies import SECOND, SEEDS, Arrivals, arrivals, records

WINDOW = 5 * SECOND
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Way:
    """How the events travel."""

    seed: int
    partitions: int
    max_records: int
    longest_frame: int
    workers: int = 1


WAYS = st.builds(
    Way,
    seed=SEEDS,
    partitions=st.integers(1, 8),
    max_records=st.integers(1, 5) | st.integers(1, 5000),
    longest_frame=st.sampled_from([1, 7, 300]),
    workers=st.just(1),
)


def settings_of(made: Arrivals) -> BatcherSettings:
    # The clock of the machine must not close a window of events that are years old: nothing here waits for it.
    windows = WindowSettings(WINDOW, made.allow_late_ns, 600 * SECOND)
    return BatcherSettings(windows, flush_timeout_ns=3600 * SECOND, position_interval_ns=SECOND // 100)


def spread(events: list[StreamEvent], way: Way) -> dict[int, list[bytes]]:
    """Records by partition: each partition's events in order, as JSON, msgpack and frames."""
    rng = random.Random(way.seed)
    parts: dict[int, list[StreamEvent]] = {}
    for event in events:
        parts.setdefault(partition_of(event.symbol, way.partitions), []).append(event)
    return {p: records(rng, some, longest_frame=way.longest_frame) for p, some in parts.items()}


async def consume(bus: Bus, sink: BarSink, made: Arrivals, way: Way) -> list[RunStats]:
    """Publish everything, and consume until nothing comes."""
    topic = f"same{next(_numbers)}"
    await bus.ensure_topic(topic, way.partitions)
    for partition, values in spread(made.order, way).items():
        await bus.publish(topic, [Record("", value) for value in values], partition=partition)
    batching = settings_of(made)

    def logic(claim: Claim) -> PartitionBars:
        return PartitionBars(claim, batching, SystemClock(), bus.format_offset, bus.parse_offset)

    async def work(number: int) -> RunStats:
        stats = RunStats()
        names = ConsumerSettings(
            topic,
            "g",
            f"m{number}",
            f"{topic}.bars",
            f"{topic}.dlq",
            max_records=way.max_records,
            lease_ms=1000,
            poll_seconds=0.02,
        )
        await ExactlyOnceConsumer(bus, sink, names, logic, SystemClock(), stats).run(asyncio.Event(), 0.05)
        return stats

    stats = await asyncio.gather(*(work(i) for i in range(way.workers)))
    await check_published(bus, topic, sink)
    return stats


async def check_published(bus: Bus, topic: str, sink: BarSink) -> None:
    """The newest revision of every bar was published."""
    if not isinstance(sink, MemorySink):
        return
    newest: dict[Key, int] = {}
    for partition in range(await bus.partitions(f"{topic}.bars")):
        for record in await bus.read(f"{topic}.bars", partition, None, 1_000_000):
            for b in decode_bars(record.value).bars():
                key = (b.provider, b.symbol, b.interval, b.ts)
                newest[key] = max(newest.get(key, 0), b.revision)
    assert newest == {key: int(row.revision[0]) for key, row in sink.rows.items()}


def bits(bars: BarBatch) -> dict[Key, tuple[bytes, ...]]:
    columns = [getattr(bars, name) for name in VALUES]
    out = {}
    for i, (code, ts) in enumerate(zip(bars.code.tolist(), bars.ts.tolist(), strict=True)):
        series = bars.series[code]
        out[series.provider, series.symbol, series.interval, ts] = tuple(c[i].tobytes() for c in columns)
    return out


def check(sink: MemorySink, made: Arrivals) -> None:
    oracle.assert_equal(sink.bars(), oracle.recount(made.distinct, WINDOW))
    assert sink.bits() == bits(partial_bars(EventBatch.from_events(made.distinct), WINDOW))


def in_time(sink: MemorySink, stats: list[RunStats], made: Arrivals) -> None:
    check(sink, made)
    assert {b.revision for b in sink.bars()} <= {1}, "a bar was stored in parts"
    assert sum(s.events for s in stats) == len(made.distinct)
    assert sum(s.counts.duplicate for s in stats) == len(made.order) - len(made.distinct)
    assert [s.counts.late + s.dead_lettered + s.fenced_writes for s in stats] == [0] * len(stats)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    yield from redis_running("6.2", durable=False)


async def _on_memory(made: Arrivals, way: Way) -> tuple[MemorySink, list[RunStats]]:
    sink = MemorySink()
    async with MemoryBus(f"memory://same{next(_numbers)}") as bus:
        return sink, await consume(bus, sink, made, way)


async def _on_redis(server: RedisServer, made: Arrivals, way: Way) -> tuple[MemorySink, list[RunStats]]:
    sink = MemorySink()
    async with RedisBus(server.uri) as bus:
        return sink, await consume(bus, sink, made, way)


COUNTS = st.integers(1, 30) | st.integers(1, 700)
LATENESS = st.sampled_from([0, SECOND // 2, 2 * SECOND, 30 * SECOND])


@given(SEEDS, COUNTS, LATENESS, st.sampled_from([0.0, 0.2, 0.9]), st.integers(1, 3), WAYS)
@settings(max_examples=60)
def test_on_the_memory_bus(seed: int, n: int, late: int, copies: float, providers: int, way: Way) -> None:
    made = arrivals(seed, n, allow_late_ns=late, copies=copies, providers=providers)
    in_time(*asyncio.run(_on_memory(made, way)), made)


@given(SEEDS, COUNTS, LATENESS, st.sampled_from([0.0, 0.2, 0.9]), st.integers(1, 3), WAYS)
@settings(max_examples=20)
def test_on_redis(
    server: RedisServer, seed: int, n: int, late: int, copies: float, providers: int, way: Way
) -> None:
    made = arrivals(seed, n, allow_late_ns=late, copies=copies, providers=providers)
    in_time(*asyncio.run(_on_redis(server, made, way)), made)


@given(SEEDS, COUNTS, WAYS)
@settings(max_examples=25)
def test_events_beyond_the_lateness_end_in_the_same_bars(seed: int, n: int, way: Way) -> None:
    """Each amends its bar: only revisions tell how the events came."""
    made = replace(arrivals(seed, n, allow_late_ns=30 * SECOND, copies=0.3), allow_late_ns=SECOND)
    sink, stats = asyncio.run(_on_memory(made, way))
    check(sink, made)
    assert sum(s.events for s in stats) == len(made.distinct)
    assert sum(s.counts.expired for s in stats) == 0


@given(SEEDS, st.integers(200, 700), WAYS)
@settings(max_examples=8)
def test_spread_over_three_workers(seed: int, n: int, way: Way) -> None:
    """Partitions change hands while the workers find each other."""
    made = arrivals(seed, n, copies=0.2)
    sink, _ = asyncio.run(_on_memory(made, replace(way, workers=3, partitions=max(3, way.partitions))))
    check(sink, made)


@pytest.mark.parametrize("seed", range(4))
async def test_in_postgresql(server: RedisServer, store: StoreClient, seed: int) -> None:
    rng = random.Random(seed)
    made = arrivals(seed, 2000, allow_late_ns=2 * SECOND, copies=0.2, providers=2, symbols=12)
    way = Way(seed, rng.randint(1, 8), rng.choice([17, 400, 5000]), 50)
    async with RedisBus(server.uri) as bus:
        [stats] = await consume(bus, store, made, way)
    bars = await store.bars(interval="5s")
    oracle.assert_equal(bars.bars(), oracle.recount(made.distinct, WINDOW))
    assert bits(bars) == bits(partial_bars(EventBatch.from_events(made.distinct), WINDOW))
    assert {b.revision for b in bars.bars()} == {1}
    assert stats.events == len(made.distinct)
