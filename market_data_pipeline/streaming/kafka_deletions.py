"""Single records taken out of a Kafka partition, which Kafka itself cannot do.

It removes from the beginning of a partition only. So what is deleted is entered into a compacted topic beside the
topic, one entry a record, and left out of every read from then on; and when everything up to some record is deleted,
Kafka removes it for good and the entries go too. Records that are not at the beginning stay on the brokers' disks,
where another program can still read them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from aiokafka.protocol.admin import DeleteRecordsRequest

from market_data_core.errors import BusError
from market_data_pipeline.streaming.bus import Offset, Record
from market_data_pipeline.streaming.kafka_errors import check
from market_data_pipeline.streaming.kafka_link import TIMEOUT, KafkaLink
from market_data_pipeline.streaming.kafka_reading import KafkaReader
from market_data_pipeline.streaming.kafka_topics import Topics

PREFIX: Final = "__deleted."
_COMPACTED: Final = {"cleanup.policy": "compact", "max.message.bytes": str(1 << 20)}
_PAGE: Final = 10_000
_GONE: Final = b"1"

Publish = Callable[[str, Sequence[Record], int], Awaitable[None]]


class Deletions:
    """The registry of what is deleted, read again before each use, from where it was read before."""

    def __init__(self, link: KafkaLink, topics: Topics, publish: Publish) -> None:
        self._link = link
        self._topics = topics
        self._publish = publish
        self._reader = KafkaReader(link)
        self._read_to: dict[str, Offset] = {}
        self._gone: dict[str, dict[int, set[Offset]]] = {}

    async def of(self, topic: str, partition: int) -> frozenset[Offset]:
        """The offsets deleted from a partition."""
        return frozenset((await self._look(topic)).get(partition, ()))

    async def add(self, topic: str, partition: int, offsets: Sequence[Offset]) -> int:
        """Delete records; how many of them were there."""
        first, end = (await self._reader.bounds(topic, [partition]))[partition]
        known = await self.of(topic, partition)
        new = sorted({o for o in offsets if first <= o < end} - known)
        if new:
            await self._topics.create(PREFIX + topic, 1, _COMPACTED)
            await self._publish(PREFIX + topic, [Record(f"{partition}:{o}", _GONE) for o in new], 0)
        await self._sink(topic, partition, first, end)
        return len(new)

    async def remove_before(self, topic: str, bounds: dict[int, Offset]) -> None:
        """Remove for good what lies before an offset of each partition."""
        for node, partitions in (await self._link.leaders(topic, bounds)).items():
            rows = [(p, bounds[p]) for p in partitions]
            response = await self._link.send(node, DeleteRecordsRequest([(topic, rows)], int(TIMEOUT * 1000)))
            with self._link.translated():
                codes = [row[2] for answer in response.topics for row in answer[1]]
                for code in codes:
                    check(code, topic)

    async def _sink(self, topic: str, partition: int, first: Offset, end: Offset) -> None:
        """Have Kafka remove what is deleted up to the first record that is not."""
        gone = (await self._look(topic)).get(partition, set())
        bound = first
        while bound in gone and bound < end:
            bound += 1
        if bound > first:
            await self.remove_before(topic, {partition: bound})
        if done := sorted(o for o in gone if o < bound):
            # An empty value is what compaction takes an entry out by.
            await self._publish(PREFIX + topic, [Record(f"{partition}:{o}", b"") for o in done], 0)

    async def _look(self, topic: str) -> dict[int, set[Offset]]:
        registry = PREFIX + topic
        gone = self._gone.setdefault(topic, {})
        if len(registry) > 249 or not await self._topics.count(registry):
            return gone
        first, end = (await self._reader.bounds(registry, [0]))[0]
        start = max(self._read_to.get(registry, 0), first)
        while start < end:
            records = await self._reader.records(registry, 0, start, _PAGE, end)
            for record in records:
                number, _, offset = (record.key or b"").decode().partition(":")
                if not (number.isdecimal() and offset.isdecimal()):
                    raise BusError(f"topic {registry} holds an entry that is not of mdp: remove the topic")
                here = gone.setdefault(int(number), set())
                (here.add if record.value else here.discard)(int(offset))
            start = records[-1].offset + 1 if records else end
        self._read_to[registry] = start
        return gone
