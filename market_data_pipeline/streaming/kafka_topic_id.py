"""The id that Kafka gives a topic when it is created (KIP-516): Metadata 10, of which aiokafka knows nothing."""

from __future__ import annotations

import base64
import uuid
from io import BytesIO
from typing import Any, Final

from aiokafka import errors as kafka
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from market_data_core.errors import BusUnavailable
from market_data_pipeline.streaming.kafka_errors import check
from market_data_pipeline.streaming.kafka_link import KafkaLink

_NONE: Final = uuid.UUID(int=0)


class Uuid(AbstractType[uuid.UUID]):
    """16 bytes."""

    @classmethod
    def encode(cls, value: uuid.UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> uuid.UUID:
        return uuid.UUID(bytes=data.read(16))


class MetadataResponse_v10(Response):  # noqa: N801 - as aiokafka names them
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class MetadataRequest_v10(RequestStruct):  # noqa: N801 - as aiokafka names them
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = MetadataResponse_v10
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", Uuid), ("topic", CompactString("utf-8")), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class TopicIdRequest(Request[MetadataRequest_v10]):
    """Metadata of one topic with its id, and not more. Brokers know it from 2.8 on."""

    API_KEY = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: type[MetadataRequest_v10]) -> Any:
        return request_struct_class([(_NONE, self._topic, {})], False, False, False, {})


async def topic_id(link: KafkaLink, topic: str, node: int | None = None) -> str:
    """The id of ``topic`` as the broker ``node`` knows it, or any, and as Kafka's own tools show it. Empty from brokers
    before 2.8, which give none.

    Raises:
        BusUnavailable: the broker knows no such topic, which may be so for a moment when it has come back.
    """
    request = TopicIdRequest(topic)
    try:
        metadata = await (link.ask(request) if node is None else link.send(node, request))
    except NotImplementedError:
        return ""
    ((code, _, found, *_),) = metadata.topics
    if code == kafka.UnknownTopicOrPartitionError.errno:
        raise BusUnavailable(f"topic {topic} is not known in Kafka at {link.where}")
    if found != _NONE:
        return base64.urlsafe_b64encode(found.bytes).decode().rstrip("=")
    with link.translated():
        check(code, topic)
    return ""
