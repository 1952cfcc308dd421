"""Telling a Kafka group how far it is: at once what is acknowledged, and in a while what was delivered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

import structlog

from market_data_core.clock import Clock
from market_data_core.ending import end
from market_data_core.errors import BusError
from market_data_pipeline.streaming.bus import Offset
from market_data_pipeline.streaming.kafka_group import Membership
from market_data_pipeline.streaming.kafka_marks import Mark
from market_data_pipeline.streaming.kafka_partition import PartitionReading

SECONDS: Final = 1.0
"""How often others are told how far records were delivered."""

log = structlog.get_logger(__name__)


class Marking:
    """Commits the marks of partitions that are read, one commit at a time."""

    def __init__(self, topic: str, group: Membership, clock: Clock) -> None:
        self._topic = topic
        self._group = group
        self._clock = clock
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._told_at = 0

    async def ack(self, p: PartitionReading, through: Offset, keep_from: Offset | None) -> None:
        """Keep that everything up to ``through`` is done with; never less than was kept before.

        Raises:
            BusUnavailable: it cannot be kept now.
        """
        async with self._turn:
            known = p.mark or Mark(0, 0)
            done = max(known.done, through + 1)
            mark = Mark(done, max(known.handed, done), known.keep if keep_from is None else keep_from)
            if p.marked is None or (mark.done, mark.keep) != (p.marked.done, p.marked.keep):
                await self._group.commit({p.number: mark.commit()})
                p.marked = mark
            # Meanwhile more may have been delivered.
            handed = mark.handed if p.mark is None else max(mark.handed, p.mark.handed)
            p.mark = Mark(done, handed, mark.keep)

    async def tell(self, partitions: Iterable[PartitionReading]) -> None:
        """Keep how far records were delivered, as well as that can be done now: nothing depends on it but the view of
        an operator."""
        async with self._turn:
            due = {p: p.mark for p in partitions if p.mark is not None and p.mark != p.marked}
            if not due:
                return
            try:
                await self._group.commit({p.number: mark.commit() for p, mark in due.items()})
            except BusError as error:
                log.debug("not_marked", topic=self._topic, error=str(error))
                return
            for p, mark in due.items():
                p.marked = mark

    def tell_soon(self, partitions: Iterable[PartitionReading]) -> None:
        """As :meth:`tell`, in the background and not too often."""
        now = self._clock.monotonic()
        if now - self._told_at > SECONDS * 1e9 and (self._task is None or self._task.done()):
            self._told_at = now
            self._task = asyncio.create_task(self.tell(list(partitions)), name=f"mark {self._topic}")

    async def close(self, partitions: Iterable[PartitionReading]) -> None:
        """Tell a last time."""
        if self._task is not None:
            await end(self._task)
        await self.tell(partitions)
