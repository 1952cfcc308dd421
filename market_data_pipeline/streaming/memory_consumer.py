"""A member of a consumer group on the memory bus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Final

from market_data_core.clock import Clock
from market_data_core.errors import BusError
from market_data_pipeline.streaming.bus import Consumer, Delivery, Offset, Poll
from market_data_pipeline.streaming.memory_broker import Broker, Group, GroupLog, Link, Member
from market_data_pipeline.streaming.partitions import preference, quota

LOOK_AGAIN: Final = 0.02
"""Seconds after which a waiting member looks again: leases end without waking anybody."""

_serials = count()


@dataclass(slots=True)
class _Reading:
    """A partition owned here. ``cursor``: the next offset to deliver; None before the first seek."""

    cursor: Offset | None = None
    paused: bool = False
    revoking: bool = False


class MemoryConsumer(Consumer):
    """See :class:`Consumer`."""

    def __init__(
        self,
        reach: Callable[[], Broker],
        link: Link,
        clock: Clock,
        topic: str,
        group: str,
        member: str,
        *,
        max_records: int,
        lease_ms: int,
        static: bool = False,
    ) -> None:
        self._reach = reach
        self._link = link
        self._clock = clock
        self._topic = topic
        self._group = group
        self._max_records = max_records
        serial = f"{member}#" if static else f"{member}#{next(_serials):012d}"
        self._me = Member(member, serial, lease_ms * 1_000_000, link, static)
        self._owned: dict[int, _Reading] = {}
        self._joined = False

    async def poll(self, timeout: float) -> Poll:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            out = self._ownership()
            if not out.lost:
                self._read(out)
            left = deadline - loop.time()
            if out.assigned or out.revoking or out.lost or out.deliveries or left <= 0:
                # Others of this event loop get their turn, however much there is to read.
                await asyncio.sleep(0)
                return out
            await self._reach().wait(min(left, LOOK_AGAIN))

    async def seek(self, partition: int, start: Offset | None) -> None:
        if partition not in self._owned:
            raise BusError(f"partition {partition} of {self._topic} is not owned: poll until it is assigned")
        log = self._log(partition)
        cursor = start or 0
        log.delivered = max(log.delivered, cursor - 1)
        self._owned[partition].cursor = cursor

    async def ack(self, partition: int, through: Offset, *, keep_from: Offset | None = None) -> None:
        log = self._log(partition)
        if log.owner is not self._me:
            return
        for offset in list(takewhile(lambda pending: pending <= through, log.pending)):
            del log.pending[offset]
        log.keep_from = log.keep_from if keep_from is None else keep_from

    async def release(self, partition: int) -> None:
        if self._owned.pop(partition, None) is None or self._link.cut_at is not None:
            return
        log = self._log(partition)
        if log.owner is self._me:
            log.owner = None
            self._reach().wake()

    def pause(self, partition: int) -> None:
        if partition in self._owned:
            self._owned[partition].paused = True

    def resume(self, partition: int) -> None:
        if partition in self._owned:
            self._owned[partition].paused = False

    async def close(self) -> None:
        if self._me.static:
            self._me.closed_at = self._clock.monotonic()
            self._owned.clear()
            return
        for partition in list(self._owned):
            await self.release(partition)
        if self._joined and self._link.cut_at is None:
            group = self._group_of(self._reach())
            group.members = [member for member in group.members if member is not self._me]
            self._reach().wake()

    def _group_of(self, broker: Broker) -> Group:
        return broker.topic(self._topic).group(self._group)

    def _log(self, partition: int) -> GroupLog:
        return self._group_of(self._reach()).logs[partition]

    def _ownership(self) -> Poll:
        """Take part in the group: give up what is over this member's share, take what is free below it."""
        now = self._clock.monotonic()
        if self._me.gone(now):
            lost, self._owned = sorted(self._owned), {}
            if lost:
                return Poll(lost=lost)
        broker = self._reach()
        group = self._group_of(broker)
        group.expire(now)
        lost = [p for p in self._owned if group.logs[p].owner is not self._me]
        for partition in lost:
            del self._owned[partition]
        if lost:
            return Poll(lost=lost)
        if self._me.replaced:
            raise BusError(
                f"another process has joined group {self._group} of {self._topic} as {self._me.name}: "
                "give each its own bus.member"
            )
        if self._me not in group.members:
            inherited = group.succeed(self._me) if self._me.static else []
            group.members.append(self._me)
            self._joined = True
            broker.wake()
            self._owned |= {p: _Reading() for p in inherited}
            if inherited:
                return Poll(inherited)
        names = [member.serial for member in group.members]
        share = quota(names, self._me.serial, len(group.logs))
        keeping = sorted(p for p, reading in self._owned.items() if not reading.revoking)
        revoking = keeping[share:]
        for partition in revoking:
            self._owned[partition].revoking = True
        order = preference(names, self._me.serial, len(group.logs))
        free = [p for p in order if group.logs[p].owner is None]
        assigned = sorted(free[: max(0, share - len(keeping))])
        for partition in assigned:
            group.logs[partition].owner = self._me
            self._owned[partition] = _Reading()
        return Poll(assigned, revoking)

    def _read(self, out: Poll) -> None:
        began = self._clock.monotonic()
        topic = self._reach().topic(self._topic)
        group = topic.group(self._group)
        for partition, reading in self._owned.items():
            if reading.cursor is None or reading.paused or reading.revoking:
                continue
            records = topic.logs[partition].since(reading.cursor, self._max_records)
            if not records:
                out.idle[partition] = began
                continue
            mine = group.logs[partition]
            new = (r for r in records if r.offset > mine.delivered)
            mine.pending.update([(r.offset, r.timestamp_ms) for r in new])
            reading.cursor = records[-1].offset + 1
            mine.delivered = max(mine.delivered, records[-1].offset)
            lanes = [r.lane for r in records]
            out.deliveries.append(
                Delivery(
                    partition,
                    [r.offset for r in records],
                    [r.value for r in records],
                    lanes if any(lane is not None for lane in lanes) else None,
                    len(records) < self._max_records,
                    began,
                    [(i, r.traceparent) for i, r in enumerate(records) if r.traceparent is not None],
                )
            )
