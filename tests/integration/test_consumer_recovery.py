"""A consumer that is cut off in the middle of a window: no duplicates, no loss."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator

import pytest

from market_data_core.codecs import decode_bars
from market_data_core.events import Bar
from market_data_core.protocols import Flush
from market_data_pipeline.consumers.stats import RunStats
from market_data_pipeline.streaming.bus import Bus
from market_data_pipeline.streaming.drivers import open_bus
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
from tests.integration.sink import MemorySink
from tests.oracle import Key, recount
from tests.servers.redis import RedisServer
from tests.servers.redis import running as redis_running

WINDOW = SETTINGS.windows.window_ns


@pytest.fixture(scope="module", params=["6.2", "7.0"])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    yield from redis_running(request.param)


@pytest.fixture
async def bus(server: RedisServer) -> AsyncIterator[Bus]:
    server.client().flushall()
    async with open_bus("redis", server.uri) as bus:
        await bus.ensure_topic(TOPIC, 2)
        yield bus


async def _published(bus: Bus) -> dict[Key, Bar]:
    """The newest revision of each bar on the bars topic."""
    newest: dict[Key, Bar] = {}
    for partition in range(await bus.partitions("t.bars")):
        for record in await bus.read("t.bars", partition, None, 10_000):
            for bar in decode_bars(record.value).bars():
                key = (bar.provider, bar.symbol, bar.ts)
                if key not in newest or bar.revision > newest[key].revision:
                    newest[key] = bar
    return newest


async def test_a_restart_in_the_middle_of_a_window(bus: Bus, store: StoreClient) -> None:
    events = [tick(s, i * 50, 100 + i % 7, 1 + i % 5, i) for i in range(400) for s in ("A", "B", "C")]
    # Up to the middle of a window: some bars are stored, some windows are open.
    half = len(events) // 2 + 30
    await publish(bus, events[:half])
    stats = RunStats()

    async def some_stored() -> bool:
        return stats.stored >= 9

    async with running(bus, store, stats):
        await until(some_stored)
    assert 0 < len(await stored(store)) < len(recount(events, WINDOW))
    await publish(bus, events[half:])
    await drain(bus, store)
    bars = await stored(store)
    assert_equal(bars, recount(events, WINDOW))
    assert {b.revision for b in bars.values()} == {1}, "no window was stored in parts"
    assert await _published(bus) == bars


async def test_restarts_at_random_moments(bus: Bus, store: StoreClient) -> None:
    rng = random.Random(5)
    events = [tick(f"S{i % 5}", i * 7 + rng.randint(0, 400), 50 + i % 11, 1 + i % 9, i) for i in range(3000)]
    copies = [e for e in events if rng.random() < 0.05]
    feed = sorted([*events, *copies], key=lambda e: (e.src_ts + rng.randint(0, 400_000_000), e.seq))

    at = cuts = 0
    while at < len(feed):
        step = rng.randint(50, 600)
        await publish(bus, feed[at : at + step])
        at += step
        stats = RunStats()

        async def worked(stats: RunStats = stats) -> bool:
            return stats.flushes > 0

        async with running(bus, store, stats):
            await until(worked)
        cuts += 1
    await drain(bus, store)
    assert cuts > 3
    bars = await stored(store)
    assert_equal(bars, recount(events, WINDOW))
    assert await _published(bus) == bars


async def test_nothing_is_left_pending_after_a_recovery(bus: Bus, store: StoreClient) -> None:
    await publish(bus, [tick("A", i * 100, 1.0, 1, i) for i in range(100)])
    stats = RunStats()

    async def some_stored() -> bool:
        return stats.stored > 0

    async with running(bus, store, stats):
        await until(some_stored)
    await drain(bus, store)
    (topic,) = await bus.status([TOPIC])
    assert [(p.lag, p.pending) for g in topic.groups for p in g.partitions] == [(0, 0), (0, 0)]


async def test_what_was_committed_and_never_acknowledged_does_not_stay_pending(bus: Bus) -> None:
    """The owner dies between its last commit and the acknowledgement, and nothing ever comes again."""

    def die(flush: Flush) -> None:
        if flush.lanes:
            raise RuntimeError("killed")

    await publish(bus, [tick("A", i, 1.0, 1, i) for i in range(100)])
    sink = MemorySink(after=die)
    with pytest.raises(RuntimeError, match="killed"):
        await drain(bus, sink)
    (topic,) = await bus.status([TOPIC])
    assert sum(p.pending for g in topic.groups for p in g.partitions) == 100
    sink.after = lambda flush: None
    await drain(bus, sink)
    (topic,) = await bus.status([TOPIC])
    assert [(p.lag, p.pending) for g in topic.groups for p in g.partitions] == [(0, 0), (0, 0)]
    assert [b.n_events for b in sink.bars()] == [100]
