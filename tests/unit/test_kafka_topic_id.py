"""What a broker says of a topic's id, also brokers that are not to be had here."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import errors as kafka

from market_data_core.errors import BusError, BusUnavailable
from market_data_pipeline.streaming.kafka_errors import explain
from market_data_pipeline.streaming.kafka_link import KafkaLink
from market_data_pipeline.streaming.kafka_topic_id import topic_id

GIVEN = uuid.UUID("6d64702d-7465-7374-732d-6b61666b6131")


class Told(KafkaLink):
    """A link to a broker with one answer, or that does not know the request."""

    def __init__(self, code: int = 0, given: uuid.UUID | None = None, *, old: bool = False) -> None:
        self.where = "broker"
        self._told: list[tuple[Any, ...]] = [(code, "t", given or uuid.UUID(int=0), False, [], 0, {})]
        self._old = old

    async def send(self, node: int, request: Any) -> Any:
        return await self.ask(request)

    async def ask(self, request: Any) -> Any:
        versions = {3: (0, 9 if self._old else 13)}
        assert request.prepare(versions).API_VERSION == 10
        return SimpleNamespace(topics=self._told)

    @contextmanager
    def translated(self) -> Iterator[None]:
        try:
            yield
        except kafka.KafkaError as error:
            raise explain(error, self.where) from error


async def test_the_id_is_written_as_by_kafkas_tools() -> None:
    assert await topic_id(Told(given=GIVEN), "t") == "bWRwLXRlc3RzLWthZmthMQ"
    assert await topic_id(Told(given=GIVEN), "t", 1) == "bWRwLXRlc3RzLWthZmthMQ"


async def test_it_is_known_also_while_the_topic_has_no_leader() -> None:
    assert await topic_id(Told(kafka.LeaderNotAvailableError.errno, GIVEN), "t") == "bWRwLXRlc3RzLWthZmthMQ"


async def test_brokers_before_ids_give_none() -> None:
    assert await topic_id(Told(old=True), "t") == ""
    assert await topic_id(Told(), "t") == ""


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        (kafka.UnknownTopicOrPartitionError.errno, BusUnavailable, "topic t is not known in Kafka at broker"),
        (kafka.TopicAuthorizationFailedError.errno, BusError, "lacks a permission"),
    ],
)
async def test_no_answer_is_not_taken_for_none(code: int, error: type[BusError], said: str) -> None:
    with pytest.raises(error, match=said):
        await topic_id(Told(code), "t")
