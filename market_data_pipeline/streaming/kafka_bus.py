"""The Kafka driver: a topic is a topic, a group is a group. Kafka 2.4 and later; written for 4.1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from weakref import WeakSet

from aiokafka.protocol.metadata import MetadataRequest

from market_data_core.clock import Clock, SystemClock
from market_data_core.errors import BusError, BusUnavailable
from market_data_core.redact import SecretUrl
from market_data_pipeline.streaming.bus import (
    Bus,
    Consumer,
    Offset,
    Record,
    StoredRecord,
    TopicStatus,
    TrimResult,
)
from market_data_pipeline.streaming.kafka_address import Address
from market_data_pipeline.streaming.kafka_consumer import KafkaConsumer
from market_data_pipeline.streaming.kafka_deletions import Deletions
from market_data_pipeline.streaming.kafka_group import Membership
from market_data_pipeline.streaming.kafka_link import KafkaLink
from market_data_pipeline.streaming.kafka_publisher import KafkaPublisher
from market_data_pipeline.streaming.kafka_reading import KafkaReader
from market_data_pipeline.streaming.kafka_records import stored
from market_data_pipeline.streaming.kafka_repartition import KafkaSwitch
from market_data_pipeline.streaming.kafka_status import KafkaStatus
from market_data_pipeline.streaming.kafka_topic_id import topic_id
from market_data_pipeline.streaming.kafka_topics import Topics
from market_data_pipeline.streaming.kafka_trim import KafkaTrim
from market_data_pipeline.streaming.partitions import check_partitions, check_topic, grouped


class KafkaBus(Bus):
    """See :class:`Bus`. ``uri``: ``host:port[,host:port...]``, or as :class:`Address` has it."""

    name = "kafka"

    def __init__(self, uri: str | SecretUrl, *, clock: Clock | None = None) -> None:
        self._address = Address.parse(uri.reveal() if isinstance(uri, SecretUrl) else uri)
        self._clock = clock or SystemClock()
        self._link = KafkaLink(self._address)
        self._topics = Topics(self._link)
        self._publisher = KafkaPublisher(self._link)
        self._reader = KafkaReader(self._link)
        self._deletions = Deletions(self._link, self._topics, self._append)
        self._consumers: WeakSet[KafkaConsumer] = WeakSet()

    async def ensure_topic(self, topic: str, partitions: int) -> int:
        return await self._topics.ensure(topic, partitions)

    async def partitions(self, topic: str) -> int:
        return await self._topics.count(topic)

    async def topic_id(self, topic: str) -> str:
        return await topic_id(self._link, check_topic(topic))

    async def publish(self, topic: str, records: Sequence[Record], *, partition: int | None = None) -> None:
        parts = grouped(records, await self._topics.existing(topic), partition)
        if not parts:
            return
        try:
            await self._publisher.publish(topic, parts)
        except BusUnavailable:
            # It may come back without its data.
            self._topics.forget(topic)
            raise

    def consumer(
        self,
        topic: str,
        group: str,
        member: str,
        *,
        max_records: int = 5000,
        lease_ms: int = 10_000,
        static: bool = False,
    ) -> Consumer:
        check_topic(topic)

        def membership(partitions: int) -> Membership:
            return Membership(
                self._address,
                topic,
                partitions,
                group,
                member,
                lease_ms=lease_ms,
                static=static,
                clock=self._clock,
            )

        consumer = KafkaConsumer(
            # A fetch keeps its connection waiting, so members have their own.
            KafkaLink(self._address, name=member),
            topic,
            lambda: self._topics.existing(topic),
            membership,
            self._deletions,
            max_records=max_records,
            clock=self._clock,
        )
        self._consumers.add(consumer)
        return consumer

    async def read(self, topic: str, partition: int, start: Offset | None, limit: int) -> list[StoredRecord]:
        first, end = await self._bounds(topic, partition)
        gone = await self._deletions.of(topic, partition)
        begin = max(first, start or 0)
        return stored(await self._reader.records(topic, partition, begin, limit, end, gone))

    async def newest(self, topic: str, partition: int, limit: int) -> list[StoredRecord]:
        first, end = await self._bounds(topic, partition)
        gone = await self._deletions.of(topic, partition)
        begin, found = end, 0
        while begin > first and found < limit:
            begin -= 1
            found += begin not in gone
        return stored(await self._reader.records(topic, partition, begin, limit, end, gone))

    async def end_offset(self, topic: str, partition: int) -> Offset | None:
        first, end = await self._bounds(topic, partition)
        gone = await self._deletions.of(topic, partition)
        last = end - 1
        while last >= first and last in gone:
            last -= 1
        return last if last >= first else None

    async def delete(self, topic: str, partition: int, offsets: Sequence[Offset]) -> int:
        await self._bounds(topic, partition)
        return await self._deletions.add(topic, partition, offsets) if offsets else 0

    async def status(self, topics: Sequence[str] | None = None) -> list[TopicStatus]:
        if topics is None:
            known = await self._topics.all()
        else:
            known = {topic: await self._topics.count(topic) for topic in topics}
        # What members of this process were handed is told in time; those of others tell it every second.
        for consumer in list(self._consumers):
            if consumer.topic in known:
                await consumer.mark()
        return await KafkaStatus(self._link).topics(known)

    async def trim(self, topic: str, *, retention_ms: int, max_records: int) -> TrimResult:
        count = await self._topics.existing(topic)
        trim = KafkaTrim(self._link, self._deletions)
        return await trim.topic(topic, count, retention_ms=retention_ms, max_records=max_records)

    def topic_switch(self, topic: str, old: int, new: int) -> KafkaSwitch:
        check_partitions(topic, new)
        return KafkaSwitch(self, self._link, self._topics, self._publisher, topic, old, new)

    def format_offset(self, offset: Offset) -> str:
        return str(offset)

    def parse_offset(self, text: str) -> Offset:
        if not (text.isascii() and text.isdecimal()):
            raise ValueError(f"{text!r} is not an offset of Kafka, such as 17")
        return int(text)

    async def ping(self) -> Mapping[str, str]:
        """Facts about the cluster."""
        metadata = await self._link.ask(MetadataRequest([], allow_auto_topic_creation=False))
        brokers = len(metadata.brokers)
        copies = self._address.replication_factor or min(3, brokers)
        durability = f"acks all, {copies} replica{'s' * (copies > 1)} of a new topic"
        if copies == 1:
            durability += ": what was written last can be lost when the broker's machine dies"
        return {
            "server": f"Kafka, {brokers} broker{'s' * (brokers > 1)}",
            "where": self._link.where,
            "durability": durability,
        }

    async def close(self) -> None:
        await self._publisher.close()
        await self._link.close()

    async def _bounds(self, topic: str, partition: int) -> tuple[Offset, Offset]:
        count = await self._topics.existing(topic)
        if not 0 <= partition < count:
            raise BusError(f"topic {topic} has no partition {partition}: it has {count}, counted from 0")
        return (await self._reader.bounds(topic, [partition]))[partition]

    async def _append(self, topic: str, records: Sequence[Record], partition: int) -> None:
        await self._publisher.publish(topic, {partition: records})
