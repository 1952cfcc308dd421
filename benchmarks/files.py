"""Measured processes that make bars of a file without a bus between: a raw read, the memory bus, windows alone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Measured, Stopwatch
from benchmarks.reading import watched

if TYPE_CHECKING:
    from market_data_pipeline.producers.dataset import DatasetProvider


async def raw(given: dict[str, Any]) -> Measured:
    """The file read into columns by pandas, and nothing else."""
    import pandas as pd

    watch = Stopwatch(given["pids"])
    watch.start()
    rows = len(pd.read_csv(given["path"]))
    watch.lap()
    if rows != given["events"]:
        raise RuntimeError(f"{rows} rows were read, not {given['events']}")
    return watch.result(rows)


async def over_memory_bus(given: dict[str, Any]) -> Measured:
    """The producer and the micro-batcher of the product in one process, from opening the file to the last commit."""
    from market_data_core.config import Settings
    from market_data_pipeline.cli import batching
    from market_data_pipeline.producers.runner import ProducerRunner
    from market_data_pipeline.streaming.memory_bus import MemoryBus
    from market_data_store import StoreClient

    watch, stop = Stopwatch(given["pids"]), asyncio.Event()
    stats = watched(watch, stop, given["bars"])
    async with MemoryBus("memory://bench") as bus, await StoreClient.connect(given["database"]) as store:
        await bus.ensure_topic("bench", 1)
        await store.ping()
        runner = ProducerRunner(bus, _provider(given["path"]), "bench")
        consumer = batching.micro_batcher(Settings(), bus, store, stats, topic="bench", group="bench")
        async with asyncio.TaskGroup() as both:
            consuming = both.create_task(consumer.run(stop))
            watch.start()
            await runner.run()
            await consuming
    return watch.result(given["events"], bars=stats.stored, flushes=stats.flushes)


async def windows_alone(given: dict[str, Any]) -> Measured:
    """The parts without the machinery, as a program of one's own would use them: provider, windows, store."""
    from market_data_core.batch import EventBatch
    from market_data_core.protocols import Flush, LaneFlush
    from market_data_pipeline.windows.tumbling import TumblingWindows, WindowSettings
    from market_data_store import StoreClient

    watch, provider = Stopwatch(given["pids"]), _provider(given["path"])
    settings = WindowSettings(2 * 10**9, allow_late_ns=500_000_000, dedupe_horizon_ns=120 * 10**9)
    windows = TumblingWindows(settings)
    stored = flushes = 0
    published: list[int] = []
    async with await StoreClient.connect(given["database"]) as store:
        claim = await store.claim("bench.file", "bench", 0, "bench")
        watch.start()
        for number, batch in enumerate(provider.batches()):
            if not isinstance(batch, EventBatch):
                raise TypeError(f"{batch.place}: {batch.reason}")
            windows.add(batch, number)
            closed, _ = windows.close(0)
            if len(closed):
                flushes += 1
                lane = LaneFlush("live/bench", closed, windows.take_late(), settings.window_ns)
                done = await store.commit(Flush(claim, [lane], [], flushes, published=published))
                published = [record.id for record in done.outbox]
                stored += len(done.bars)
        watch.lap()
    if stored != given["bars"]:
        raise RuntimeError(f"{stored} bars were stored, not {given['bars']}")
    return watch.result(given["events"], bars=stored, flushes=flushes)


def _provider(path: str) -> DatasetProvider:
    from market_data_core.config import Settings
    from market_data_pipeline.producers.dataset import file_provider, find_dataset

    columns = {"time": "time", "symbol": "symbol", "price": "price", "volume": "size", "seq": "seq"}
    described = {"path": path, "provider": "bench", "columns": columns, "time_unit": "us"}
    settings = Settings.model_validate({"datasets": {"bench": described}})
    return file_provider(settings, [find_dataset(settings, "bench", None, None)])
