"""Publishing to Kafka: aiokafka's idempotent producer, fed with whole batches."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import ProducerClosed

from market_data_core.errors import BusError, BusUnavailable
from market_data_pipeline.streaming.bus import Record
from market_data_pipeline.streaming.kafka_link import RETRY_MS, TIMEOUT, KafkaLink
from market_data_pipeline.streaming.kafka_records import headers
from market_data_pipeline.streaming.kafka_topics import LARGEST_BATCH
from market_data_pipeline.streaming.together import Asked, Together

BATCH_BYTES: Final = 256 << 10
"""What one batch of records holds before it is compressed, unless a single record is larger."""

SLOWEST: Final = 1 << 20
"""Bytes a second: what is published slower than that is taken for an outage."""


Parts = Mapping[int, Sequence[Record]]
_Asked = Asked[tuple[str, Parts], None]


class KafkaPublisher:
    """One producer, made on first use. What is asked of it while it is busy goes together, in one request to each
    broker.

    After a failure the producer is another: what became of the batches of the one before is not known, and a number
    that it gave away twice would make Kafka take a new batch for a copy.
    """

    def __init__(self, link: KafkaLink) -> None:
        self._link = link
        self._producer: AIOKafkaProducer | None = None
        self._together = Together(self._send, self._closed)
        self._closing: set[asyncio.Task[None]] = set()

    async def publish(self, topic: str, parts: Parts) -> None:
        """Append the records of each partition, in order. On return every in-sync replica has them.

        Raises:
            BusUnavailable: it failed, and some may have been appended.
            BusError: a record is too large, and none was appended.
        """
        size = sum(len(record.value) for records in parts.values() for record in records)
        await self._together.ask((topic, parts), size)

    async def close(self) -> None:
        await self._together.close()
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _send(self, some: Sequence[_Asked]) -> None:
        size = sum(asked.size for asked in some)
        try:
            with self._link.translated():
                async with asyncio.timeout(TIMEOUT + size / SLOWEST):
                    await self._appended(await self._started(), some)
        except BaseException:
            self._discard()
            raise

    async def _appended(self, producer: AIOKafkaProducer, some: Sequence[_Asked]) -> None:
        """Answer each as soon as all of its batches are appended, or one could not be."""
        ways: dict[tuple[str, int], list[tuple[_Asked, Any]]] = defaultdict(list)
        for asked in some:
            topic, parts = asked.what
            try:
                made = {partition: list(_batches(producer, records)) for partition, records in parts.items()}
            except BusError as error:
                asked.fail(error)
                continue
            for partition, batches in made.items():
                ways[topic, partition] += [(asked, batch) for batch in batches]
        sent: dict[_Asked, list[Awaitable[object]]] = {asked: [] for asked in some if asked.open}

        async def go(topic: str, partition: int, batches: Sequence[tuple[_Asked, Any]]) -> None:
            # The next one of a partition when the one before is on its way.
            for asked, batch in batches:
                sent[asked].append(await producer.send_batch(batch, topic, partition=partition))

        async def outcome(asked: _Asked) -> bool:
            # Of all of them, so that no error is left behind.
            found = await asyncio.gather(*sent[asked], return_exceptions=True)
            errors = [error for error in (refused.get(asked), *found) if isinstance(error, BaseException)]
            if errors:
                asked.fail(self._meaning(errors[0]))
            else:
                asked.answer(None)
            return not errors

        went = await asyncio.gather(*(go(*where, way) for where, way in ways.items()), return_exceptions=True)
        refused = {
            asked: error for way, error in zip(ways.values(), went, strict=True) if error for asked, _ in way
        }
        if not all(await asyncio.gather(*map(outcome, sent))):
            self._discard()

    def _meaning(self, error: BaseException) -> BusError:
        try:
            with self._link.translated():
                raise error
        except BusError as meaning:
            return meaning

    def _closed(self) -> BusUnavailable:
        return BusUnavailable(f"the connection to Kafka at {self._link.where} was closed")

    async def _started(self) -> AIOKafkaProducer:
        if self._producer is None:
            compression = self._link.address.compression
            producer = AIOKafkaProducer(
                client_id="mdp",
                enable_idempotence=True,
                compression_type=None if compression == "none" else compression,
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
    waiting = producer._message_accumulator
    left = [*chain.from_iterable(waiting._batches.values()), *waiting._pending_batches]
    waiting.fail_all(ProducerClosed())
    for batch in left:
        for outcome in (batch.future, batch._drain_waiter):
            if outcome.done() and not outcome.cancelled():
                outcome.exception()  # nobody waits for it any more, and asyncio would complain
    await producer.stop()


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
