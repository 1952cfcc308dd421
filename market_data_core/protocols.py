"""What the pipeline and the store say to each other, and the seams others may fill.

A consumer owns a partition by a :class:`Claim`. What it has to keep travels in one :class:`Flush`, which the
store applies in one transaction or not at all (ARCHITECTURE, section 5 of the design; docs/concepts.md).
Offsets are text here, as the bus writes them: the store keeps them and never compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from market_data_core.batch import BarBatch, EventBatch
from market_data_core.events import Signal


@dataclass(frozen=True, slots=True)
class Position:
    """How far one lane of a partition is handled.

    ``watermark``: event time in ns; every window that ended at or before it, with records up to
    ``read_offset``, is stored. ``restart_offset``: the first record of any window still open, empty when none
    is. ``dedupe_offset``: the first record whose id must be remembered, empty when none; reading resumes at the
    first of all lanes' offsets. The lane with an empty name is the partition itself.
    """

    lane: str
    watermark: int
    read_offset: str
    restart_offset: str
    dedupe_offset: str


@dataclass(frozen=True, slots=True)
class OutboxRecord:
    """A record to publish after the commit that wrote it; ``id`` is its row."""

    id: int
    topic: str
    partition: int
    key: str
    lane: str | None
    value: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """Ownership of one partition at one epoch, with what the owner before left.

    ``topic_id``: of the topic that the positions' offsets are of, empty where the bus has none.
    """

    topic: str
    group: str
    partition: int
    epoch: int
    owner: str
    positions: dict[str, Position]
    outbox: list[OutboxRecord]
    topic_id: str = ""


@dataclass(frozen=True, slots=True)
class LaneFlush:
    """What one lane closed, and the late events that amend what it closed before.

    ``force``: the bars replace stored ones even when made of fewer events.
    """

    lane: str
    closed: BarBatch
    late: EventBatch
    window_ns: int
    force: bool = False


@dataclass(frozen=True, slots=True)
class SignalFlush:
    """What inference decided since the flush before.

    ``revised``: (provider, symbol, ts in ns) that may have been decided on before, with bars that were amended
    since: what this consumer stored there and no longer decides is withdrawn.
    """

    topic: str
    signals: Sequence[Signal] = ()
    revised: Sequence[tuple[str, str, int]] = ()


@dataclass(frozen=True, slots=True)
class Flush:
    """One transaction of a consumer on one partition.

    ``positions`` holds the lanes that changed; ``forget`` the lanes whose rows are to be deleted;
    ``published`` the outbox rows that are on the bus by now. ``number`` counts the flushes of a claim from 1: a
    flush that is tried again keeps its number, so that one whose outcome was lost is not applied twice. Where
    ``bars_topic`` or ``dead_letter_topic`` is empty, nobody is told: a run from files needs no bus.
    """

    claim: Claim
    lanes: Sequence[LaneFlush]
    positions: Sequence[Position]
    number: int = 0
    forget: Sequence[str] = ()
    published: Sequence[int] = ()
    bars_topic: str = "mdp.bars"
    dead_letter_topic: str = "mdp.events.dlq"
    signals: SignalFlush | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """What a flush did. ``bars``: inserted or changed, with their revisions. ``refused``: closed bars that
    stored ones of more events kept out. ``unchanged``: closed bars equal to the stored ones. ``amended``:
    stored bars that late events changed. ``stale``: late events whose bar another writer has rewritten since;
    they are in the outbox for the dead letter topic. ``rejected``: rows the database would not take, with the
    reason. ``signals``: new or changed, those that were withdrawn among them. ``created``: bars that were not stored
    before, also those that the same flush amended."""

    bars: BarBatch
    outbox: list[OutboxRecord]
    refused: int = 0
    unchanged: int = 0
    amended: int = 0
    stale: int = 0
    rejected: list[tuple[str, str]] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)
    withdrawn: int = 0
    created: int = 0


class BarSink(Protocol):
    """Where a consumer keeps its results: the store, or a fake of one transaction in a test."""

    async def claim(self, topic: str, group: str, partition: int, owner: str, *, topic_id: str = "") -> Claim:
        """Raise the partition's epoch and make it ``owner``'s, who reads the topic with ``topic_id``. That of the claim
        is another one, and stays, where there are positions of another."""
        ...

    async def commit(self, flush: Flush) -> Committed:
        """Apply ``flush`` whole, or raise: Fenced when a newer epoch exists, StoreUnavailable: try again."""
        ...
