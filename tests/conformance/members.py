"""Members of a group in tests: they seek, release and check what they are given."""

from __future__ import annotations

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from market_data_core.errors import BusUnavailable
from market_data_pipeline.streaming.bus import Bus, Consumer, Delivery, Poll

LEASE_MS: Final = 600
LONG_LEASE_MS: Final = 20_000
PATIENCE: Final = 15.0
"""Seconds a test waits for what must come, before it fails."""


class Link(ABC):
    """A bus as one process has it."""

    bus: Bus

    def __init__(self) -> None:
        self.cuts = 0

    def cut(self) -> None:
        """From now on the bus cannot be reached; open connections end."""
        self.cuts += 1
        self._cut()

    @abstractmethod
    def heal(self) -> None:
        """Undo :meth:`cut`."""

    @abstractmethod
    def _cut(self) -> None: ...


@dataclass
class GroupRecord:
    """What a test knows of a group: who got each partition last, and where each one goes on."""

    owners: dict[int, Member] = field(default_factory=dict)
    positions: dict[int, int] = field(default_factory=dict)


class Member:
    """A consumer and what it got.

    Every delivery is checked: ascending, after the one before, only of partitions that are owned and sought,
    and never after somebody else got the partition. A member whose link was never cut must have let go of a
    partition before another one gets it; one that is cut off, or is not polled, may not know yet. A lease may also have
    ended because a server or this process stood still: its member must know that at its next poll.
    """

    def __init__(
        self, name: str, consumer: Consumer, link: Link, group: GroupRecord, positions: dict[int, int] | None
    ) -> None:
        self.name = name
        self.consumer = consumer
        self.link = link
        self.owned: set[int] = set()
        self.got: dict[int, list[bytes]] = {}
        self.offsets: dict[int, list[int]] = {}
        self.lanes: dict[int, list[str | None]] = {}
        self.deliveries: list[Delivery] = []
        self.idle: dict[int, int] = {}
        self.lost: list[int] = []
        self.outages = 0
        self.seeking = True
        self.releasing = True
        self.revoking: set[int] = set()
        self.closed = False
        self._positions = positions
        self._owners = group.owners
        self._last: dict[int, int] = {}
        self._cuts: dict[int, int] = {}
        self._unsought: dict[int, int | None] = {}
        self._polled_at = time.monotonic()
        self._overdue: dict[int, str] = {}

    async def step(self, timeout: float = 0.05) -> Poll:
        """One poll, and what a well-behaved caller does with it. An outage is counted."""
        await self._seek_again()
        overdue, self._overdue = self._overdue, {}
        try:
            poll = await self.consumer.poll(timeout)
        except BusUnavailable:
            self.outages += 1
            self._overdue |= overdue
            await asyncio.sleep(0.01)
            return Poll()
        self._polled_at = time.monotonic()
        self.idle = poll.idle
        for partition, heir in overdue.items():
            assert partition in poll.lost or partition not in self.owned, (
                f"{heir} and {self.name} own {partition}"
            )
        for partition in poll.lost:
            assert partition in self.owned
            self.owned.remove(partition)
            self.revoking.discard(partition)
            self.lost.append(partition)
        for partition in poll.assigned:
            assert partition not in self.owned
            self._succeed(partition)
            self.owned.add(partition)
            if self.seeking:
                await self.seek(
                    partition, None if self._positions is None else self._positions.get(partition)
                )
        for partition in poll.revoking:
            assert partition in self.owned
            self.revoking.add(partition)
            if self.releasing:
                await self.release(partition)
        for delivery in poll.deliveries:
            self._receive(delivery)
        return poll

    async def seek(self, partition: int, start: int | None) -> None:
        self._last[partition] = -1 if start is None else start - 1
        self._unsought[partition] = start
        await self._seek_again()

    async def _seek_again(self) -> None:
        """What could not be sought in an outage is tried again until it is lost."""
        self._unsought = {p: start for p, start in self._unsought.items() if p in self.owned}
        for partition, start in list(self._unsought.items()):
            try:
                await self.consumer.seek(partition, start)
            except BusUnavailable:
                self.outages += 1
            else:
                del self._unsought[partition]

    async def release(self, partition: int) -> None:
        self.owned.remove(partition)
        self.revoking.discard(partition)
        await self.consumer.release(partition)

    async def ack_all(self) -> None:
        """Acknowledge what was delivered of the partitions owned, and let the next owner go on after it."""
        for partition in self.owned:
            through = self._last.get(partition, -1)
            if self.offsets.get(partition) and through >= 0:
                try:
                    await self.consumer.ack(partition, through)
                except BusUnavailable:
                    self.outages += 1
                    return
                if self._positions is not None:
                    self._positions[partition] = max(self._positions.get(partition, 0), through + 1)

    def _succeed(self, partition: int) -> None:
        before = self._owners.get(partition)
        if before is not None and before is not self and partition in before.owned:
            stalled = time.monotonic() - before._polled_at > LEASE_MS / 2000
            cut = before.link.cuts > before._cuts[partition]
            if not cut and not stalled:
                before._overdue[partition] = self.name
        self._owners[partition] = self
        self._cuts[partition] = self.link.cuts

    async def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.owned.clear()
            await self.consumer.close()

    def values(self, partition: int = 0) -> list[bytes]:
        return self.got.get(partition, [])

    def _receive(self, delivery: Delivery) -> None:
        p = delivery.partition
        offsets = list(delivery.offsets)
        assert p in self.owned, f"{self.name} got records of partition {p}, which it does not own"
        assert self._owners[p] is self, (
            f"{self.name} got records of partition {p} after {self._owners[p].name}"
        )
        assert offsets
        assert len(offsets) == len(delivery.values)
        assert self._last[p] < offsets[0], f"{self.name} got offset {offsets[0]} after {self._last[p]}"
        assert all(a < b for a, b in itertools.pairwise(offsets))
        assert delivery.lanes is None or len(delivery.lanes) == len(offsets)
        assert delivery.polled_at <= time.monotonic_ns()
        self._last[p] = offsets[-1]
        self.deliveries.append(delivery)
        self.got.setdefault(p, []).extend(delivery.values)
        self.offsets.setdefault(p, []).extend(offsets)
        self.lanes.setdefault(p, []).extend(delivery.lanes or [None] * len(offsets))


async def until(
    members: Iterable[Member], condition: Callable[[], bool], *, timeout: float = 0.05, ack: bool = False
) -> None:
    """Let all ``members`` poll, at the same time, until ``condition`` holds."""
    members = list(members)
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            state = {m.name: (sorted(m.owned), {p: len(v) for p, v in m.got.items()}) for m in members}
            raise AssertionError(f"it did not come to that; owned and received: {state}")
        await rounds(members, 1, timeout=timeout, ack=ack)


async def rounds(members: Iterable[Member], count: int, *, timeout: float = 0.05, ack: bool = False) -> None:
    """Let all ``members`` poll so many times, at the same time."""
    alive = [m for m in members if not m.closed]
    for _ in range(count):
        await asyncio.gather(*(m.step(timeout) for m in alive))
        if ack:
            await asyncio.gather(*(m.ack_all() for m in alive))


async def owning(members: Iterable[Member], partitions: int) -> None:
    """Until every partition is owned by one of ``members``, evenly."""
    members = list(members)

    def spread() -> bool:
        counts = [len(m.owned) for m in members if not m.closed]
        return sum(counts) == partitions and max(counts) - min(counts) <= 1

    await until(members, spread)
