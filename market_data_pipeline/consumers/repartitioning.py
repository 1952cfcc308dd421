"""Changes the number of partitions of topics that are at rest, so that no bar is lost, doubled or split.

The order of the steps, each of which may be made again when the one before was cut off (docs/scaling.md):

1. See that everything is drained and that nobody publishes.
2. Fence: raise the epoch of every partition in the store, with a mark as the owner. The mark is the journal.
3. Copy the records whose ids must be remembered to where their symbols will be.
4. Switch the number on the bus, and publish what outboxes hold.
5. Replace all positions in one transaction: watermarks go on, nothing is read twice. The mark goes with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from market_data_core.batch import BarBatch
from market_data_core.errors import BusError
from market_data_core.frames import encode_bars, encode_end_of_lane
from market_data_core.protocols import Claim
from market_data_pipeline.consumers import carrying
from market_data_pipeline.consumers.drained import ends, in_the_way
from market_data_pipeline.streaming.bus import Bus, Offset, Record
from market_data_pipeline.streaming.repartition import TopicSwitch
from market_data_store.client import StoreClient
from market_data_store.repartitions import GroupPosition

_MARK: Final = "repartition "
_PAGE: Final = 500
_NOBODY: Final = "replay/repartition/none"


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of one topic. ``carried``: records written to remember ids; ``groups``: whose positions moved."""

    topic: str
    before: int
    after: int
    carried: int
    groups: list[str]


@dataclass(slots=True)
class _Topic:
    switch: TopicSwitch
    claims: list[Claim]
    resumed: bool
    starts: dict[int, Offset | None]
    carried: int = 0

    @property
    def mark(self) -> str:
        return f"{_MARK}{self.switch.old} to {self.switch.new}"


