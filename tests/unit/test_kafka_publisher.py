"""What several callers of one producer are told. The producer is none of Kafka's: it does what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka.errors import NotEnoughReplicasError
from aiokafka.producer.message_accumulator import BatchBuilder

from market_data_core.errors import BusError, BusUnavailable
from market_data_pipeline.streaming import kafka_publisher
from market_data_pipeline.streaming.bus import Record
from market_data_pipeline.streaming.kafka_address import Address
from market_data_pipeline.streaming.kafka_link import KafkaLink
from market_data_pipeline.streaming.kafka_publisher import KafkaPublisher


class Producer:
    """``sent``: topic, partition and number of records of each batch, with what the broker is yet to say of it."""

    made: list[Producer]

    def __init__(self, **options: object) -> None:
        self.sent: dict[tuple[str, int, int], asyncio.Future[None]] = {}
        self.ended = False
        self._sender = self._message_accumulator = self
        self._batches: dict[object, list[object]] = {}
        self._pending_batches: set[object] = set()
        self.made.append(self)

    async def start(self) -> None: ...

    async def stop(self) -> None:
        self.ended = True

    async def close(self) -> None: ...

    def fail_all(self, error: Exception) -> None: ...

    def create_batch(self) -> BatchBuilder:
        return BatchBuilder(1000, 0)

    async def send_batch(self, batch: BatchBuilder, topic: str, *, partition: int) -> asyncio.Future[None]:
        if topic == "gone":
            raise NotEnoughReplicasError
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sent[topic, partition, batch.record_count()] = answer
        return answer


@pytest.fixture
async def publisher(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KafkaPublisher]:
    monkeypatch.setattr(kafka_publisher, "AIOKafkaProducer", Producer)
    monkeypatch.setattr(Producer, "made", [], raising=False)
    publisher = KafkaPublisher(KafkaLink(Address.parse("kafka://127.0.0.1:1")))
    yield publisher
    await publisher.close()


def some(count: int, size: int = 1) -> list[Record]:
    return [Record("K", b"x" * size)] * count


def publishing(publisher: KafkaPublisher, topic: str, parts: Any) -> asyncio.Task[None]:
    return asyncio.create_task(publisher.publish(topic, parts))


async def until_sent(count: int, producers: int = 1) -> Producer:
    async with asyncio.timeout(5):
        while len(Producer.made) < producers or len(Producer.made[-1].sent) < count:  # noqa: ASYNC110
            await asyncio.sleep(0)
    return Producer.made[-1]


async def outcome(task: asyncio.Task[None]) -> object:
    async with asyncio.timeout(5):
        [found] = await asyncio.gather(task, return_exceptions=True)
    return found


async def test_all_who_wait_are_on_their_way_before_any_is_answered(publisher: KafkaPublisher) -> None:
    first = publishing(publisher, "t", {0: some(1)})
    producer = await until_sent(1)
    tasks = [publishing(publisher, "t", {n: some(2), n + 1: some(3)}) for n in (1, 3, 5)]
    await asyncio.sleep(0.01)
    assert len(producer.sent) == 1  # one after another
    producer.sent["t", 0, 1].set_result(None)
    await until_sent(7)
    assert list(producer.sent)[1:] == [("t", n, 2 + (n + 1) % 2) for n in range(1, 7)]
    for answer in list(producer.sent.values())[1:]:
        answer.set_result(None)
    assert [await outcome(task) for task in (first, *tasks)] == [None] * 4
    assert Producer.made == [producer]


async def test_what_a_broker_refuses_is_told_to_whose_it_was_and_the_producer_is_another(
    publisher: KafkaPublisher,
) -> None:
    good, bad = publishing(publisher, "t", {0: some(1)}), publishing(publisher, "t", {1: some(2), 2: some(3)})
    gone = publishing(publisher, "gone", {0: some(1)})
    producer = await until_sent(3)
    producer.sent["t", 0, 1].set_result(None)
    assert await outcome(good) is None  # without waiting for the others
    producer.sent["t", 1, 2].set_exception(NotEnoughReplicasError())
    producer.sent["t", 2, 3].set_result(None)
    assert isinstance(await outcome(bad), BusUnavailable)
    assert isinstance(await outcome(gone), BusUnavailable)
    again = publishing(publisher, "t", {0: some(4)})
    other = await until_sent(1, producers=2)
    assert other is not producer
    assert producer.ended
    other.sent["t", 0, 4].set_result(None)
    assert await outcome(again) is None


async def test_a_record_that_is_too_large_is_its_owners_business(
    publisher: KafkaPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, **row: Any) -> object:
        return None if len(row["value"]) > 100 else append(self, **row)

    append = BatchBuilder.append
    monkeypatch.setattr(BatchBuilder, "append", full)
    large = publishing(publisher, "t", {0: some(1), 1: some(1, 101)})
    good = publishing(publisher, "t", {0: some(5)})
    producer = await until_sent(1)
    assert list(producer.sent) == [("t", 0, 5)]
    producer.sent["t", 0, 5].set_result(None)
    refusal = await outcome(large)
    assert isinstance(refusal, BusError)
    assert "101 bytes does not fit" in str(refusal)
    assert await outcome(good) is None
    assert not producer.ended


async def test_closing_tells_those_who_wait(publisher: KafkaPublisher) -> None:
    tasks = [publishing(publisher, "t", {0: some(1)})]
    producer = await until_sent(1)
    tasks.append(publishing(publisher, "t", {0: some(2)}))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await publisher.close()
    found = [await outcome(task) for task in tasks]
    assert all(isinstance(failure, BusUnavailable) and "was closed" in str(failure) for failure in found)
    assert producer.ended


async def test_a_caller_that_gives_up_harms_nobody(publisher: KafkaPublisher) -> None:
    lost = publishing(publisher, "t", {0: some(1)})
    producer = await until_sent(1)
    left, kept = publishing(publisher, "t", {0: some(2)}), publishing(publisher, "t", {0: some(3)})
    await asyncio.sleep(0)
    for task in (lost, left):
        task.cancel()
    await asyncio.sleep(0)
    producer.sent["t", 0, 1].set_result(None)
    await until_sent(2)
    producer.sent["t", 0, 3].set_result(None)
    assert await outcome(kept) is None
    assert Producer.made == [producer]
