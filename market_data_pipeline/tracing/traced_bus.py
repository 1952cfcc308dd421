"""A bus whose publishing is a span, when it is sampled or what is published comes of traced records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, Tracer

from market_data_pipeline.streaming.bus import (
    Bus,
    Consumer,
    Offset,
    Record,
    StoredRecord,
    TopicStatus,
    TrimResult,
)
from market_data_pipeline.streaming.repartition import TopicSwitch
from market_data_pipeline.tracing import followed as following


class TracedBus(Bus):
    """See :class:`Bus`. ``begins``: a publish begins a trace, if the sampler says so; else only what a traced flush
    publishes is traced, in its trace.

    The first record of a traced publish carries the context: however many records or events are published at once,
    they are one span, and what is not sampled looks as without traces.
    """

    def __init__(self, bus: Bus, tracer: Tracer, *, begins: bool) -> None:
        self._bus = bus
        self._tracer = tracer
        self._begins = begins
        self.name = bus.name

    async def publish(self, topic: str, records: Sequence[Record], *, partition: int | None = None) -> None:
        flush = following.flush()
        if flush is not None:
            await self._traced(topic, records, partition, flush.context, flush.links)
        elif self._begins and records:
            await self._traced(topic, records, partition, None, [])
        else:
            await self._bus.publish(topic, records, partition=partition)

    async def _traced(
        self,
        topic: str,
        records: Sequence[Record],
        partition: int | None,
        context: Context | None,
        links: Sequence[Link],
    ) -> None:
        with self._tracer.start_as_current_span(
            f"publish {topic}", context, kind=SpanKind.PRODUCER, links=links
        ) as span:
            if span.is_recording():
                span.set_attributes(
                    {
                        "messaging.operation.type": "send",
                        "messaging.system": self.name,
                        "messaging.destination.name": topic,
                        "messaging.batch.message_count": len(records),
                        "mdp.bytes": sum(len(record.value) for record in records),
                    }
                )
                if partition is not None:
                    span.set_attribute("messaging.destination.partition.id", str(partition))
                records = [replace(records[0], traceparent=following.written(span)), *records[1:]]
            await self._bus.publish(topic, records, partition=partition)

    async def ensure_topic(self, topic: str, partitions: int) -> int:
        return await self._bus.ensure_topic(topic, partitions)

    async def partitions(self, topic: str) -> int:
        return await self._bus.partitions(topic)

    async def topic_id(self, topic: str) -> str:
        return await self._bus.topic_id(topic)

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
        return self._bus.consumer(
            topic, group, member, max_records=max_records, lease_ms=lease_ms, static=static
        )

    async def read(self, topic: str, partition: int, start: Offset | None, limit: int) -> list[StoredRecord]:
        return await self._bus.read(topic, partition, start, limit)

    async def newest(self, topic: str, partition: int, limit: int) -> list[StoredRecord]:
        return await self._bus.newest(topic, partition, limit)

    async def end_offset(self, topic: str, partition: int) -> Offset | None:
        return await self._bus.end_offset(topic, partition)

    async def delete(self, topic: str, partition: int, offsets: Sequence[Offset]) -> int:
        return await self._bus.delete(topic, partition, offsets)

    async def status(self, topics: Sequence[str] | None = None) -> list[TopicStatus]:
        return await self._bus.status(topics)

    async def trim(self, topic: str, *, retention_ms: int, max_records: int) -> TrimResult:
        return await self._bus.trim(topic, retention_ms=retention_ms, max_records=max_records)

    def topic_switch(self, topic: str, old: int, new: int) -> TopicSwitch:
        return self._bus.topic_switch(topic, old, new)

    def format_offset(self, offset: Offset) -> str:
        return self._bus.format_offset(offset)

    def parse_offset(self, text: str) -> Offset:
        return self._bus.parse_offset(text)

    async def ping(self) -> Mapping[str, str]:
        return await self._bus.ping()

    async def close(self) -> None:
        await self._bus.close()
