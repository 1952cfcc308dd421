"""The contract that every bus driver keeps.

A topic has partitions; a record's partition is Kafka's murmur2 of its key, on every driver. A record is
delivered at least once to each consumer group. Within a group every partition has one owner at a time,
and a delivery never has a gap: what it holds follows, offset by offset, what was delivered before it or
the offset given to :meth:`Consumer.seek`. Whoever needs more than that (exactly-once effect) keeps its
position with its results and fences by epoch, as the store does.

An :data:`Offset` is a whole number that grows along a partition. Only its order has a meaning outside of the
driver; :meth:`Bus.format_offset` writes it as the driver's own tools show it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from market_data_core.errors import BusError

if TYPE_CHECKING:
    from market_data_pipeline.streaming.repartition import TopicSwitch

Offset = int
Trace = tuple[int, str]
"""Place in a delivery, and the traceparent of the record there."""
TRACEPARENT: Final = "traceparent"
"""What drivers call it on the wire, as W3C Trace Context does, so that others' traces go on here and ours there."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a producer publishes. ``key`` (the symbol) chooses the partition; ``lane`` is None for live events.
    ``traceparent``: of the few that are traced, the span that published it, as W3C Trace Context writes it."""

    key: str
    value: bytes
    lane: str | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """What a range read finds."""

    offset: Offset
    key: str
    value: bytes
    lane: str | None
    timestamp_ms: int
    traceparent: str | None = None


@dataclass(slots=True)
class Delivery:
    """Consecutive records of one partition, ascending by offset; never empty.

    ``lanes`` is None when no record names a lane, which is the usual case. ``caught_up`` tells that the
    partition held nothing more when this was read, at ``polled_at`` (monotonic ns, taken before the read).
    ``traces``: the traceparents of those that are traced, with their places in ``values``; most have none.
    """

    partition: int
    offsets: Sequence[Offset]
    values: list[bytes]
    lanes: list[str | None] | None
    caught_up: bool
    polled_at: int
    traces: Sequence[Trace] = ()


@dataclass(slots=True)
class Poll:
    """What happened since the last poll.

    ``assigned``: now owned, and not read until :meth:`Consumer.seek`. ``revoking``: to be handed over; finish
    and call :meth:`Consumer.release`. ``lost``: somebody else may own them already; drop their state.
    ``idle``: owned partitions that were read and found empty, with the monotonic ns at which that read began.
    """

    assigned: list[int] = field(default_factory=list)
    revoking: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    idle: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GroupPartition:
    """One partition of one consumer group, for operators.

    ``lag``: records that it was not handed yet; where a server does not count, more than 1,000 are an estimate.
    ``lease_left_ms``: how long it is the owner's unless renewed, negative when for ever; None where nobody owns it, or
    the driver has no leases.
    """

    partition: int
    owner: str | None
    lag: int
    lag_ms: int
    pending: int
    oldest_pending_ms: int
    lease_left_ms: int | None = None


@dataclass(frozen=True, slots=True)
class GroupStatus:
    group: str
    members: list[str]
    partitions: list[GroupPartition]


@dataclass(frozen=True, slots=True)
class TopicStatus:
    """``sizes``: the records of each partition, where the driver tells."""

    topic: str
    partitions: int
    records: int
    groups: list[GroupStatus]
    sizes: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TrimResult:
    """What a trim removed: ``expired`` records that every group was done with, and ``forced`` ones that the
    hard cap removed although a group had not acknowledged them."""

    expired: int
    forced: int


class Consumer(ABC):
    """A member of a consumer group. While one :meth:`poll` waits, everything else may be called."""

    @abstractmethod
    async def poll(self, timeout: float) -> Poll:
        """Wait up to ``timeout`` seconds for records or a change of ownership.

        Deliveries are bounded by ``max_records`` a partition and taken fairly from all owned partitions.

        Raises:
            BusUnavailable: the bus cannot be reached; ownership may be lost. Poll again after a while.
        """

    @abstractmethod
    async def seek(self, partition: int, start: Offset | None) -> None:
        """Read ``partition``, just assigned, from ``start`` on, inclusive (None: from its first record).

        Everything from there is delivered again, whether the group had acknowledged it or not, and what
        another member left pending becomes this member's. Nothing is delivered before this has returned.
        """

    @abstractmethod
    async def ack(self, partition: int, through: Offset, *, keep_from: Offset | None = None) -> None:
        """Acknowledge every record delivered up to ``through``, inclusive.

        ``keep_from`` asks that records from there on are not trimmed although they are acknowledged, since a
        new owner would read from it.
        """

    @abstractmethod
    async def release(self, partition: int) -> None:
        """Give up ``partition``; for one in ``revoking`` this ends the hand-over."""

    @abstractmethod
    def pause(self, partition: int) -> None:
        """Deliver nothing from ``partition`` until :meth:`resume`; it stays owned."""

    @abstractmethod
    def resume(self, partition: int) -> None:
        """Undo :meth:`pause`."""

    @abstractmethod
    async def close(self) -> None:
        """Release everything and leave the group."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class Bus(ABC):
    """A connection to one bus. Safe for concurrent calls of one event loop."""

    name: str

    @abstractmethod
    async def ensure_topic(self, topic: str, partitions: int) -> int:
        """Create ``topic`` with ``partitions`` if it does not exist; return how many it has."""

    @abstractmethod
    async def partitions(self, topic: str) -> int:
        """How many partitions ``topic`` has; 0 when it does not exist."""

    async def topic_id(self, topic: str) -> str:
        """What tells ``topic`` from another of its name, on another server or made anew after it was deleted.

        Empty, as here, for a driver whose offsets go on growing then; and where a server gives none.

        Raises:
            BusUnavailable: the server gives one, and knows no such topic now.
        """
        return ""

    @abstractmethod
    async def publish(self, topic: str, records: Sequence[Record], *, partition: int | None = None) -> None:
        """Append ``records``, each to its key's partition or all to ``partition``, in order.

        On return they are durable. On an error some may have been appended: publishing all of them again is
        right, since every reader dedupes.

        Raises:
            BusUnavailable: the bus cannot be reached.
        """

    @abstractmethod
    def consumer(
        self,
        topic: str,
        group: str,
        member: str,
        *,
        max_records: int = 5000,
        lease_ms: int = 10_000,
        static: bool = False,
    ) -> Consumer:
        """A new member of ``group``; it joins on its first poll.

        ``lease_ms`` is how long a member that died keeps its partitions.

        ``static``: ``member`` is a name that comes back. Such a member keeps its partitions also when it is closed;
        whoever joins under its name before the lease ends has them at once, and no other member is disturbed. The
        one before, should it still live, is told so by a BusError of its poll.
        """

    @abstractmethod
    async def read(self, topic: str, partition: int, start: Offset | None, limit: int) -> list[StoredRecord]:
        """Up to ``limit`` records from ``start`` on, inclusive (None: from the first), outside of any group."""

    @abstractmethod
    async def newest(self, topic: str, partition: int, limit: int) -> list[StoredRecord]:
        """The newest ``limit`` records, oldest first, outside of any group."""

    @abstractmethod
    async def end_offset(self, topic: str, partition: int) -> Offset | None:
        """The offset of the newest record; None when the partition is empty."""

    @abstractmethod
    async def delete(self, topic: str, partition: int, offsets: Sequence[Offset]) -> int:
        """Remove single records (dead letters); return how many were there."""

    @abstractmethod
    async def status(self, topics: Sequence[str] | None = None) -> list[TopicStatus]:
        """All known topics, or those named, with their groups."""

    @abstractmethod
    async def trim(self, topic: str, *, retention_ms: int, max_records: int) -> TrimResult:
        """Remove records older than ``retention_ms`` that every known group is done with, and, past
        ``max_records`` a partition, the oldest whatever their state."""

    def topic_switch(self, topic: str, old: int, new: int) -> TopicSwitch:
        """How ``topic`` gets ``new`` partitions instead of ``old``. A driver need not be able to.

        Raises:
            BusError: this driver cannot.
        """
        raise BusError(
            f"the bus {self.name} cannot change the number of partitions of {topic}: make another topic"
        )

    @abstractmethod
    def format_offset(self, offset: Offset) -> str:
        """As the driver's own tools write it."""

    @abstractmethod
    def parse_offset(self, text: str) -> Offset:
        """The inverse of :meth:`format_offset`; ValueError when it is not one."""

    def knows_offset(self, text: str) -> bool:
        """Whether ``text`` is an offset as this driver writes it."""
        try:
            self.parse_offset(text)
        except ValueError:
            return False
        return True

    @abstractmethod
    async def ping(self) -> Mapping[str, str]:
        """Facts about the server (version, durability), or BusUnavailable."""

    @abstractmethod
    async def close(self) -> None:
        """Close every connection."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
