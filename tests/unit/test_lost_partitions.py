"""What a consumer does with partitions that it loses while something is under way for them.

The bus is a script of polls and the store holds its answers back until told, so that each moment can be chosen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from market_data_core.batch import BarBatch
from market_data_core.clock import SystemClock
from market_data_core.errors import BusError, Fenced, StoreUnavailable
from market_data_core.protocols import Claim, Committed, Flush, OutboxRecord, Position
from market_data_pipeline.consumers.exactly_once import ConsumerSettings, ExactlyOnceConsumer
from market_data_pipeline.consumers.partition_logic import Plan
from market_data_pipeline.consumers.stats import RunStats
from market_data_pipeline.streaming.bus import (
    Consumer,
    Delivery,
    GroupPartition,
    GroupStatus,
    Offset,
    Poll,
    Record,
    TopicStatus,
)
from market_data_pipeline.streaming.memory_bus import MemoryBus

SETTINGS = ConsumerSettings("t", "g", "me", "bars", "t.dlq", poll_seconds=0.01)


class ScriptedConsumer(Consumer):
    """Gives the polls that the test puts in, and knows what is owned."""

    def __init__(self) -> None:
        self.script: asyncio.Queue[Poll] = asyncio.Queue()
        self.owned: set[int] = set()
        self.sought: list[int] = []
        self.acknowledged: list[int] = []
        self.polls = 0
        self.on_loss: Callable[[], None] = lambda: None

    async def poll(self, timeout: float) -> Poll:
        self.polls += 1
        try:
            poll = await asyncio.wait_for(self.script.get(), timeout)
        except TimeoutError:
            return Poll()
        self.owned |= set(poll.assigned)
        self.owned -= set(poll.lost)
        if poll.lost:
            self.on_loss()
        return poll

    async def seek(self, partition: int, start: Offset | None) -> None:
        if partition not in self.owned:
            raise BusError(f"partition {partition} is not owned")
        self.sought.append(partition)

    async def ack(self, partition: int, through: Offset, *, keep_from: Offset | None = None) -> None:
        self.acknowledged.append(partition)

    async def release(self, partition: int) -> None:
        self.owned.discard(partition)

    def pause(self, partition: int) -> None: ...

    def resume(self, partition: int) -> None: ...

    async def close(self) -> None: ...


class ScriptedBus(MemoryBus):
    def __init__(self, consumer: ScriptedConsumer) -> None:
        super().__init__("memory://lost-partitions")
        self._consumer = consumer
        self.published: list[str] = []
        self.statuses: list[TopicStatus] = []

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
        return self._consumer

    async def status(self, topics: Sequence[str] | None = None) -> list[TopicStatus]:
        return [self.statuses.pop(0)] if self.statuses else await super().status(topics)

    async def publish(self, topic: str, records: Any, *, partition: int | None = None) -> None:
        self.published += [Record(*r).key if isinstance(r, tuple) else r.key for r in records]


class HeldBackStore:
    """A store whose answers wait until the test lets them go; a commit then does what it is told to."""

    def __init__(self) -> None:
        self.claims: dict[int, asyncio.Event] = {}
        self.committing = asyncio.Event()
        self.answer: asyncio.Queue[Exception | Committed] = asyncio.Queue()
        self.commits = 0
        self.loses_cancellations = False

    async def claim(self, topic: str, group: str, partition: int, owner: str, *, topic_id: str = "") -> Claim:
        try:
            await self.claims.setdefault(partition, asyncio.Event()).wait()
        except asyncio.CancelledError:
            # As asyncio.wait_for of Python 3.11 does when the answer comes at the same time.
            if not self.loses_cancellations:
                raise
        return Claim(topic, group, partition, 1, owner, {}, [])

    async def commit(self, flush: Flush) -> Committed:
        self.commits += 1
        self.committing.set()
        answer = await self.answer.get()
        if isinstance(answer, Exception):
            raise answer
        return answer


class OneFlush:
    """A logic that has one thing to commit."""

    start: Offset | None = None
    committed: Offset | None = None
    backlog = 0

    def __init__(self) -> None:
        self._due = True

    async def prepare(self, delivery: Delivery) -> None: ...

    def process(self, delivery: Delivery) -> None: ...

    def caught_up(self, at: int) -> None: ...

    def finish(self) -> None: ...

    def due(self) -> bool:
        return self._due

    def take(self) -> Plan:
        self._due = False
        return Plan([], [Position("", 0, "0", "", "")], [], 0, 0)


class Scene:
    def __init__(self) -> None:
        self.consumer, self.store, self.stats = ScriptedConsumer(), HeldBackStore(), RunStats()
        self.bus = ScriptedBus(self.consumer)
        self.stop = asyncio.Event()
        self.member = ExactlyOnceConsumer(
            self.bus, self.store, SETTINGS, lambda claim: OneFlush(), SystemClock(), self.stats
        )
        self.run = asyncio.create_task(self.member.run(self.stop))

    async def reach(self, condition: Any) -> None:
        """Let the member run until ``condition()``, or raise what it raised."""
        async with asyncio.timeout(10):
            while not condition():
                if self.run.done():
                    self.run.result()
                await asyncio.sleep(0)

    async def end(self) -> None:
        self.stop.set()
        async with asyncio.timeout(10):
            await self.run

    async def commit_of_a_lost_partition(self) -> None:
        """Partition 0 is owned, commits, and is lost before the store has answered."""
        self.store.claims[0] = asyncio.Event()
        self.store.claims[0].set()
        self.consumer.script.put_nowait(Poll(assigned=[0]))
        await self.reach(self.store.committing.is_set)
        self.consumer.script.put_nowait(Poll(lost=[0]))
        await self.reach(lambda: self.member.partitions == [])


@pytest.mark.parametrize("cancellations", ["arrive", "are lost"])
async def test_partitions_lost_while_they_are_claimed_are_given_up_all_at_once(cancellations: str) -> None:
    scene = Scene()
    scene.store.loses_cancellations = cancellations == "are lost"
    scene.consumer.script.put_nowait(Poll(assigned=[0, 1, 2]))
    await scene.reach(lambda: len(scene.store.claims) == 3)

    def answer_all() -> None:
        for claim in scene.store.claims.values():
            claim.set()

    scene.consumer.on_loss = answer_all  # in the same turn of the event loop as the loss
    scene.consumer.script.put_nowait(Poll(lost=[0, 1, 2]))
    await scene.reach(lambda: not scene.consumer.owned and scene.consumer.script.empty())
    scene.consumer.script.put_nowait(Poll(assigned=[1]))
    await scene.reach(lambda: scene.member.partitions == [1])
    assert set(scene.consumer.sought) <= {0, 1, 2}
    scene.store.answer.put_nowait(Committed(BarBatch.empty(), []))
    await scene.end()


async def test_a_commit_of_a_lost_partition_that_is_refused_is_counted() -> None:
    scene = Scene()
    await scene.commit_of_a_lost_partition()
    scene.store.answer.put_nowait(Fenced("partition 0 is at epoch 2"))
    await scene.reach(lambda: scene.stats.fenced_writes == 1)
    await scene.end()
    assert scene.consumer.acknowledged == []


async def test_a_commit_of_a_lost_partition_that_was_in_time_is_left_to_the_next_owner() -> None:
    scene = Scene()
    await scene.commit_of_a_lost_partition()
    row = OutboxRecord(1, "bars", 0, "key", None, b"x")
    scene.store.answer.put_nowait(Committed(BarBatch.empty(), [row]))
    await scene.reach(lambda: scene.stats.flushes == 1)
    await scene.end()
    assert (scene.bus.published, scene.consumer.acknowledged, scene.stats.fenced_writes) == ([], [], 0)


@pytest.mark.parametrize("after", ["stop", "going on"])
async def test_a_commit_of_a_lost_partition_is_not_tried_again(after: str) -> None:
    scene = Scene()
    await scene.commit_of_a_lost_partition()
    if after == "going on":
        scene.store.answer.put_nowait(StoreUnavailable("the server is away"))
        await scene.reach(scene.store.answer.empty)
        scene.store.claims[1] = scene.store.claims[0]
        scene.consumer.script.put_nowait(Poll(assigned=[1]))
        await scene.reach(lambda: scene.member.partitions == [1] and scene.store.commits == 2)
        scene.store.answer.put_nowait(Committed(BarBatch.empty(), []))
    await scene.end()
    assert scene.store.commits == (2 if after == "going on" else 1)


async def test_records_of_a_partition_that_the_group_has_not_come_to_yet_are_waited_for() -> None:
    scene = Scene()
    unread = TopicStatus(SETTINGS.topic, 2, 3, [], [0, 3])
    read = GroupStatus(SETTINGS.group, [], [GroupPartition(1, None, 0, 0, 0, 0)])
    scene.bus.statuses = [unread, unread, TopicStatus(SETTINGS.topic, 2, 3, [read], [0, 3]), unread]
    scene.member.end_when_idle(0)
    async with asyncio.timeout(10):
        await scene.run
    assert scene.bus.statuses == [unread], "it asked until the group had read all"


async def test_what_an_owner_before_was_handed_is_read_again_before_a_member_goes_idle() -> None:
    """The group's lag is zero, since it all was handed to an owner that died."""
    scene = Scene()
    scene.store.claims[0] = asyncio.Event()
    scene.store.claims[0].set()
    scene.consumer.script.put_nowait(Poll(assigned=[0]))
    await scene.reach(scene.store.committing.is_set)
    scene.store.answer.put_nowait(Committed(BarBatch.empty(), []))
    await scene.reach(lambda: scene.consumer.acknowledged == [0])
    handed = GroupStatus(SETTINGS.group, ["me"], [GroupPartition(0, "me", 0, 0, 3, 0)])
    scene.bus.statuses = [TopicStatus(SETTINGS.topic, 1, 3, [handed], [3])] * 2
    scene.member.end_when_idle(0)
    for deliveries in ([], [Delivery(0, [1], [b"x"], None, caught_up=False, polled_at=0)]):
        scene.consumer.script.put_nowait(Poll(deliveries=deliveries))
        for _ in range(5):
            polled = scene.consumer.polls
            await scene.reach(lambda polled=polled: scene.consumer.polls > polled)
        assert not scene.run.done()
    scene.consumer.script.put_nowait(Poll(idle={0: 1}))
    async with asyncio.timeout(10):
        await scene.run
