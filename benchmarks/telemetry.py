"""What telemetry costs: the micro-batcher with it and without, in rounds that alternate.

``python -m benchmarks telemetry``. With it: every observer and probe, the exporter, and a scrape a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Measured, Stopwatch
from benchmarks.reading import MEMBER, watched
from tests.servers import free_port

if TYPE_CHECKING:
    from market_data_pipeline.consumers.exactly_once import Observer
    from market_data_pipeline.streaming.bus import Bus
    from market_data_store import StoreClient


async def micro_batcher(given: dict[str, Any]) -> Measured:
    """As ``reading:micro_batcher``, and with ``given["telemetry"]`` observed as a process of production is.

    ``more["observing"]``: CPU seconds of the observer and of the scrapes, which tell more than the rates where other
    processes share the machine.
    """
    from market_data_core.config import Settings
    from market_data_core.protocols import Committed
    from market_data_pipeline import telemetry
    from market_data_pipeline.cli import batching
    from market_data_pipeline.consumers.partition_logic import Plan
    from market_data_pipeline.consumers.stats import Observers
    from market_data_pipeline.streaming.redis_bus import RedisBus
    from market_data_pipeline.telemetry.exporter import exposition
    from market_data_store import StoreClient

    observing = 0.0

    class Timed(telemetry.MetricsObserver):
        def flushed(self, partition: int, plan: Plan, committed: Committed, seconds: float, at: int) -> None:
            nonlocal observing
            began = time.thread_time()
            super().flushed(partition, plan, committed, seconds, at)
            observing += time.thread_time() - began

    watch, stop, settings = Stopwatch(given["pids"]), asyncio.Event(), Settings()
    stats: Observer = (counted := watched(watch, stop, given["bars"]))
    me = telemetry.Membership(given["topic"], uuid.uuid4().hex, MEMBER)
    async with (
        RedisBus(given["redis"]) as bus,
        await StoreClient.connect(given["database"]) as store,
        contextlib.AsyncExitStack() as stack,
    ):
        if given["telemetry"]:
            metrics = telemetry.Metrics(settings.telemetry.max_symbols)
            batch = settings.micro_batch
            told = Timed(metrics, me.topic, batch.window_ms, batch.allow_late_ms)
            stats = Observers(stats, told)
            scrapes = await stack.enter_async_context(_served(metrics, bus, store, me))
        consumer = batching.micro_batcher(
            settings, bus, store, stats, topic=me.topic, group=me.group, member=MEMBER
        )
        await consumer.run(stop)
        if given["telemetry"]:
            began = time.thread_time()
            exposition(metrics)
            observing += (time.thread_time() - began) * len(scrapes)
    return watch.result(given["events"], bars=counted.stored, flushes=counted.flushes, observing=observing)


@asynccontextmanager
async def _served(metrics: Any, bus: Bus, store: StoreClient, me: Any) -> AsyncIterator[list[int]]:
    """Exporter, probes and somebody who scrapes: the bytes of each scrape."""
    from market_data_pipeline import telemetry

    port, health, scrapes = free_port(), telemetry.Health(), list[int]()

    def scrape() -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            body: bytes = answer.read()
            return body

    async def forever() -> None:
        while True:
            scrapes.append(len(await asyncio.to_thread(scrape)))
            await asyncio.sleep(1)

    with telemetry.exporter(metrics, port, health=health):
        async with telemetry.watching(metrics, health, bus, store.ping, [me]):
            task = asyncio.create_task(forever())
            try:
                yield scrapes
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
