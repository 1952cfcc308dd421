"""Publishing to Kafka: aiokafka's idempotent producer, fed with whole batches."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import ProducerClosed

from market_data_core.errors import BusError
from market_data_pipeline.streaming.bus import Record
from market_data_pipeline.streaming.kafka_link import RETRY_MS, TIMEOUT, KafkaLink
from market_data_pipeline.streaming.kafka_records import headers
from market_data_pipeline.streaming.kafka_topics import LARGEST_BATCH

BATCH_BYTES: Final = 256 << 10
"""What one batch of records holds before it is compressed, unless a single record is larger."""

SLOWEST: Final = 1 << 20
"""Bytes a second: what is published slower than that is taken for an outage."""


class KafkaPublisher:
    """One producer, made on first use.

    One call is under way at a time, and after one that failed the producer is another: what became of the batches of
    the one before is not known, and a number that it gave away twice would make Kafka take a new batch for a copy.
    """

    def __init__(self, link: KafkaLink) -> None:
        self._link = link
        self._producer: AIOKafkaProducer | None = None
        self._turn = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    async def publish(self, topic: str, parts: dict[int, Sequence[Record]]) -> None:
        """Append the records of each partition, in order. On return every in-sync replica has them.

        Raises:
            BusUnavailable: it failed, and some may have been appended.
        """
        size = sum(len(record.value) for records in parts.values() for record in records)
        async with self._turn:
            try:
                with self._link.translated():
                    async with asyncio.timeout(TIMEOUT + size / SLOWEST):
                        producer = await self._started()
                        await _send(producer, topic, parts)
            except BaseException:
                self._discard()
                raise

    async def close(self) -> None:
        async with self._turn:
            producer, self._producer = self._producer, None
            if producer is not None:
                await producer.stop()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _started(self) -> AIOKafkaProducer:
        if self._producer is None:
            producer = AIOKafkaProducer(
                client_id="mdp",
                enable_idempotence=True,
                compression_type="lz4",
                max_batch_size=BATCH_BYTES,
                max_request_size=LARGEST_BATCH,
                request_timeout_ms=int(TIMEOUT * 1000),
                retry_backoff_ms=RETRY_MS,
                **self._link.address.options(),
            )
            try:
                await producer.start()
            except BaseException:
                await producer.stop()
                await self._link.knock()
                raise
            self._producer = producer
        return self._producer

    def _discard(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            task = asyncio.create_task(_abandon(producer), name="abandon a producer")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


async def _abandon(producer: AIOKafkaProducer) -> None:
    """Close ``producer`` with what it has not sent. It would try for ever, since aiokafka gives up on no batch of an
    idempotent producer, and has no call to end that."""
    await producer._sender.close()
    producer._message_accumulator.fail_all(ProducerClosed())
    await producer.stop()


async def _send(producer: AIOKafkaProducer, topic: str, parts: dict[int, Sequence[Record]]) -> None:
    sent = [
        await producer.send_batch(batch, topic, partition=partition)
        for partition, records in parts.items()
        for batch in _batches(producer, records)
    ]
    # All of them, so that no error is left behind.
    for result in await asyncio.gather(*sent, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def _batches(producer: AIOKafkaProducer, records: Sequence[Record]) -> Iterable[Any]:
    """The records in batches that are full, or the last."""
    batch = producer.create_batch()
    for record in records:
        row = {
            "key": record.key.encode(),
            "value": record.value,
            "timestamp": None,
            "headers": headers(record),
        }
        if batch.append(**row) is None:
            batch.close()
            yield batch
            batch = producer.create_batch()
            if batch.append(**row) is None:
                raise BusError(
                    f"a record of {len(record.value)} bytes does not fit into a batch of Kafka: make it smaller"
                )
    if batch.record_count():
        batch.close()
        yield batch
