"""A micro-batcher in this process on real servers, as tests want it: short windows, short leases, a known clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, wait_fixed

from market_data_core.batch import EventBatch
from market_data_core.clock import Clock, SystemClock
from market_data_core.codecs import encode_events
from market_data_core.events import Bar, StreamEvent
from market_data_core.protocols import BarSink, Claim
from market_data_pipeline.consumers.exactly_once import ConsumerSettings, ExactlyOnceConsumer, Observer
from market_data_pipeline.consumers.micro_batcher import BatcherSettings, PartitionBars
from market_data_pipeline.consumers.stats import RunStats
from market_data_pipeline.streaming.bus import Bus, Record
from market_data_pipeline.windows.tumbling import WindowSettings
from market_data_store import StoreClient
from tests.oracle import Expected, Key

SECOND = 10**9
BASE = 1_763_000_000 * SECOND
"""A whole number of minutes, since windows are aligned to the epoch."""
TOPIC = "t.events"
SETTINGS = BatcherSettings(
    windows=WindowSettings(window_ns=2 * SECOND, allow_late_ns=SECOND // 2, dedupe_horizon_ns=120 * SECOND),
    flush_timeout_ns=SECOND // 5,
    position_interval_ns=SECOND // 10,
)


def tick(symbol: str, at_ms: int, price: float, size: float, seq: int, provider: str = "p") -> StreamEvent:
    """A tick ``at_ms`` after BASE."""
    ns = BASE + at_ms * 1_000_000
    return StreamEvent(provider, symbol, "tick", "1s", ns, ns, price, price, price, price, size, seq)


async def publish(bus: Bus, events: list[StreamEvent], topic: str = TOPIC) -> None:
    """Each event as a JSON record of its own, in order."""
    values = encode_events(EventBatch.from_events(events))
    records = [Record(e.symbol, v) for e, v in zip(events, values, strict=True)]
    await bus.publish(topic, records)


def batcher(
    bus: Bus,
    store: BarSink,
    observer: Observer,
    settings: BatcherSettings = SETTINGS,
    clock: Clock | None = None,
    group: str = "g",
) -> ExactlyOnceConsumer:
    """A member of ``group``."""
    used = clock or SystemClock()

    def logic(claim: Claim) -> PartitionBars:
        return PartitionBars(claim, settings, used, bus.format_offset, bus.parse_offset)

    consumer = ConsumerSettings(
        topic=TOPIC,
        group=group,
        member="m",
        bars_topic="t.bars",
        dead_letter_topic=f"{TOPIC}.dlq",
        lease_ms=2000,
    )
    return ExactlyOnceConsumer(bus, store, consumer, logic, used, observer)


async def drain(
    bus: Bus, store: BarSink, settings: BatcherSettings = SETTINGS, idle: float = 0.3, group: str = "g"
) -> RunStats:
    """Consume until nothing comes, every window closed."""
    stats = RunStats()
    await batcher(bus, store, stats, settings, group=group).run(asyncio.Event(), idle)
    return stats


@asynccontextmanager
async def running(
    bus: Bus, store: BarSink, stats: RunStats, settings: BatcherSettings = SETTINGS
) -> AsyncIterator[None]:
    """A consumer at work, cut off in the middle at the end of the block: nothing is flushed."""
    task = asyncio.create_task(batcher(bus, store, stats, settings).run(asyncio.Event()))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def stored(store: StoreClient, interval: str = "2s") -> dict[Key, Bar]:
    """The bars in the store."""
    return {(b.provider, b.symbol, b.ts): b for b in (await store.bars(interval=interval)).bars()}


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 15.0) -> None:
    """Wait for a condition; fail when it does not come true in time."""
    waiting = AsyncRetrying(
        retry=retry_if_result(lambda true: not true), wait=wait_fixed(0.01), stop=stop_after_delay(seconds)
    )
    assert await waiting(condition)


def assert_equal(bars: dict[Key, Bar], want: dict[Key, Expected]) -> None:
    """Row by row: everything exact, VWAP to twelve digits."""
    assert sorted(bars) == sorted(want)
    for key, bar in bars.items():
        row = want[key]
        got = (bar.open, bar.high, bar.low, bar.close, bar.volume, bar.n_events, bar.first_ts, bar.last_ts)
        expected = (
            row.open,
            row.high,
            row.low,
            row.close,
            row.volume,
            row.n_events,
            row.first_ts,
            row.last_ts,
        )
        assert got == expected, key
        if row.vwap is None or bar.vwap is None:
            assert row.vwap == bar.vwap, key
        else:
            assert abs(bar.vwap - row.vwap) <= 1e-12 * abs(row.vwap), key
