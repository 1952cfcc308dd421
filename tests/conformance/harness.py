"""What a driver brings to the suites: connections that can be cut, and what it can do besides."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Self

from market_data_core.errors import BusUnavailable
from market_data_pipeline.streaming.bus import Record
from tests.conformance.members import LONG_LEASE_MS, PATIENCE, GroupRecord, Link, Member

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Capabilities:
    """Where drivers truly differ.

    ``steals``: somebody who is not the owner can take records out of a partition, in the group's name.
    ``restarts``: there is a server that can be killed.
    """

    steals: bool
    restarts: bool


class Harness(ABC):
    """One test's way to a driver's bus."""

    can: ClassVar[Capabilities]

    group = "g"
    """Of members that name none."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._groups: dict[tuple[str, str], GroupRecord] = {}
        self.stem = f"t{next(_numbers)}"

    async def __aenter__(self) -> Self:
        self._link = await self.link()
        self.bus = self._link.bus
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    @abstractmethod
    async def link(self) -> Link:
        """A connection of its own, closed when the test ends."""

    @abstractmethod
    async def remove(self, topic: str) -> None:
        """Delete a topic of one partition behind the driver's back, with the means of the server, until it is gone."""

    async def steal(self, topic: str, group: str, partition: int, count: int) -> int:
        """Take up to ``count`` new records as a member that does not own the partition; how many it got."""
        raise NotImplementedError

    async def restart(self) -> None:
        """``kill -9`` the server and start it again with its data."""
        raise NotImplementedError

    async def topic(self, partitions: int = 1, name: str = "events") -> str:
        """A new topic."""
        topic = f"{self.stem}.{name}"
        assert await self.bus.ensure_topic(topic, partitions) == partitions
        return topic

    async def publish(self, topic: str, values: Sequence[object], *, partition: int = 0) -> None:
        """Records with the given values, as text, in one partition. After an outage all of them again."""
        records = [Record("K", str(v).encode()) for v in values]
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return await self.bus.publish(topic, records, partition=partition)
            except BusUnavailable:
                assert time.monotonic() < deadline, "the bus does not come back"

    async def member(
        self,
        topic: str,
        name: str = "a",
        *,
        group: str | None = None,
        link: Link | None = None,
        max_records: int = 100,
        resume: bool = False,
        lease_ms: int = LONG_LEASE_MS,
        static: bool = False,
    ) -> Member:
        """A new member, closed when the test ends. With ``resume`` it goes on after what was acknowledged by
        any other such member of the test, as a consumer with a store does; else at the first record.

        Its lease is longer than any pause of a busy machine, except where a test is about leases that end.
        """
        link, group = link or self._link, group or self.group
        record = self._groups.setdefault((topic, group), GroupRecord())
        consumer = link.bus.consumer(
            topic, group, name, max_records=max_records, lease_ms=lease_ms, static=static
        )
        member = Member(name, consumer, link, record, record.positions if resume else None)
        self._stack.push_async_callback(member.close)
        return member
