"""More partitions on Kafka: they are added, and keys go elsewhere. Kafka takes none away."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from aiokafka import errors as kafka
from aiokafka.protocol.admin import CreatePartitionsRequest
from aiokafka.protocol.metadata import MetadataRequest

from market_data_core.errors import BusError, BusUnavailable
from market_data_pipeline.streaming.bus import Bus, Offset, Record, StoredRecord
from market_data_pipeline.streaming.kafka_errors import check
from market_data_pipeline.streaming.kafka_link import TIMEOUT, KafkaLink
from market_data_pipeline.streaming.kafka_publisher import KafkaPublisher
from market_data_pipeline.streaming.kafka_topics import Topics
from market_data_pipeline.streaming.repartition import TopicSwitch

_LOOK_AGAIN: Final = 0.05


class KafkaSwitch(TopicSwitch):
    """The partitions are there from :meth:`prepare` on, since Kafka has no other way."""

    def __init__(
        self,
        bus: Bus,
        link: KafkaLink,
        topics: Topics,
        publisher: KafkaPublisher,
        topic: str,
        old: int,
        new: int,
    ) -> None:
        super().__init__(topic, old, new)
        self._bus = bus
        self._link = link
        self._topics = topics
        self._publisher = publisher

    async def check(self) -> None:
        if self.new < self.old:
            raise BusError(
                f"topic {self.topic} has {self.old} partitions and Kafka takes none away: "
                f"use more than {self.old}, or another topic"
            )

    async def prepare(self, *, resumed: bool) -> None:
        metadata = await self._link.ask(MetadataRequest([], allow_auto_topic_creation=False))
        asked: Any = (self.topic, (self.new, None))
        request = CreatePartitionsRequest([asked], int(TIMEOUT * 1000), False)
        response = await self._link.send(metadata.controller_id, request)
        with self._link.translated():
            for topic, code, message in response.topic_errors:
                # An earlier switch has added them already.
                if not (resumed and code == kafka.InvalidPartitionsError.errno):
                    check(code, message or topic)
        for _ in range(int(TIMEOUT / _LOOK_AGAIN)):
            if await self._led():
                # It knows the partitions of when it was started; the next use starts another.
                await self._publisher.close()
                return
            await asyncio.sleep(_LOOK_AGAIN)
        raise BusUnavailable(
            f"topic {self.topic} was given {self.new} partitions, and Kafka at {self._link.where} has no leader "
            "for all of them yet: run the same command again"
        )

    async def _led(self) -> bool:
        """Whether the brokers know of all partitions, and each has a leader that answers."""
        self._topics.forget(self.topic)
        if await self._topics.count(self.topic) != self.new:
            return False
        try:
            await self._link.refresh(self.topic)
            for partition in range(self.old, self.new):
                await self.newest(partition)
        except BusUnavailable:
            return False
        return True

    async def read(self, partition: int, start: Offset, limit: int) -> list[StoredRecord]:
        return await self._bus.read(self.topic, partition, start, limit)

    async def append(self, partition: int, records: Sequence[Record]) -> None:
        await self._bus.publish(self.topic, records, partition=partition)

    async def newest(self, partition: int) -> Offset | None:
        return await self._bus.end_offset(self.topic, partition)

    async def first_after(self, partition: int, offset: Offset | None) -> Offset | None:
        found = await self._bus.read(self.topic, partition, None if offset is None else offset + 1, 1)
        return found[0].offset if found else None

    async def switch(self) -> None:
        self._topics.forget(self.topic)
        found = await self._topics.count(self.topic)
        if found != self.new:
            raise BusError(
                f"topic {self.topic} has {found} partitions instead of {self.new}: somebody else has changed it"
            )

    async def retire(self, keep_ms: int) -> None:
        """Nothing: every old partition is a partition still, and is trimmed like all."""
