"""Topics that are at rest go to another bus: Redis to Kafka and back (docs/migration.md)."""

from __future__ import annotations

from collections.abc import Sequence

from market_data_core.errors import BusError
from market_data_core.protocols import Claim
from market_data_pipeline.consumers.drained import in_the_way, unread
from market_data_pipeline.consumers.moving import MIGRATION, REPARTITION, Moving, TopicMove
from market_data_pipeline.streaming.bus import Bus, TopicStatus
from market_data_pipeline.streaming.bus_switch import BusSwitch
from market_data_pipeline.streaming.dead_letters import DeadLetters


class Migration(Moving):
    """Moves topics from the bus ``source`` to the bus ``target``; the rest is :class:`Moving`'s.

    Which bus a topic is on is told by how the offsets of its positions are written, so the two need different ways.
    """

    async def obstacle(self) -> str:
        for status in await self._source.status(self._names):
            claims = await self._store.claims(status.topic)
            if not status.partitions or self._is_on(self._target, claims):
                continue
            found = in_the_way(status, claims) or await unread(self._source, status, claims)
            if found:
                return found
        for status in await self._target.status(self._names):
            found = await self._strangers(status)
            if found:
                return found
        return await self._published([self._source, self._target])

    async def move_letters(self) -> int:
        """Take the dead letters of all topics along; return how many there were. May be done again when cut off."""
        return sum([await DeadLetters(self._source, name).move(self._target) for name in self._names])

    async def _look(self, topic: str) -> TopicMove | None:
        claims = await self._store.claims(topic)
        mark = f"{MIGRATION}--from {self._source.name} --to {self._target.name}"
        marks = {c.owner for c in claims if c.owner.startswith((REPARTITION, MIGRATION))}
        for other in marks - {mark}:
            raise BusError(f"topic {topic} is halfway already (mdp stream {other}): finish that first")
        events = self._names[0]
        if not any(c.positions for c in claims):
            if topic == events:
                await self._never_read(topic)
            return None
        if not marks and self._is_on(self._target, claims):
            return None
        if not self._is_on(self._source, claims):
            raise BusError(
                f"the positions of topic {topic} in the store are neither of {self._source.name} nor of "
                f"{self._target.name}: name the bus that it was last read on with --from"
            )
        old = await self._source.partitions(topic)
        new = await self._target.partitions(events) or await self._source.partitions(events)
        switch = BusSwitch(self._source, self._target, topic, old, new)
        return TopicMove(switch, claims, mark, bool(marks), {})

    async def _never_read(self, topic: str) -> None:
        for status in await self._source.status([topic]):
            if status.partitions and status.records:
                raise BusError(
                    f"topic {topic} has {status.records} records that no group has read: "
                    "run mdp stream micro-batch --until-idle first"
                )

    async def _strangers(self, status: TopicStatus) -> str:
        """What is on the target that this would pass over, in one sentence."""
        topic, where = status.topic, self._target.name
        claims = await self._store.claims(topic)
        for group in status.groups:
            if group.members:
                return f"group {group.group} of {topic} has members alive on {where}: stop them"
        # What an earlier migration that was cut off has copied is read by nobody.
        if not claims or any(c.owner.startswith(MIGRATION) for c in claims):
            return ""
        for partition in range(status.partitions):
            newest = await self._target.newest(topic, partition, 1)
            if not newest or newest[0].value == self._silence(topic):
                continue
            lags = [p.lag for g in status.groups for p in g.partitions if p.partition == partition]
            if not lags or any(lags):
                return (
                    f"partition {partition} of {topic} on {where} has records that nobody has read there, and would be "
                    f"passed over: stop who publishes there, delete the topic on {where}, and let it publish again "
                    "after the migration"
                )
        return ""

    def _is_on(self, bus: Bus, claims: Sequence[Claim]) -> bool:
        """Whether positions are of ``bus``, and there are any."""
        offsets = [p.read_offset for c in claims for p in c.positions.values() if p.read_offset]
        return bool(offsets) and all(map(bus.knows_offset, offsets))
