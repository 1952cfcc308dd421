"""A topic on its way from one bus to another, by what every driver can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from market_data_core.errors import BusError, BusUnavailable
from market_data_pipeline.streaming.bus import Bus, Offset, Record, StoredRecord
from market_data_pipeline.streaming.repartition import TopicSwitch

_PATIENCE: Final = 30.0


class BusSwitch(TopicSwitch):
    """``topic`` with ``old`` partitions on ``source`` becomes the topic of that name with ``new`` on ``target``.

    What is on the target already stays, as it does when a topic comes back to a bus that it was on before. The source
    is only read.
    """

    def __init__(self, source: Bus, target: Bus, topic: str, old: int, new: int) -> None:
        super().__init__(topic, old, new)
        self._source = source
        self._target = target

    async def check(self) -> None:
        found = await self._target.partitions(self.topic)
        if found not in (0, self.new):
            raise BusError(
                f"topic {self.topic} has {found} partitions on {self._target.name} and needs {self.new}: "
                "delete it there, since what follows a topic has as many partitions as the topic"
            )

    async def prepare(self, *, resumed: bool) -> None:
        await self._target.ensure_topic(self.topic, self.new)
        # Partitions of a topic that was just made answer a moment later.
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(BusUnavailable),
            wait=wait_fixed(0.05),
            stop=stop_after_delay(_PATIENCE),
            reraise=True,
        ):
            with attempt:
                for partition in range(self.new):
                    await self.newest(partition)

    async def read(self, partition: int, start: Offset, limit: int) -> list[StoredRecord]:
        return await self._source.read(self.topic, partition, start, limit)

    async def append(self, partition: int, records: Sequence[Record]) -> None:
        await self._target.publish(self.topic, records, partition=partition)

    async def newest(self, partition: int) -> Offset | None:
        return await self._target.end_offset(self.topic, partition)

    async def first_after(self, partition: int, offset: Offset | None) -> Offset | None:
        start = None if offset is None else offset + 1
        found = await self._target.read(self.topic, partition, start, 1)
        return found[0].offset if found else None

    async def switch(self) -> None:
        """Nothing but a look: it is the positions that say on which bus a topic is."""
        await self.check()

    async def retire(self, keep_ms: int) -> None:
        """Nothing: what was read on the source stays there until somebody deletes the topic."""
