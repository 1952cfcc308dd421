"""What the buses of one name in one process share: topics, groups and who owns what."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from dataclasses import dataclass, field

from market_data_core.errors import BusError
from market_data_pipeline.streaming.bus import Offset, StoredRecord
from market_data_pipeline.streaming.partitions import check_topic


@dataclass(slots=True, eq=False)
class Link:
    """A bus's way to the broker. ``cut_at``: since when it is cut, in monotonic ns."""

    cut_at: int | None = None


@dataclass(slots=True, eq=False)
class Member:
    """A member of a group. It is heard of as long as its link holds, and for ``lease`` ns after that.

    ``static``: also for so long after it was closed, at ``closed_at``. ``replaced``: another one came under its name.
    """

    name: str
    serial: str
    lease: int
    link: Link
    static: bool = False
    closed_at: int | None = None
    replaced: bool = False

    def gone(self, now: int) -> bool:
        silent = [at for at in (self.link.cut_at, self.closed_at) if at is not None]
        return bool(silent) and now >= min(silent) + self.lease


@dataclass(slots=True)
class Log:
    """The records of one partition, ascending by offset."""

    records: list[StoredRecord] = field(default_factory=list)
    next_offset: Offset = 0

    def index(self, offset: Offset) -> int:
        return bisect_left(self.records, offset, key=lambda record: record.offset)

    def since(self, offset: Offset, limit: int) -> list[StoredRecord]:
        start = self.index(offset)
        return self.records[start : start + limit]


@dataclass(slots=True)
class GroupLog:
    """What a group did with one partition. ``pending``: delivered and not acknowledged, ascending, with the
    time in ms at which they were published."""

    owner: Member | None = None
    delivered: Offset = -1
    pending: dict[Offset, int] = field(default_factory=dict)
    keep_from: Offset | None = None

    @property
    def needed_from(self) -> Offset:
        """The first offset that was not delivered, is pending, or was asked to be kept."""
        first = min(self.delivered + 1, next(iter(self.pending), self.delivered + 1))
        return first if self.keep_from is None else min(first, self.keep_from)


@dataclass(slots=True)
class Group:
    logs: list[GroupLog]
    members: list[Member] = field(default_factory=list)

    def expire(self, now: int) -> None:
        """Forget members that have not been heard of for too long, and free what they own."""
        self.members = [member for member in self.members if not member.gone(now)]
        for log in self.logs:
            if log.owner is not None and log.owner.gone(now):
                log.owner = None

    def succeed(self, member: Member) -> list[int]:
        """What a static member of the same name owned is ``member``'s from now on."""
        found: list[int] = []
        for old in [m for m in self.members if m.static and m.serial == member.serial]:
            old.replaced = True
            self.members.remove(old)
            mine = [p for p, log in enumerate(self.logs) if log.owner is old]
            for partition in mine:
                self.logs[partition].owner = member
            found += mine
        return found


@dataclass(slots=True)
class Topic:
    logs: list[Log]
    groups: dict[str, Group] = field(default_factory=dict)

    def group(self, name: str) -> Group:
        return self.groups.setdefault(name, Group([GroupLog() for _ in self.logs]))


class Broker:
    """It does nothing by itself: members look at it when they are polled."""

    def __init__(self) -> None:
        self.topics: dict[str, Topic] = {}
        self._waiting: set[asyncio.Event] = set()

    def topic(self, name: str) -> Topic:
        """
        Raises:
            BusError: there is no such topic.
        """
        topic = self.topics.get(check_topic(name))
        if topic is None:
            raise BusError(f"there is no topic {name} on the memory bus: create it first")
        return topic

    def log(self, name: str, partition: int) -> Log:
        """
        Raises:
            BusError: there is no such topic or partition.
        """
        logs = self.topic(name).logs
        if not 0 <= partition < len(logs):
            raise BusError(f"topic {name} has no partition {partition}: it has {len(logs)}, counted from 0")
        return logs[partition]

    def expire(self, now: int) -> None:
        for topic in self.topics.values():
            for group in topic.groups.values():
                group.expire(now)

    def wake(self) -> None:
        """Have everybody who waits look again."""
        for event in self._waiting:
            event.set()

    async def wait(self, seconds: float) -> None:
        """Until something happened, for so long at most."""
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return
        finally:
            self._waiting.discard(event)
