"""Measured processes that read a Kafka topic of one partition: aiokafka's own loop, the driver's, the micro-batcher."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from benchmarks.measure import Measured, Stopwatch
from benchmarks.reading import COUNT, MEMBER, watched


async def getmany(given: dict[str, Any]) -> Measured:
    """``AIOKafkaConsumer.getmany`` as it is, without a group, and nothing else."""
    from aiokafka import AIOKafkaConsumer, TopicPartition

    watch, read = Stopwatch(given["pids"]), 0
    consumer = AIOKafkaConsumer(bootstrap_servers=given["kafka"], auto_offset_reset="earliest")
    await consumer.start()
    consumer.assign([TopicPartition(given["topic"], 0)])
    await consumer.seek_to_beginning()
    watch.start()
    while read < given["records"]:
        found = await consumer.getmany(timeout_ms=1000, max_records=COUNT)
        read += sum(map(len, found.values()))
    watch.lap()
    await consumer.stop()
    return watch.result(given["events"])


async def driver(given: dict[str, Any]) -> Measured:
    """``poll`` of the driver, as a member of a group that acknowledges at the end."""
    from market_data_pipeline.streaming.kafka_bus import KafkaBus

    watch, read = Stopwatch(given["pids"]), 0
    async with (
        KafkaBus(given["kafka"]) as bus,
        bus.consumer(given["topic"], uuid.uuid4().hex, MEMBER, max_records=COUNT) as consumer,
    ):
        while read < given["records"]:
            poll = await consumer.poll(1.0)
            for partition in poll.assigned:
                await consumer.seek(partition, None)
                watch.start()
            for delivery in poll.deliveries:
                read += len(delivery.values)
        await consumer.ack(0, read - 1)
        watch.lap()
    return watch.result(given["events"])


async def micro_batcher(given: dict[str, Any]) -> Measured:
    """From the first record read to the last commit, with the settings of the product.

    ``given["profile"]``: also say where CPU time went.
    """
    from benchmarks.sampling import Sampler
    from market_data_core.config import Settings
    from market_data_pipeline.cli import batching
    from market_data_pipeline.streaming.kafka_bus import KafkaBus
    from market_data_store import StoreClient

    watch, stop = Stopwatch(given["pids"]), asyncio.Event()
    sampler = Sampler() if given.get("profile") else None
    stats = watched(watch, stop, given["bars"], sampler)
    group = uuid.uuid4().hex
    async with KafkaBus(given["kafka"]) as bus, await StoreClient.connect(given["database"]) as store:
        consumer = batching.micro_batcher(
            Settings(), bus, store, stats, topic=given["topic"], group=group, member=MEMBER
        )
        await consumer.run(stop)
    shares = {} if sampler is None else sampler.shares()
    return watch.result(given["events"], bars=stats.stored, flushes=stats.flushes, shares=shares)
