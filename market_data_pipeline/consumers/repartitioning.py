"""Another number of partitions for topics that are at rest, on the bus where they are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from market_data_core.errors import BusError
from market_data_pipeline.consumers.drained import in_the_way
from market_data_pipeline.consumers.moving import MIGRATION, REPARTITION, Moving, TopicMove
from market_data_pipeline.streaming.bus import Bus
from market_data_store.client import StoreClient


class Repartitioning(Moving):
    """Moves ``topics``, of which ``bars_topic`` holds bars, to ``partitions``; the rest is :class:`Moving`'s."""

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
        super().__init__(
            bus, bus, store, topics, bars_topic=bars_topic, keep_ms=keep_ms, settle_s=settle_s, sleep=sleep
        )
        self._bus = bus
        self._new = partitions

    async def obstacle(self) -> str:
        for status in await self._bus.status(self._names):
            if not status.partitions:
                continue
            claims = await self._store.claims(status.topic)
            resumed = any(c.owner.startswith(REPARTITION) for c in claims)
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
        return await self._published([self._bus])

    async def _look(self, topic: str) -> TopicMove | None:
        count = await self._bus.partitions(topic)
        claims = await self._store.claims(topic)
        marks = {c.owner for c in claims if c.owner.startswith((REPARTITION, MIGRATION))}
        old = count
        for mark in marks:
            if mark.startswith(MIGRATION):
                raise BusError(
                    f"topic {topic} is halfway to another bus (mdp stream {mark}): finish that first"
                )
            before, _, after = mark.removeprefix(REPARTITION).partition(" to ")
            old = int(before)
            if int(after) != self._new:
                raise BusError(
                    f"topic {topic} is halfway from {before} to {after} partitions: "
                    f"finish that first, with --partitions {after}"
                )
        if count in (0, self._new) and not marks:
            return None
        mark = f"{REPARTITION}{old} to {self._new}"
        return TopicMove(self._bus.topic_switch(topic, old, self._new), claims, mark, bool(marks), {})
