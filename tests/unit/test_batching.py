"""What the commands do before their consumers run."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from market_data_core.config import Settings
from market_data_core.errors import BusNotReady, BusUnavailable, StoreNotReady
from market_data_pipeline.cli import batching, context
from market_data_pipeline.consumers.stats import RunStats
from market_data_pipeline.streaming.memory_bus import MemoryBus
from tests.integration.sink import MemorySink


class Returning(MemoryBus):
    """A bus that has just come back: it refuses the first calls with what is left of ``refusals``."""

    def __init__(self, *refusals: BusUnavailable) -> None:
        super().__init__("memory://returning")
        self.refusals = list(refusals)

    async def ensure_topic(self, topic: str, partitions: int) -> int:
        if self.refusals:
            raise self.refusals.pop(0)
        return await super().ensure_topic(topic, partitions)


async def test_a_bus_that_reads_its_files_is_waited_for() -> None:
    async with Returning(BusNotReady("loading"), BusNotReady("loading")) as bus:
        await batching.topic_of(bus, "t", 3)
        assert (bus.refusals, await bus.partitions("t")) == ([], 3)


async def test_a_bus_that_cannot_be_reached_is_told_at_once() -> None:
    async with Returning(BusUnavailable("nobody there"), BusUnavailable("never asked for")) as bus:
        with pytest.raises(BusUnavailable, match="nobody there"):
            await batching.topic_of(bus, "t", 3)
        assert len(bus.refusals) == 1


class Recovering:
    """What opens a store while it recovers: it refuses so many times."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals

    async def open(self, settings: Settings) -> str:
        self.refusals -= 1
        if self.refusals >= 0:
            raise StoreNotReady("the database system is starting up")
        return "the store"


@pytest.mark.parametrize(("refusals", "opens"), [(2, True), (10**9, False)])
async def test_a_store_that_starts_is_waited_for_and_not_for_ever(
    refusals: int, opens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Recovering(refusals)
    monkeypatch.setattr(context, "open_store", server.open)
    monkeypatch.setattr(batching, "_READY_SECONDS", 60.0 if opens else 0.1)
    if opens:
        assert str(await batching.store_of(Settings())) == "the store"
        assert server.refusals == -1
    else:
        with pytest.raises(StoreNotReady, match="starting up"):
            await batching.store_of(Settings())


async def test_a_stop_that_was_lost_before_the_consumer_ran_stops_it() -> None:
    async with MemoryBus("memory://stopped") as bus:
        await batching.topic_of(bus, "t", 1)
        consumer = batching.micro_batcher(Settings(), bus, MemorySink(), RunStats(), topic="t", group="g")

        async def command() -> None:
            # As asyncio.wait_for of Python 3.11 does with one that comes as what it waits for is done.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            await batching.until_stopped(consumer)

        task = asyncio.create_task(command())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=5)
        stopped = task.cancelled()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert stopped
