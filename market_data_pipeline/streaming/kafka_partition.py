"""One partition as a member of a group reads it: what was fetched and waits, and where the reading is."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from aiokafka.errors import CorruptRecordException

from market_data_core.errors import BusError, BusUnavailable
from market_data_pipeline.streaming.bus import Delivery, Offset
from market_data_pipeline.streaming.kafka_marks import Mark
from market_data_pipeline.streaming.kafka_reading import Fetched
from market_data_pipeline.streaming.kafka_records import batches, columns

_MISSING_SECONDS: Final = 30.0

log = structlog.get_logger(__name__)


class Backlog:
    """What one fetch brought, decoded as it is taken."""

    def __init__(self, fetched: Fetched, gone: Collection[Offset]) -> None:
        self.fetched = fetched
        self._batches: Iterator[list[Any]] = batches(fetched.buffer, fetched.first, gone)
        self._batch: list[Any] = []
        self._at = 0
        self.empty = False

    def take(self, count: int) -> list[Any]:
        """The next records: ``count``, or fewer at the end."""
        out: list[Any] = []
        while len(out) < count and not self.empty:
            some = self._batch[self._at : self._at + count - len(out)]
            self._at += len(some)
            out = out + some if out else some
            if self._at == len(self._batch):
                # At once, since whether there is more decides whether the caller has caught up.
                self._batch, self._at = next(self._batches, []), 0
                self.empty = not self._batch
        return out


@dataclass(slots=True, eq=False)
class PartitionReading:
    """``cursor``: where the next fetch begins; ``position``: where the next delivery does. A fetch asked for in an
    older ``generation`` is void. ``mark``: what the group should know of it; ``marked``: what it knows."""

    number: int
    cursor: Offset = 0
    position: Offset = 0
    sought: bool = False
    paused: bool = False
    revoking: bool = False
    generation: int = 0
    ready: deque[Backlog] = field(default_factory=deque)
    mark: Mark | None = None
    marked: Mark | None = None
    missing_since: int | None = None

    @property
    def readable(self) -> bool:
        return self.sought and not self.paused and not self.revoking

    def rewind(self, offset: Offset) -> None:
        """Forget what was read, and read again from ``offset`` on."""
        self.ready.clear()
        self.generation += 1
        self.cursor = self.position = offset

    def misplaced(self, topic: str, first: Offset, end: Offset, now: int) -> None:
        """The offset to be read is not between ``first`` and ``end``: go on at the first one, if what lay there was
        removed.

        Raises:
            BusUnavailable: the partition ends before it.
            BusError: it has done so for long.
        """
        if self.cursor < first:
            log.info("records_removed_unread", topic=topic, partition=self.number, up_to=first)
            self.rewind(first)
        elif self.cursor > end:
            self.missing_since = self.missing_since or now
            problem = (
                f"partition {self.number} of {topic} ends at {end}, before the group's position {self.cursor}"
            )
            if now - self.missing_since < _MISSING_SECONDS * 1e9:
                # Right after a restart a broker does not know yet how much of its log counts.
                raise BusUnavailable(problem)
            raise BusError(f"{problem}: the topic was made anew, so take another bus.redis.consumer_group")

    def take(self, count: int) -> Delivery | None:
        """Up to ``count`` records that follow the last delivery.

        Raises:
            CorruptRecordException: they got damaged on their way; they are read again.
        """
        while self.ready:
            backlog = self.ready[0]
            try:
                records = backlog.take(count)
            except CorruptRecordException:
                self.rewind(self.position)
                raise
            if backlog.empty:
                self.ready.popleft()
            if records:
                return self._delivery(backlog, records)
        return None

    def _delivery(self, backlog: Backlog, records: list[Any]) -> Delivery:
        offsets, values, lanes, traces = columns(records)
        self.position = offsets[-1] + 1
        if self.mark is not None and self.position > self.mark.handed:
            self.mark = Mark(self.mark.done, self.position, self.mark.keep)
        fetched = backlog.fetched
        caught_up = backlog.empty and not self.ready and self.cursor >= fetched.end
        return Delivery(self.number, offsets, values, lanes, caught_up, fetched.began, traces)


@dataclass(slots=True, eq=False)
class Round:
    """One fetch under way."""

    generations: dict[PartitionReading, int]
    task: asyncio.Task[list[Fetched]]

    def valid(self, partition: PartitionReading) -> bool:
        """Whether nobody sought, released or lost it since it was asked for."""
        return self.generations[partition] == partition.generation
