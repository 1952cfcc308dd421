"""Measured processes that read a Redis topic: raw loops, and the micro-batcher."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any, Final

from benchmarks.measure import Measured, Stopwatch

if TYPE_CHECKING:
    from benchmarks.sampling import Sampler
    from market_data_pipeline.consumers.stats import RunStats

COUNT: Final = 5000
MEMBER: Final = "bench"


async def raw(given: dict[str, Any]) -> Measured:
    """XREADGROUP and XACK with redis-py and hiredis as they are, and nothing else."""
    from redis.asyncio import Redis

    group, topic = uuid.uuid4().hex, given["topic"]
    watch = Stopwatch(given["pids"])
    read = 0
    async with Redis.from_url(given["redis"]) as client:
        await client.xgroup_create(topic, group, id="0")
        watch.start()
        while read < given["records"]:
            found: Any = await client.xreadgroup(group, MEMBER, {topic: ">"}, count=COUNT)
            entries = found[0][1]
            await client.xack(topic, group, *[name for name, _ in entries])
            read += len(entries)
        watch.lap()
        await client.xgroup_destroy(topic, group)
    return watch.result(given["events"])


async def bare(given: dict[str, Any]) -> Measured:
    """The same loop on the connection that the driver uses: hiredis's replies as they come, without redis-py's
    dictionaries, and larger reads from the socket."""
    from market_data_pipeline.streaming.redis_wire import RedisServer, pack

    group, topic = uuid.uuid4().hex, given["topic"]
    watch = Stopwatch(given["pids"])
    read = 0
    server = RedisServer(given["redis"])
    wire = server.wire()
    server.check(await wire.exchange(pack("XGROUP", "CREATE", topic, group, "0")))
    command = pack("XREADGROUP", "GROUP", group, MEMBER, "COUNT", COUNT, "STREAMS", topic, ">")
    watch.start()
    while read < given["records"]:
        [[[_, entries]]] = await wire.exchange(command)
        server.check(await wire.exchange(pack("XACK", topic, group, *[name for name, _ in entries])))
        read += len(entries)
    watch.lap()
    await wire.exchange(pack("XGROUP", "DESTROY", topic, group))
    await wire.close()
    await server.close()
    return watch.result(given["events"])


async def micro_batcher(given: dict[str, Any]) -> Measured:
    """From the first record read to the last commit, with the settings of the product.

    ``given["profile"]``: also say where CPU time went.
    """
    from benchmarks.sampling import Sampler
    from market_data_core.config import Settings
    from market_data_pipeline.cli import batching
    from market_data_pipeline.streaming.redis_bus import RedisBus
    from market_data_store import StoreClient

    watch, stop = Stopwatch(given["pids"]), asyncio.Event()
    sampler = Sampler() if given.get("profile") else None
    stats = watched(watch, stop, given["bars"], sampler)
    group = uuid.uuid4().hex
    async with RedisBus(given["redis"]) as bus, await StoreClient.connect(given["database"]) as store:
        consumer = batching.micro_batcher(
            Settings(), bus, store, stats, topic=given["topic"], group=group, member=MEMBER
        )
        await consumer.run(stop)
    shares = {} if sampler is None else sampler.shares()
    return watch.result(given["events"], bars=stats.stored, flushes=stats.flushes, shares=shares)


def watched(watch: Stopwatch, stop: asyncio.Event, bars: int, sampler: Sampler | None = None) -> RunStats:
    """An observer that starts ``watch`` when the partition is owned and nothing is read yet, notes the time of every
    commit, and sets ``stop`` when ``bars`` are stored."""
    from market_data_core.protocols import Committed
    from market_data_pipeline.consumers.partition_logic import Plan
    from market_data_pipeline.consumers.stats import RunStats

    class Watched(RunStats):
        def assigned(self, partition: int, epoch: int) -> None:
            super().assigned(partition, epoch)
            watch.start()
            if sampler is not None:
                sampler.start()

        def flushed(self, partition: int, plan: Plan, committed: Committed, seconds: float, at: int) -> None:
            super().flushed(partition, plan, committed, seconds, at)
            watch.lap()
            if plan.dead_letters or plan.counts.late:
                raise RuntimeError(
                    f"{len(plan.dead_letters)} events are no events, {plan.counts.late} are late"
                )
            if self.stored >= bars:
                if sampler is not None:
                    sampler.stop()
                stop.set()

    return Watched()
