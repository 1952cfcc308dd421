"""Which topics a Kafka cluster has, and how mdp creates those that are missing."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiokafka import errors as kafka
from aiokafka.protocol.admin import CreateTopicsRequest
from aiokafka.protocol.metadata import MetadataRequest

from market_data_core.errors import BusError, BusUnavailable
from market_data_pipeline.streaming.kafka_errors import check
from market_data_pipeline.streaming.kafka_link import TIMEOUT, KafkaLink
from market_data_pipeline.streaming.partitions import check_clash, check_partitions, check_topic

LARGEST_BATCH: Final = 16 << 20
"""Bytes: frames are large, and Kafka's default takes no more than 1 MiB."""
COPIES: Final = 3
"""Replicas of a topic, where there are as many brokers and nobody said otherwise."""
KEPT: Final = {
    # What a group has not acknowledged must not go by age; mdp trims what every group is done with.
    "retention.ms": "-1",
    "retention.bytes": "-1",
    "cleanup.policy": "delete",
    # Space comes back by whole segments.
    "segment.bytes": str(128 << 20),
    "max.message.bytes": str(LARGEST_BATCH),
    # The age of a record goes by one clock, and grows along a partition.
    "message.timestamp.type": "LogAppendTime",
}
_LOOK_AGAIN: Final = 0.02


class Topics:
    """Topics of the cluster. Counts are remembered, since the count changes only while nobody uses a topic."""

    def __init__(self, link: KafkaLink) -> None:
        self._link = link
        self._known: dict[str, int] = {}

    async def ensure(self, topic: str, partitions: int) -> int:
        check_topic(topic)
        check_partitions(topic, partitions)
        if not await self.count(topic):
            check_clash(topic, partitions, (await self.all()).items())
            await self.create(topic, partitions, KEPT)
        return self._known[topic]

    async def create(self, topic: str, partitions: int, settings: dict[str, str]) -> None:
        """Create ``topic`` unless somebody else does at the same time; return when it can be used."""
        brokers = len(await self._link.brokers())
        copies = self._link.address.replication_factor or min(COPIES, brokers)
        # One of them may be away, and what is acknowledged is still on two.
        settings = {**settings, "min.insync.replicas": str(max(1, copies - 1))}
        row: Any = (topic, partitions, copies, [], list(settings.items()))
        request = CreateTopicsRequest([row], int(TIMEOUT * 1000), False)
        metadata = await self._metadata([])
        response = await self._link.send(metadata.controller_id, request)
        with self._link.translated():
            for _, code, *message in response.topic_errors:
                if code != kafka.TopicAlreadyExistsError.errno:
                    check(code, (message or [""])[0] or topic)
        for _ in range(int(TIMEOUT / _LOOK_AGAIN)):
            if await self.count(topic):
                return
            await asyncio.sleep(_LOOK_AGAIN)
        raise BusUnavailable(
            f"topic {topic} was created, and Kafka at {self._link.where} has no leader for it yet"
        )

    async def count(self, topic: str) -> int:
        """How many partitions ``topic`` has; 0 when there is none."""
        if topic not in self._known:
            found = _counts(await self._metadata([check_topic(topic)])).get(topic, 0)
            if not found:
                return 0
            self._known[topic] = found
        return self._known[topic]

    async def existing(self, topic: str) -> int:
        """As :meth:`count`.

        Raises:
            BusError: there is no such topic.
        """
        count = await self.count(topic)
        if not count:
            raise BusError(f"there is no topic {topic} in Kafka at {self._link.where}: create it first")
        return count

    async def all(self) -> dict[str, int]:
        """Every topic but Kafka's own and ours for ourselves, with its partitions, by name."""
        found = _counts(await self._metadata(None))
        return {topic: count for topic, count in sorted(found.items()) if not topic.startswith("__")}

    def forget(self, topic: str) -> None:
        """Look again next time."""
        self._known.pop(topic, None)

    async def _metadata(self, topics: list[str] | None) -> Any:
        return await self._link.ask(MetadataRequest(topics, allow_auto_topic_creation=False))


def _counts(metadata: Any) -> dict[str, int]:
    """Partitions by topic, of topics whose partitions all have a leader."""
    out = {}
    for code, topic, internal, partitions in metadata.topics:
        led = all(leader >= 0 for _, _, leader, *_ in partitions)
        if not internal and code in (0, kafka.LeaderNotAvailableError.errno) and partitions:
            out[topic] = len(partitions) if led or code == 0 else 0
    return out
