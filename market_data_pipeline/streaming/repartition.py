"""What a driver does when a topic gets another number of partitions. The order of the steps is the caller's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from market_data_pipeline.streaming.bus import Offset, Record, StoredRecord


class TopicSwitch(ABC):
    """One topic on its way from ``old`` to ``new`` partitions.

    Each step may be made again, so that a switch that was cut off can be finished. Nobody else may use the topic
    meanwhile.
    """

    def __init__(self, topic: str, old: int, new: int) -> None:
        self.topic = topic
        self.old = old
        self.new = new

    @abstractmethod
    async def check(self) -> None:
        """See that it can be done, before anything is changed.

        Raises:
            BusError: it cannot, or something else is in the place of a new partition.
        """

    @abstractmethod
    async def prepare(self, *, resumed: bool) -> None:
        """Make room for the new partitions. ``resumed``: an earlier switch may have written to them already."""

    @abstractmethod
    async def read(self, partition: int, start: Offset, limit: int) -> list[StoredRecord]:
        """Up to ``limit`` records of an old partition from ``start`` on, inclusive, before the switch and after it."""

    @abstractmethod
    async def append(self, partition: int, records: Sequence[Record]) -> None:
        """Append to a new partition, before the switch or after it."""

    @abstractmethod
    async def newest(self, partition: int) -> Offset | None:
        """The offset of the newest record of a new partition; None when it is empty."""

    @abstractmethod
    async def first_after(self, partition: int, offset: Offset | None) -> Offset | None:
        """The offset of the first record of a new partition after ``offset`` (None: its first)."""

    @abstractmethod
    async def switch(self) -> None:
        """From now on the topic has ``new`` partitions, for whoever opens the bus anew.

        Raises:
            BusError: somebody else has changed their number meanwhile.
        """

    @abstractmethod
    async def retire(self, keep_ms: int) -> None:
        """Let what is no partition any more go, after ``keep_ms``."""
