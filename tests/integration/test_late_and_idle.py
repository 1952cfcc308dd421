"""Late, copied and quiet: what happens to windows that are closed, or that nobody closes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from market_data_core.batch import EventBatch
from market_data_core.clock import ManualClock
from market_data_core.codecs import decode_bars, encode_events
from market_data_core.protocols import Claim
from market_data_pipeline.consumers.micro_batcher import BatcherSettings, PartitionBars
from market_data_pipeline.consumers.stats import RunStats
from market_data_pipeline.streaming.bus import Bus, Delivery
from market_data_pipeline.streaming.drivers import open_bus
from market_data_pipeline.windows.tumbling import WindowSettings
from market_data_store import StoreClient
from tests.integration.pipeline import (
    BASE,
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
from tests.oracle import recount
from tests.servers.redis import RedisServer
from tests.servers.redis import running as redis_running

WINDOW = SETTINGS.windows.window_ns
ON_TIME = [tick("A", i * 250, 100 + i, 10 + i, i) for i in range(60)]
"""Fifteen seconds of a symbol."""
LATE = tick("A", 4_600, 250.0, 7, 1000)
"""Of the window from 4 s to 6 s, and ten seconds late."""


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    yield from redis_running("6.2")


@pytest.fixture
async def bus(server: RedisServer) -> AsyncIterator[Bus]:
    server.client().flushall()
    async with open_bus("redis", server.uri) as bus:
        await bus.ensure_topic(TOPIC, 1)
        yield bus


async def test_an_event_ten_seconds_late_amends_its_bar(bus: Bus, store: StoreClient) -> None:
    await publish(bus, [*ON_TIME, LATE])
    stats = await drain(bus, store)
    bars = await stored(store)
    assert_equal(bars, recount([*ON_TIME, LATE], WINDOW))
    assert {b.ts: b.revision for b in bars.values() if b.revision != 1} == {BASE + 4 * SECOND: 2}
    assert (stats.counts.late, stats.amended) == (1, 1)
    published = [b for r in await bus.read("t.bars", 0, None, 1000) for b in decode_bars(r.value).bars()]
    newest = max((b for b in published if b.ts == BASE + 4 * SECOND), key=lambda b: b.revision)
    assert newest == bars["p", "A", BASE + 4 * SECOND]


async def test_a_late_copy_changes_nothing(bus: Bus, store: StoreClient) -> None:
    await publish(bus, [*ON_TIME, LATE, LATE, ON_TIME[3], ON_TIME[20]])
    stats = await drain(bus, store)
    assert_equal(await stored(store), recount([*ON_TIME, LATE], WINDOW))
    assert (stats.counts.duplicate, stats.counts.late) == (3, 1)


async def test_a_late_copy_changes_nothing_after_a_restart(bus: Bus, store: StoreClient) -> None:
    await publish(bus, [*ON_TIME, LATE])
    await drain(bus, store)
    before = await stored(store)
    await publish(bus, [LATE, ON_TIME[3], ON_TIME[20], ON_TIME[59]])
    stats = await drain(bus, store)
    assert await stored(store) == before
    assert (stats.counts.duplicate, stats.counts.late, stats.stored, stats.amended) == (4, 0, 0, 0)


async def test_dropped_late_events_are_dead_letters(bus: Bus, store: StoreClient) -> None:
    policy = BatcherSettings(SETTINGS.windows, SETTINGS.flush_timeout_ns, late_policy="drop")
    await publish(bus, [*ON_TIME, LATE])
    stats = await drain(bus, store, policy)
    assert_equal(await stored(store), recount(ON_TIME, WINDOW))
    assert (stats.counts.late, stats.dead_lettered) == (1, 1)
    assert len(await bus.read(f"{TOPIC}.dlq", 0, None, 10)) == 1


async def test_the_last_window_of_a_quiet_symbol_is_stored_by_the_clock(bus: Bus, store: StoreClient) -> None:
    """Live events, then silence: the last bar comes within the flush timeout of its earliest possible close."""
    stats = RunStats()

    async def assigned() -> bool:
        return bool(stats.partitions)

    async with running(bus, store, stats):
        await publish(bus, [tick("Q", 0, 5.0, 1, 0)])
        await until(assigned)
        # From here on everything is in motion: an event is read as soon as it happens.
        now = time.time_ns()
        events = [replace(tick("Q", 0, 5.0, 1, i), src_ts=now + i, ingest_ts=now + i) for i in range(1, 4)]
        want = recount([tick("Q", 0, 5.0, 1, 0), *events], WINDOW)
        await publish(bus, events)

        async def there() -> bool:
            return len(await stored(store)) == len(want)

        await until(there)
    took = time.time_ns() - (max(start for _, _, start in want) + WINDOW + SETTINGS.windows.allow_late_ns)
    assert_equal(await stored(store), want)
    assert took > 0, "a window was closed before its time"
    # The seconds are for a busy machine; the exact bound is tried with a clock by hand below.
    assert took < SETTINGS.flush_timeout_ns + 5 * SECOND


def test_the_clock_closes_a_quiet_window_no_sooner_and_no_later() -> None:
    clock = ManualClock(BASE)
    settings = BatcherSettings(WindowSettings(2 * SECOND, SECOND // 2, 120 * SECOND), flush_timeout_ns=SECOND)
    logic = PartitionBars(Claim("t", "g", 0, 1, "o", {}, []), settings, clock, str, int)
    values = encode_events(EventBatch.from_events([tick("Q", 300, 5.0, 1, 0)]))
    logic.process(Delivery(0, [0], values, None, True, clock.monotonic()))
    # The window ends 1.7 s after the event; the watermark reaches its end half a second of lateness later.
    clock.advance(2_199_000_000)
    logic.caught_up(clock.monotonic())
    assert logic.backlog == 0
    clock.advance(1_000_000)
    logic.caught_up(clock.monotonic())
    assert logic.backlog == 1
    assert logic.due()