class Repartitioning:
    """Moves ``topics``, of which ``bars_topic`` holds bars, to ``partitions``.

    ``settle_s``: how long nothing must have been published. ``keep_ms``: how long records of partitions that are none
    any more stay readable under their old names.
    """

    def __init__(
        self,
        bus: Bus,
        store: StoreClient,
        topics: Sequence[str],
        partitions: int,
        *,
        bars_topic: str,
        keep_ms: int,
        settle_s: float = 2.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._bus = bus
        self._store = store
        self._names = topics
        self._new = partitions
        self._bars_topic = bars_topic
        self._keep_ms = keep_ms
        self._settle_s = settle_s
        self._sleep = sleep

    async def obstacle(self) -> str:
        """What keeps the topics from being moved now, in one sentence; empty when nothing does."""
        for status in await self._bus.status(self._names):
            if not status.partitions:
                continue
            claims = await self._store.claims(status.topic)
            resumed = any(c.owner.startswith(_MARK) for c in claims)
            # An earlier switch may have come as far as new partitions, to which no group has come yet.
            if status.topic == self._names[0] and status.records and not status.groups and not resumed:
                return (
                    f"topic {status.topic} has {status.records} records that no group has read: "
                    "run mdp stream micro-batch --until-idle first, or their symbols would be in two partitions"
                )
            found = in_the_way(status, claims)
            # What an earlier switch copied lies before the position that it did not come to write.
            if found and (not resumed or any(g.members for g in status.groups)):
                return found
        return await self._published()

    async def run(self) -> list[Moved]:
        """Move every topic that has another number of partitions.

        Raises:
            BusError: they are in use, or were moved halfway to another number. Nothing was changed.
            Fenced: somebody came in between: see to it, and run this again.
        """
        found = [t for name in self._names if (t := await self._look(name)) is not None]
        if not found:
            return []
        obstacle = await self.obstacle()
        if obstacle:
            raise BusError(obstacle)
        for t in found:
            if not t.resumed:
                await t.switch.check()
        marks = {t.switch.topic: t.mark for t in found}
        await self._store.begin_repartition(marks)
        for t in found:
            await t.switch.prepare(resumed=t.resumed)
            t.starts = {p: await t.switch.newest(p) for p in range(self._new)}
            await self._carry(t)
        # Before outboxes are published, or the bars among them would count as read.
        moved = {t.switch.topic: await self._positions(t) for t in found}
        for t in found:
            await t.switch.switch()
        await self._publish_outboxes(found)
        await self._store.finish_repartition(marks, moved)
        for t in found:
            await t.switch.retire(self._keep_ms)
            await self._verify(t, moved[t.switch.topic])
        return [
            Moved(t.switch.topic, t.switch.old, self._new, t.carried, sorted({c.group for c in t.claims}))
            for t in found
        ]

    async def _look(self, topic: str) -> _Topic | None:
        """What is to be done about ``topic``; None when it is as it should be."""
        count = await self._bus.partitions(topic)
        claims = await self._store.claims(topic)
        marks = {c.owner for c in claims if c.owner.startswith(_MARK)}
        old = count
        for mark in marks:
            before, _, after = mark.removeprefix(_MARK).partition(" to ")
            old = int(before)
            if int(after) != self._new:
                raise BusError(
                    f"topic {topic} is halfway from {before} to {after} partitions: "
                    f"finish that first, with --partitions {after}"
                )
        if count in (0, self._new) and not marks:
            return None
        return _Topic(self._bus.topic_switch(topic, old, self._new), claims, bool(marks), {})

    async def _published(self) -> str:
        counts = {name: await self._bus.partitions(name) for name in self._names}
        before = {name: await ends(self._bus, name, count) for name, count in counts.items()}
        await self._sleep(self._settle_s)
        for name, count in counts.items():
            if await ends(self._bus, name, count) != before[name]:
                return f"somebody publishes to {name}: stop every producer and replay first"
        return ""

    async def _carry(self, t: _Topic) -> None:
        """Copy what must be remembered, and end each new partition with a record that says nothing, so that there is
        an offset to stand at."""
        if t.switch.topic == self._bars_topic:
            silence = encode_bars(BarBatch.empty())
        else:
            lanes = carrying.lanes_of(t.claims)
            for p, (first, last) in carrying.remembered(t.claims, self._bus.parse_offset).items():
                start = first
                while start <= last:
                    page = await t.switch.read(p, start, _PAGE)
                    page = [r for r in page if r.offset <= last]
                    if not page:
                        break
                    for to, record in carrying.split_events(page, self._new, lanes):
                        await t.switch.append(to, [record])
                        t.carried += 1
                    start = page[-1].offset + 1
            silence = encode_end_of_lane(_NOBODY)
        if t.claims:
            for p in range(self._new):
                await t.switch.append(p, [Record("", silence)])

    async def _publish_outboxes(self, found: Sequence[_Topic]) -> None:
        for row in (row for t in found for claim in t.claims for row in claim.outbox):
            count = await self._bus.partitions(row.topic)
            # Dead letters have one partition, whatever they were made from.
            for partition, record in carrying.split_outbox(row, count):
                await self._bus.publish(row.topic, [record], partition=partition)

    async def _positions(self, t: _Topic) -> list[GroupPosition]:
        """Where every group goes on: behind what was carried, whose ids it remembers first."""
        if not t.claims:
            return []
        places = []
        for p in range(self._new):
            first, end = await t.switch.first_after(p, t.starts[p]), await t.switch.newest(p)
            if first is None or end is None:
                raise BusError(
                    f"partition {p} of {t.switch.topic} lost what was written to it: run this again"
                )
            written = self._bus.format_offset(first), self._bus.format_offset(end)
            places.append((written[1], written[0] if first < end else ""))
        return carrying.positions_after(t.claims, places, lanes_remember=t.switch.topic != self._bars_topic)

    async def _verify(self, t: _Topic, moved: Sequence[GroupPosition]) -> None:
        """Read back what was written.

        Raises:
            BusError: it is something else.
        """
        topic = t.switch.topic
        count = await self._bus.partitions(topic)
        claims = await self._store.claims(topic)
        there = {(c.group, c.partition, p) for c in claims for p in c.positions.values()}
        # A partition that nobody has claimed yet has positions and no claim.
        wanted = {(m.group, m.partition, m.position) for m in moved}
        known = {(c.group, c.partition) for c in claims}
        if count != self._new or there != {w for w in wanted if w[:2] in known}:
            raise BusError(
                f"topic {topic} reads back with {count} partitions or other positions: start nothing yet"
            )
