"""Every error of aiokafka becomes one of mdp's, retriable where trying again can help."""

from __future__ import annotations

import inspect

import pytest
from aiokafka import errors as kafka

from market_data_core.errors import BusError, BusUnavailable
from market_data_pipeline.streaming.kafka_errors import explain

EVERY = [
    found
    for _, found in inspect.getmembers(kafka, inspect.isclass)
    if issubclass(found, kafka.KafkaError) and found not in (kafka.NoError, kafka.BrokerResponseError)
]


def made(kind: type[kafka.KafkaError]) -> kafka.KafkaError:
    return kind("about it")


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_what_aiokafka_would_retry_is_retried(kind: type[kafka.KafkaError]) -> None:
    explained = explain(made(kind), "k:9092")
    assert isinstance(explained, BusError)
    assert "k:9092" in str(explained)
    if kind.retriable:
        assert explained.retriable


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError("no"),
        TimeoutError(),
        kafka.KafkaConnectionError("x"),
        kafka.UnknownMemberIdError(),
    ],
)
def test_what_passes_is_unavailable(error: Exception) -> None:
    assert isinstance(explain(error, "k:9092"), BusUnavailable)


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (kafka.SaslAuthenticationFailed("bad"), "bus.kafka.password"),
        (kafka.TopicAuthorizationFailedError("t"), "kafka-acls"),
        (kafka.MessageSizeTooLargeError("big"), "max.message.bytes"),
        (kafka.InvalidSessionTimeoutError("x"), "lease_ms"),
        (kafka.InconsistentGroupProtocolError("x"), "consumer_group"),
        (kafka.InvalidReplicationFactorError("x"), "replication_factor"),
    ],
)
def test_what_stays_wrong_names_the_fix(error: kafka.KafkaError, fix: str) -> None:
    explained = explain(error, "k:9092")
    assert not explained.retriable
    assert fix in str(explained)


def test_a_password_is_not_repeated() -> None:
    told = str(explain(kafka.KafkaConnectionError("kafka://u:geheim@h:1 is down, password=geheim"), "k:9092"))
    assert "geheim" not in told
