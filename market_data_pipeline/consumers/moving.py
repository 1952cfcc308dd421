"""Moves topics that are at rest to other partitions or to another bus, so that no bar is lost, doubled or split.

The order of the steps, each of which may be made again when the one before was cut off (docs/scaling.md):

1. See that everything is drained and that nobody publishes.
2. Fence: raise the epoch of every partition in the store, with a mark as the owner. The mark is the journal.
3. Copy the records whose ids must be remembered to where their symbols will be.
4. Switch on the bus, and publish what outboxes hold.
5. Replace all positions in one transaction: watermarks go on, nothing is read twice. The mark goes with it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from market_data_core.batch import BarBatch
from market_data_core.errors import BusError
from market_data_core.frames import encode_bars, encode_end_of_lane
from market_data_core.protocols import Claim
from market_data_pipeline.consumers import carrying
from market_data_pipeline.consumers.drained import ends
from market_data_pipeline.consumers.offsets import check_topic_id
from market_data_pipeline.streaming.bus import Bus, Offset, Record
from market_data_pipeline.streaming.repartition import TopicSwitch
from market_data_store.client import StoreClient
from market_data_store.repartitions import GroupPosition

REPARTITION: Final = "repartition "
MIGRATION: Final = "migrate "
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
class TopicMove:
    """One topic that has to move. ``mark``: what the store says of it meanwhile; ``resumed``: it says so already."""

    switch: TopicSwitch
    claims: list[Claim]
    mark: str
    resumed: bool
    starts: dict[int, Offset | None]
    carried: int = 0


class Moving(ABC):
    """Moves ``topics``, of which ``bars_topic`` holds bars, from ``source`` to ``target``, which may be the same bus.

    ``settle_s``: how long nothing must have been published. ``keep_ms``: how long records of partitions that are none
    any more stay readable under their old names.
    """

    def __init__(
        self,
        source: Bus,
        target: Bus,
        store: StoreClient,
        topics: Sequence[str],
        *,
        bars_topic: str,
        keep_ms: int,
        settle_s: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._source = source
        self._target = target
        self._store = store
        self._names = topics
        self._bars_topic = bars_topic
        self._keep_ms = keep_ms
        self._settle_s = settle_s
        self._sleep = sleep

    @abstractmethod
    async def obstacle(self) -> str:
        """What keeps the topics from being moved now, in one sentence; empty when nothing does."""

    @abstractmethod
    async def _look(self, topic: str) -> TopicMove | None:
        """What is to be done about ``topic``; None when it is as it should be.

        Raises:
            BusError: it is halfway to somewhere else.
        """

    async def run(self) -> list[Moved]:
        """Move every topic that is not where it should be.

        Raises:
            BusError: they are in use, or were moved halfway to somewhere else. Nothing was changed.
            ConfigError: the positions in the store are of another topic of that name.
            Fenced: somebody came in between: see to it, and run this again.
        """
        found = [t for name in self._names if (t := await self._look(name)) is not None]
        if not found:
            return []
        for t in found:
            topic_id = await self._source.topic_id(t.switch.topic)
            for claim in t.claims:
                check_topic_id(claim, topic_id)
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
            t.starts = {p: await t.switch.newest(p) for p in range(t.switch.new)}
            await self._carry(t)
        # Before outboxes are published, or the bars among them would count as read.
        moved = {t.switch.topic: await self._positions(t) for t in found}
        for t in found:
            await t.switch.switch()
        await self._publish_outboxes(found)
        topic_ids = {topic: await self._target.topic_id(topic) for topic in marks}
        await self._store.finish_repartition(marks, moved, topic_ids)
        for t in found:
            await t.switch.retire(self._keep_ms)
            await self._verify(t, moved[t.switch.topic])
        return [
            Moved(t.switch.topic, t.switch.old, t.switch.new, t.carried, sorted({c.group for c in t.claims}))
            for t in found
        ]

    async def _published(self, buses: Iterable[Bus]) -> str:
        """Who publishes, in one sentence."""
        places = [(bus, name, await bus.partitions(name)) for bus in buses for name in self._names]
        before = [await ends(bus, name, count) for bus, name, count in places]
        await self._sleep(self._settle_s)
        for (bus, name, count), newest in zip(places, before, strict=True):
            if await ends(bus, name, count) != newest:
                return f"somebody publishes to {name} on {bus.name}: stop every producer and replay first"
        return ""

    def _silence(self, topic: str) -> bytes:
        """A record that says nothing, so that there is an offset to stand at."""
        return encode_bars(BarBatch.empty()) if topic == self._bars_topic else encode_end_of_lane(_NOBODY)

    async def _carry(self, t: TopicMove) -> None:
        """Copy what must be remembered, and end each new partition with silence."""
        if t.switch.topic != self._bars_topic:
            lanes = carrying.lanes_of(t.claims)
            for p, (first, last) in carrying.remembered(t.claims, self._source.parse_offset).items():
                start = first
                while start <= last:
                    page = await t.switch.read(p, start, _PAGE)
                    page = [r for r in page if r.offset <= last]
                    if not page:
                        break
                    for to, record in carrying.split_events(page, t.switch.new, lanes):
                        await t.switch.append(to, [record])
                        t.carried += 1
                    start = page[-1].offset + 1
        if t.claims:
            for p in range(t.switch.new):
                await t.switch.append(p, [Record("", self._silence(t.switch.topic))])

    async def _publish_outboxes(self, found: Sequence[TopicMove]) -> None:
        for row in (row for t in found for claim in t.claims for row in claim.outbox):
            count = await self._target.partitions(row.topic) or await self._first_use(row.topic, found)
            # Dead letters have one partition, whatever they were made from.
            for partition, record in carrying.split_outbox(row, count):
                await self._target.publish(row.topic, [record], partition=partition)

    async def _first_use(self, topic: str, found: Sequence[TopicMove]) -> int:
        """An output topic that the target does not have: as many partitions as its input, dead letters one."""
        wanted = 1 if topic not in self._names else found[0].switch.new
        return await self._target.ensure_topic(topic, wanted)

    async def _positions(self, t: TopicMove) -> list[GroupPosition]:
        """Where every group goes on: behind what was carried, whose ids it remembers first."""
        if not t.claims:
            return []
        places = []
        for p in range(t.switch.new):
            first, end = await t.switch.first_after(p, t.starts[p]), await t.switch.newest(p)
            if first is None or end is None:
                raise BusError(
                    f"partition {p} of {t.switch.topic} lost what was written to it: run this again"
                )
            written = self._target.format_offset(first), self._target.format_offset(end)
            places.append((written[1], written[0] if first < end else ""))
        return carrying.positions_after(t.claims, places, lanes_remember=t.switch.topic != self._bars_topic)

    async def _verify(self, t: TopicMove, moved: Sequence[GroupPosition]) -> None:
        """Read back what was written.

        Raises:
            BusError: it is something else.
        """
        topic = t.switch.topic
        count = await self._target.partitions(topic)
        claims = await self._store.claims(topic)
        there = {(c.group, c.partition, p) for c in claims for p in c.positions.values()}
        # A partition that nobody has claimed yet has positions and no claim.
        wanted = {(m.group, m.partition, m.position) for m in moved}
        known = {(c.group, c.partition) for c in claims}
        if count != t.switch.new or there != {w for w in wanted if w[:2] in known}:
            raise BusError(
                f"topic {topic} reads back with {count} partitions or other positions: start nothing yet"
            )
