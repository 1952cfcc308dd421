"""Measured processes that publish to eight partitions: as the client does it by itself, and as the product does."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

from benchmarks import ticks
from benchmarks.measure import Measured, Stopwatch
from market_data_core.partitioner import partition_of
from market_data_pipeline.producers.framing import Framer
from market_data_pipeline.streaming.bus import Bus, Record

PARTITIONS: Final = 8
SLICE: Final = 4096
"""Events handed over at once, as a provider's batches come."""


async def pipeline(given: dict[str, Any]) -> Measured:
    """XADD by XADD in redis-py's pipeline, records encoded before."""
    from redis.asyncio import Redis

    names = [f"{uuid.uuid4().hex}.{partition}" for partition in range(PARTITIONS)]
    slices = list(_slices(given))
    watch = Stopwatch(given["pids"])
    async with Redis.from_url(given["redis"]) as client:
        await client.ping()
        watch.start()
        for some in slices:
            pipe = client.pipeline(transaction=False)
            for partition, record in some:
                pipe.xadd(names[partition], {"v": record.value, "k": record.key})
            await pipe.execute()
        watch.lap()
        await client.delete(*names)
    return watch.result(given["events"])


async def send(given: dict[str, Any]) -> Measured:
    """``AIOKafkaProducer.send`` of each record, idempotent and with zstd as the driver's is, records encoded before."""
    from aiokafka import AIOKafkaProducer

    topic, slices = given["topic"], list(_slices(given))
    watch = Stopwatch(given["pids"])
    async with AIOKafkaProducer(
        bootstrap_servers=given["kafka"], enable_idempotence=True, compression_type="zstd", linger_ms=5
    ) as producer:
        await producer.partitions_for(topic)
        watch.start()
        for some in slices:
            sent = [
                await producer.send(topic, record.value, record.key.encode(), partition)
                for partition, record in some
            ]
            await asyncio.gather(*sent)
        watch.lap()
    return watch.result(given["events"])


async def driver(given: dict[str, Any]) -> Measured:
    """The bus's ``publish``, records encoded before."""
    slices = [[record for _, record in some] for some in _slices(given)]
    async with _bus(given) as bus:

        async def publish(some: list[Record]) -> int:
            await bus.publish(given["topic"], some)
            return len(some)

        return await _published(given, bus, slices, publish)


async def producer(given: dict[str, Any]) -> Measured:
    """From columns to the bus, as a producer does it."""
    batch = ticks.ticks(given["events"] - 1, given["symbols"])
    framer = Framer(PARTITIONS, given["codec"])
    async with _bus(given) as bus:

        async def publish(rows: slice) -> int:
            parts: dict[int, list[Record]] = {}
            for parcel in framer.parcels(batch.take(rows)):
                parts.setdefault(parcel.partition, []).extend(parcel.records)
            publishing = (bus.publish(given["topic"], some, partition=p) for p, some in parts.items())
            await asyncio.gather(*publishing)
            return sum(map(len, parts.values()))

        slices = [slice(i, i + SLICE) for i in range(0, len(batch), SLICE)]
        return await _published(given, bus, slices, publish)


async def _published(
    given: dict[str, Any], bus: Bus, slices: Sequence[Any], publish: Callable[[Any], Awaitable[int]]
) -> Measured:
    """``publish`` tells how many records it has published."""
    watch = Stopwatch(given["pids"])
    await bus.ensure_topic(given["topic"], PARTITIONS)
    watch.start()
    records = sum([await publish(some) for some in slices])
    watch.lap()
    [status] = await bus.status([given["topic"]])
    if status.records != records:
        raise RuntimeError(f"the topic has {status.records} records, {records} were published")
    return watch.result(given["events"])


def _bus(given: dict[str, Any]) -> Bus:
    from market_data_pipeline.streaming import drivers

    return drivers.open_bus(given["bus"], given[given["bus"]])


def _slices(given: dict[str, Any]) -> Iterator[list[tuple[int, Record]]]:
    """JSON events with their partitions."""
    batch = ticks.ticks(given["events"] - 1, given["symbols"])
    records = [record for parcel in Framer(1, "json").parcels(batch) for record in parcel.records]
    found = [(partition_of(record.key, PARTITIONS), record) for record in records]
    for i in range(0, len(found), SLICE):
        yield found[i : i + SLICE]
