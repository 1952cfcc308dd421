"""Onto the bus: what a commit left in the outbox, and what could not be processed."""

from __future__ import annotations

from collections.abc import Iterable

from market_data_core.codecs import DeadLetter, encode_dead_letter
from market_data_core.protocols import OutboxRecord
from market_data_core.signal_codec import parcel_of
from market_data_pipeline.streaming.bus import Bus, Record


class Publisher:
    """Writes to the topics that follow from ``source``, making them where they do not exist."""

    def __init__(self, bus: Bus, source: str, dead_letter_topic: str) -> None:
        self._bus = bus
        self._source = source
        self._dead_letter_topic = dead_letter_topic

    async def publish(self, row: OutboxRecord) -> None:
        """Write one row of the outbox: a frame as it is, a parcel as the records in it."""
        partitions = await self._topic(row.topic)
        parcel = parcel_of(row.value)
        records = [Record(row.key, row.value, row.lane)]
        if parcel is not None:
            records = [Record(key, value, row.lane) for key, value in parcel]
        await self._bus.publish(row.topic, records, partition=row.partition % partitions)

    async def bury(self, letters: Iterable[DeadLetter]) -> None:
        """Write what could not be processed to the dead letter topic."""
        topic = self._dead_letter_topic
        await self._bus.ensure_topic(topic, 1)
        records = [Record(letter.key, encode_dead_letter(letter), None) for letter in letters]
        await self._bus.publish(topic, records, partition=0)

    async def _topic(self, topic: str) -> int:
        """Partitions of an output topic. One that does not exist yet gets as many as the input has, so that a symbol
        keeps its partition from events to bars; dead letters need one."""
        wanted = 1
        if topic != self._dead_letter_topic:
            wanted = max(1, await self._bus.partitions(self._source))
        return await self._bus.ensure_topic(topic, wanted)
