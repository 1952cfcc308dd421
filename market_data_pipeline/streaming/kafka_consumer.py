"""A member of a consumer group on Kafka.

Ownership is a matter of :mod:`kafka_group`; records are fetched from the brokers that lead the partitions, one fetch a
broker, always under way while the caller works on what the one before brought. A read tells from where to where, so
nothing depends on anybody else's view of the group: what is delivered follows the cursor, and the cursor is ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import structlog

from market_data_core.clock import Clock
from market_data_core.ending import end
from market_data_core.errors import BusError
from market_data_pipeline.streaming.bus import Consumer, Delivery, Offset, Poll
from market_data_pipeline.streaming.kafka_deletions import Deletions
from market_data_pipeline.streaming.kafka_group import Membership
from market_data_pipeline.streaming.kafka_link import KafkaLink
from market_data_pipeline.streaming.kafka_marking import Marking
from market_data_pipeline.streaming.kafka_marks import Mark
from market_data_pipeline.streaming.kafka_partition import Backlog, PartitionReading, Round
from market_data_pipeline.streaming.kafka_reading import Fetched, KafkaReader, fetch
from market_data_pipeline.streaming.kafka_topic_id import topic_id

LONGEST_WAIT_MS: Final = 200
"""How long one fetch waits for records: also how long a partition that joins in may wait for the fetch under way."""
SURE_NS: Final = 1_000_000_000
"""A topic that is deleted fails the fetch that is under way. Where none was for so long, it may be another one now."""
READ_AHEAD: Final = 2
"""Fetches of a partition that may wait for the caller."""

log = structlog.get_logger(__name__)


class KafkaConsumer(Consumer):
    """See :class:`Consumer`. ``membership`` is made when it is known how many partitions there are."""

    def __init__(
        self,
        link: KafkaLink,
        topic: str,
        count: Callable[[], Any],
        membership: Callable[[int], Membership],
        deletions: Deletions,
        *,
        max_records: int,
        clock: Clock,
    ) -> None:
        self.topic = topic
        self._link = link
        self._reader = KafkaReader(link)
        self._count = count
        self._topic_id = ""
        self._answered: dict[int, int] = {}
        self._make_membership = membership
        self._deletions = deletions
        self._gone: dict[int, frozenset[Offset]] = {}
        self._max_records = max_records
        self._clock = clock
        self._group: Membership | None = None
        self._changed: asyncio.Task[bool] | None = None
        self._marking: Marking | None = None
        self._owned: dict[int, PartitionReading] = {}
        self._rounds: dict[int | None, Round] = {}

    async def poll(self, timeout: float) -> Poll:
        group = self._group or await self._join()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        wait_ms = min(LONGEST_WAIT_MS, int(timeout * 1000))
        idle: dict[int, int] = {}
        if self._marking is not None:
            self._marking.tell_soon(self._owned.values())
        while True:
            # What the caller is told of only once comes before anything that can fail.
            out = self._ownership(group)
            if not (out.assigned or out.revoking or out.lost):
                group.check()
                await self._harvest(idle)
                self._start(wait_ms)
            out.deliveries = self._take(group.owned.held)
            left = deadline - loop.time()
            if out.deliveries or out.assigned or out.revoking or out.lost or left <= 0:
                out.idle = {p: at for p, at in idle.items() if p in self._owned}
                return out
            await self._wait(group, left)

    async def seek(self, partition: int, start: Offset | None) -> None:
        p, group = self._owned.get(partition), self._group
        if p is None or group is None:
            raise BusError(f"partition {partition} of {self.topic} is not owned: poll until it is assigned")
        p.sought = False
        p.ready.clear()
        p.generation += 1
        mine = p.generation
        first, _ = (await self._reader.bounds(self.topic, [partition]))[partition]
        committed = await group.committed(partition)
        self._gone[partition] = await self._deletions.of(self.topic, partition)
        if p.generation != mine:
            return
        begin = max(0 if start is None else start, first)
        if start is not None and start < first:
            log.warning("records_removed_unread", topic=self.topic, partition=partition, up_to=first)
        known = Mark(begin, begin) if committed is None else Mark.of(committed)
        # What lies between the group and a position past it is nobody's any more.
        p.mark = Mark(max(known.done, begin), max(known.handed, begin), known.keep) if start else known
        p.marked = known if committed is not None else None
        p.rewind(begin)
        # Last, so that nothing is delivered before the caller knows.
        p.sought = True

    async def ack(self, partition: int, through: Offset, *, keep_from: Offset | None = None) -> None:
        p = self._owned.get(partition)
        if p is None or p.mark is None or self._marking is None:
            log.debug("ack_without_ownership", topic=self.topic, partition=partition)
            return
        await self._marking.ack(p, through, keep_from)

    async def release(self, partition: int) -> None:
        p, group = self._owned.get(partition), self._group
        if p is None or group is None:
            return
        if self._marking is not None:
            await self._marking.tell([p])
        # It may have been lost meanwhile, and given again.
        if self._owned.get(partition) is p:
            del self._owned[partition]
            p.generation += 1
            group.release(partition)

    def pause(self, partition: int) -> None:
        if partition in self._owned:
            self._owned[partition].paused = True

    def resume(self, partition: int) -> None:
        if partition in self._owned:
            self._owned[partition].paused = False

    async def close(self) -> None:
        tasks: list[asyncio.Task[Any]] = [r.task for r in self._rounds.values()]
        tasks += [] if self._changed is None else [self._changed]
        await end(*tasks)
        if self._marking is not None:
            await self._marking.close(list(self._owned.values()))
        group, self._group, self._marking = self._group, None, None
        if group is not None:
            await group.close()
        self._owned.clear()
        self._rounds.clear()
        await self._link.close()

    async def mark(self) -> None:
        """Tell the broker how far records were delivered, as well as that can be done now."""
        if self._marking is not None:
            await self._marking.tell(list(self._owned.values()))

    async def _join(self) -> Membership:
        group = self._make_membership(await self._count())
        self._topic_id = await topic_id(self._link, self.topic)
        try:
            await group.start()
        except BaseException:
            await group.close()
            raise
        self._group, self._marking = group, Marking(self.topic, group, self._clock)
        return group

    def _ownership(self, group: Membership) -> Poll:
        assigned, revoking, lost = group.owned.take_changes()
        # One that the caller is releasing meanwhile is none of its business any more.
        lost = [number for number in lost if number in self._owned]
        revoking = [number for number in revoking if number in self._owned]
        for number in lost:
            self._owned.pop(number).generation += 1
        for number in assigned:
            self._owned[number] = PartitionReading(number)
        for number in revoking:
            self._owned[number].revoking = True
        return Poll(assigned, revoking, lost)

    async def _wait(self, group: Membership, seconds: float) -> None:
        """Until a fetch under way has ended, ownership has changed, or the session ran out."""
        if self._changed is None or self._changed.done():
            self._changed = asyncio.create_task(group.owned.changed.wait())
        waiters: set[asyncio.Task[Any]] = {self._changed, *(r.task for r in self._rounds.values())}
        seconds = min(seconds, group.owned.seconds_left())
        await asyncio.wait(waiters, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)

    def _take(self, held: set[int]) -> list[Delivery]:
        """One batch of each partition that has one."""
        out: list[Delivery] = []
        for p in self._owned.values():
            if p.readable and p.number in held:
                try:
                    with self._link.translated():
                        delivery = p.take(self._max_records)
                except BusError as error:
                    if not out:
                        raise
                    # What was taken of others is delivered first; this one is read again.
                    log.warning("read_again", topic=self.topic, partition=p.number, error=str(error))
                    break
                out += [delivery] if delivery else []
        return out

    def _start(self, wait_ms: int) -> None:
        """Begin to read what is due of every broker that is not being read."""
        due: dict[int | None, list[PartitionReading]] = {}
        busy = {p for r in self._rounds.values() for p in r.generations if r.valid(p)}
        for p in self._owned.values():
            if p.readable and len(p.ready) < READ_AHEAD and p not in busy:
                due.setdefault(self._link.leader_now(self.topic, p.number), []).append(p)
        for node, partitions in due.items():
            if node not in self._rounds:
                # Who has enough now and is emptied soon must not wait for a record of another partition.
                full = any(p.ready and p not in partitions for p in self._owned.values())
                reading = self._read(node, partitions, 0 if full else wait_ms)
                task = asyncio.create_task(reading, name=f"read {self.topic} of {node}")
                self._rounds[node] = Round({p: p.generation for p in partitions}, task)

    async def _read(
        self, node: int | None, partitions: list[PartitionReading], wait_ms: int
    ) -> list[Fetched]:
        if node is None:
            await self._link.leaders(self.topic, [p.number for p in partitions])
            return []
        # A broker fills its answer in the order asked.
        turn = self._clock.monotonic() % len(partitions)
        wanted = {p.number: p.cursor for p in partitions[turn:] + partitions[:turn]}
        if self._topic_id and self._clock.monotonic() - self._answered.get(node, 0) > SURE_NS:
            await self._check_topic(node)
        began = self._clock.monotonic()
        found = await fetch(self._link, node, self.topic, wanted, wait_ms=wait_ms, began=began)
        self._answered[node] = self._clock.monotonic()
        return found

    async def _check_topic(self, node: int) -> None:
        """See that ``node`` has the topic that there was when this member joined: a fetch names it, and not its id.

        Raises:
            BusUnavailable: it knows no such topic.
            BusError: it is another one.
        """
        if await topic_id(self._link, self.topic, node) != self._topic_id:
            raise BusError(
                f"topic {self.topic} was deleted and made anew while it was read: take another bus.redis.consumer_group"
            )

    async def _harvest(self, idle: dict[int, int]) -> None:
        """Make ready what fetches brought."""
        for node in [node for node, r in self._rounds.items() if r.task.done()]:
            done = self._rounds.pop(node)
            try:
                found = {fetched.partition: fetched for fetched in await done.task}
            except BusError:
                self._answered.clear()
                raise
            for p in filter(done.valid, done.generations):
                fetched = found.get(p.number)
                if fetched is None:
                    continue
                if fetched.missed:
                    first, end = (await self._reader.bounds(self.topic, [p.number]))[p.number]
                    p.misplaced(self.topic, first, end, self._clock.monotonic())
                    continue
                p.missing_since = None
                p.cursor = fetched.next
                if p.cursor > fetched.first:
                    p.ready.append(Backlog(fetched, self._gone.get(p.number, ())))
                elif fetched.end <= p.cursor and not p.ready:
                    idle[p.number] = fetched.began
