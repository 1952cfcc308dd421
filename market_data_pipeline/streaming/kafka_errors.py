"""What errors of Kafka mean, in mdp's own tree of errors."""

from __future__ import annotations

from typing import Final

from aiokafka import errors as kafka

from market_data_core.errors import BusError, BusUnavailable
from market_data_core.redact import redact

LOOK: Final = "check that it runs, and KAFKA_BOOTSTRAP or bus.kafka.bootstrap"

_LOGIN: Final = (
    kafka.AuthenticationFailedError,
    kafka.AuthenticationMethodNotSupported,
    kafka.SaslAuthenticationFailed,
    kafka.UnsupportedSaslMechanismError,
    kafka.IllegalSaslStateError,
)
_PERMISSION: Final = (
    kafka.TopicAuthorizationFailedError,
    kafka.GroupAuthorizationFailedError,
    kafka.ClusterAuthorizationFailedError,
    kafka.TransactionalIdAuthorizationFailed,
)
_PASSING: Final = (
    kafka.KafkaTimeoutError,
    kafka.KafkaUnavailableError,
    kafka.BrokerNotAvailableError,
    kafka.ReplicaNotAvailableError,
    # Of a group that others join or leave right now.
    kafka.IllegalGenerationError,
    kafka.UnknownMemberIdError,
    kafka.RebalanceInProgressError,
    kafka.MemberIdRequired,
    # Of a producer that lost count of what it sent; the next publish begins with a new one.
    kafka.OutOfOrderSequenceNumber,
    kafka.DuplicateSequenceNumber,
    kafka.InvalidProducerEpoch,
    kafka.UnknownProducerId,
    kafka.ProducerFenced,
    kafka.ProducerClosed,
    # What a fetch brought got damaged on its way; the broker checks what it keeps.
    kafka.CorruptRecordException,
)


def check(code: int, about: object = "") -> None:
    """Raise the error of a response's code, if it is one, as aiokafka's exception."""
    if code:
        raise kafka.for_code(code)(str(about))


def explain(error: BaseException, where: str) -> BusError:
    """What an error of aiokafka or of the socket means, in one sentence with the fix."""
    text = redact(str(error)).strip().rstrip(".") or type(error).__name__
    if isinstance(error, _LOGIN):
        return BusError(
            f"Kafka at {where} refuses the login ({text}): "
            "correct bus.kafka.username, bus.kafka.password and bus.kafka.sasl_mechanism"
        )
    if isinstance(error, _PERMISSION):
        return BusError(f"the user of Kafka at {where} lacks a permission: grant it with kafka-acls ({text})")
    if isinstance(error, kafka.KafkaTimeoutError | kafka.RequestTimedOutError | TimeoutError):
        return BusUnavailable(f"Kafka at {where} did not answer in time: {LOOK}")
    if isinstance(error, kafka.KafkaConnectionError | kafka.NodeNotReadyError | OSError):
        return BusUnavailable(f"Kafka at {where} cannot be reached ({text}): {LOOK}")
    if isinstance(error, kafka.MessageSizeTooLargeError | kafka.RecordListTooLargeError):
        return BusError(
            f"a record is too large for Kafka at {where}: raise max.message.bytes of its topic ({text})"
        )
    if isinstance(error, kafka.InvalidSessionTimeoutError):
        return BusError(
            f"Kafka at {where} takes no lease of this length: set bus.redis.lease_ms between its "
            "group.min.session.timeout.ms and group.max.session.timeout.ms"
        )
    if isinstance(error, kafka.InconsistentGroupProtocolError):
        return BusError(
            f"another program uses the consumer group in Kafka at {where}: take another bus.redis.consumer_group"
        )
    if isinstance(error, kafka.InvalidReplicationFactorError):
        return BusError(
            f"Kafka at {where} has not as many brokers as bus.kafka.replication_factor says: lower it ({text})"
        )
    if isinstance(error, _PASSING) or getattr(error, "retriable", False):
        return BusUnavailable(f"Kafka at {where} cannot take requests now: {text}")
    return BusError(f"Kafka at {where} refused a request: {text}")
