"""A member of a consumer group on Redis.

Ownership is a matter of :mod:`leases`; delivery is Redis's consumer group: ``XREADGROUP`` for what is new,
``XACK`` for what is done, and on :meth:`~RedisConsumer.seek` every entry that another member left pending is
claimed, so ``XPENDING`` and ``XINFO GROUPS`` tell an operator the truth.

Redis hands new entries to whoever asks, owner or not: a member that was stopped and does not know yet that it
lost a partition can take entries out of it, and an answer can get lost on the wire after the server counted its
entries as delivered. So every read is checked against the stream: when there is an entry between the last one
read here and the first one just read, or nothing was read although the group was handed more than was read
here, the partition is read again from there as a range. What is delivered never has a gap, whatever the
other consumers of the group do.

One read is always under way while the caller works on the one before; on a cluster one at each node that has
a partition, since no command may touch more than one slot there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from market_data_core.clock import Clock
from market_data_core.ending import end
from market_data_core.errors import BusError
from market_data_pipeline.streaming.bus import Consumer, Delivery, Offset, Poll
from market_data_pipeline.streaming.leases import Leases
from market_data_pipeline.streaming.redis_cluster import redirects
from market_data_pipeline.streaming.redis_entries import format_id
from market_data_pipeline.streaming.redis_group import RedisGroup, last_delivered, missing
from market_data_pipeline.streaming.redis_partition import Partition
from market_data_pipeline.streaming.redis_topics import Topics, stream_names
from market_data_pipeline.streaming.redis_wire import RedisServer, Reply, Wire, pack

LONGEST_BLOCK_MS: Final = 200
"""How long one read waits for entries: also how long a hand-over may wait for a read under way."""
READ_BYTES: Final = 4 << 20
"""What one read should bring at most, judged by the size of the entries before: frames can be large. Also how long the
caller is busy with it, and so how long leases and commits wait for their turn: 0.1 s or so."""
_FIRST_COUNT: Final = 64
_SHORTEST_BLOCK_MS: Final = 10
"""How long a node of a cluster waits for entries of one of several partitions, before it looks at all again."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Ask:
    """One command of a read: a range of one partition, or the new entries of some."""

    partitions: list[Partition]
    command: bytes
    new: bool


@dataclass(slots=True, eq=False)
class _Round:
    """One read under way at one server."""

    asks: list[_Ask]
    count: int
    began: int
    generations: dict[Partition, int]
    task: asyncio.Task[list[Reply]]

    def valid(self, partition: Partition) -> bool:
        """Whether nobody sought, released or lost it since it was asked for."""
        return self.generations[partition] == partition.generation


class RedisConsumer(Consumer):
    """See :class:`Consumer`."""

    def __init__(
        self,
        server: RedisServer,
        topics: Topics,
        topic: str,
        group: str,
        member: str,
        *,
        max_records: int,
        lease_ms: int,
        static: bool,
        clock: Clock,
    ) -> None:
        self._server = server
        self._static = static
        self._topics = topics
        self._group = RedisGroup(server, topics, topic, group, member)
        self._max_records = max_records
        self._lease_ms = lease_ms
        self._clock = clock
        self._readers: dict[str, Wire] = {}
        self._acking = asyncio.Lock()
        self._leases: Leases | None = None
        self._changed: asyncio.Task[bool] | None = None
        self._owned: dict[int, Partition] = {}
        self._streams: list[str] = []
        self._rounds: dict[str, _Round] = {}
        self._quiet: dict[str, int] = {}

    async def poll(self, timeout: float) -> Poll:
        leases = self._leases or await self._join()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        block_ms = min(LONGEST_BLOCK_MS, int(timeout * 1000))
        idle: dict[int, int] = {}
        while True:
            # What the caller is told of only once comes before anything that can fail.
            out = self._ownership(leases)
            if not (out.assigned or out.revoking or out.lost):
                leases.check()
                await self._read_on(idle, block_ms)
            out.deliveries = self._take(leases.held)
            left = deadline - loop.time()
            if out.deliveries or out.assigned or out.revoking or out.lost or left <= 0:
                out.idle = {p: at for p, at in idle.items() if p in self._owned}
                return out
            await self._wait(leases, left)

    async def seek(self, partition: int, start: Offset | None) -> None:
        p = self._owned.get(partition)
        if p is None:
            raise BusError(
                f"partition {partition} of {self._group.topic} is not owned: poll until it is assigned"
            )
        p.sought = False
        p.ready.clear()
        p.unacked = []
        await self._rewind(p, -1 if start is None else start - 1, claim_from=0)
        await self._group.forget_absent(p.stream, self._lease_ms)
        # Last, so that nothing is delivered before the caller knows.
        p.sought = True

    async def ack(self, partition: int, through: Offset, *, keep_from: Offset | None = None) -> None:
        p = self._owned.get(partition)
        if p is None:
            log.debug("ack_without_ownership", topic=self._group.topic, partition=partition)
            return
        async with self._acking:
            known, count = p.unacked, len(p.unacked)
            ids, rest = p.due(through)
            keep = keep_from if keep_from != p.kept else None
            await self._group.acknowledge(p.stream, ids, keep)
            # Only now: one that failed is made up for by the next. Meanwhile more may have been delivered.
            if p.unacked is known:
                p.unacked = rest + known[count:]
            p.kept = p.kept if keep is None else keep

    async def release(self, partition: int) -> None:
        p = self._owned.pop(partition, None)
        if p is None or self._leases is None:
            return
        p.generation += 1
        # A read under way would take entries out of what is somebody else's by then: harmless, but untidy.
        await self._settled(p)
        await self._leases.release(partition)

    def pause(self, partition: int) -> None:
        if partition in self._owned:
            self._owned[partition].paused = True

    def resume(self, partition: int) -> None:
        if partition in self._owned:
            self._owned[partition].paused = False

    async def close(self) -> None:
        tasks: list[asyncio.Task[Any]] = [] if self._changed is None else [self._changed]
        tasks += [under_way.task for under_way in self._rounds.values()]
        await end(*tasks)
        for reader in self._readers.values():
            await reader.close()
        owned, self._owned = self._owned, {}
        leases, self._leases = self._leases, None
        self._rounds, self._changed = {}, None
        if leases is not None:
            try:
                await self._group.leave(p.stream for p in owned.values())
            except BusError as error:
                log.info("group_not_left", group=self._group.name, error=str(error))
            await leases.close()
        await self._group.close()

    async def _join(self) -> Leases:
        self._streams = stream_names(self._group.topic, await self._topics.existing(self._group.topic))
        await self._group.create(self._streams)
        leases = Leases(
            self._server,
            self._group.topic,
            self._group.name,
            self._group.member,
            self._streams,
            lease_ms=self._lease_ms,
            static=self._static,
            clock=self._clock,
        )
        await leases.start()
        self._leases = leases
        return leases

    def _ownership(self, leases: Leases) -> Poll:
        assigned, revoking, lost = leases.take_changes()
        # One that the caller is releasing meanwhile is none of its business any more.
        lost = [number for number in lost if number in self._owned]
        revoking = [number for number in revoking if number in self._owned]
        for number in lost:
            self._owned.pop(number).generation += 1
        for number in assigned:
            self._owned[number] = Partition(number, self._streams[number])
        for number in revoking:
            self._owned[number].revoking = True
        return Poll(assigned, revoking, lost)

    async def _wait(self, leases: Leases, seconds: float) -> None:
        """Until a read under way has ended, ownership has changed, or a lease ran out."""
        if self._changed is None or self._changed.done():
            self._changed = asyncio.create_task(leases.changed.wait())
        waiters: set[asyncio.Task[Any]] = {self._changed}
        waiters.update(under_way.task for under_way in self._rounds.values())
        seconds = min(seconds, leases.seconds_left())
        await asyncio.wait(waiters, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)

    async def _read_on(self, idle: dict[int, int], block_ms: int) -> None:
        """Take what reads have brought, and have one under way at every server that has something to read."""
        await self._server.settle()
        for place in [place for place, under_way in self._rounds.items() if under_way.task.done()]:
            await self._harvest(place, idle, block_ms)
        for place in {self._server.place(p.stream) for p in self._vacant()} - self._rounds.keys():
            await self._start(place, (), self._vacant(place), block_ms)

    def _vacant(self, place: str | None = None) -> list[Partition]:
        """What can be read next, at one server or at all: not what a read under way is about already."""
        busy = {p for under_way in self._rounds.values() for p in under_way.generations}
        return [
            p
            for p in self._owned.values()
            if p.readable and not p.ready and p not in busy and place in (None, self._server.place(p.stream))
        ]

    def _take(self, held: set[int]) -> list[Delivery]:
        """One batch of each partition that has one."""
        out = []
        for p in self._owned.values():
            if p.ready and p.readable and p.number in held:
                delivery, ids = p.ready.popleft()
                if ids:
                    p.unacked.append(ids)
                out.append(delivery)
        return out

    async def _start(
        self, place: str, checks: Sequence[tuple[str, bytes]], partitions: list[Partition], block_ms: int
    ) -> list[Reply]:
        """Begin to read ``partitions``, after ``checks`` of streams, whose replies are returned."""
        count = self._count(partitions)
        asks = self._asks(place, partitions, count, block_ms)
        if not asks and not checks:
            return []
        began = self._clock.monotonic()
        if place not in self._readers:
            self._readers[place] = self._server.wire_at(place)
        reader = self._readers[place]
        await reader.send([*(command for _, command in checks), *(ask.command for ask in asks)])
        replies = await reader.receive(len(checks))
        if asks:
            reading = self._receive(reader, asks, block_ms)
            task = asyncio.create_task(reading, name=f"read {self._group.topic}")
            self._rounds[place] = _Round(asks, count, began, {p: p.generation for p in partitions}, task)
        return await self._followed(checks, replies)

    def _asks(self, place: str, partitions: list[Partition], count: int, block_ms: int) -> list[_Ask]:
        asks = [
            _Ask([p], pack("XRANGE", p.stream, p.after, format_id(p.goal), "COUNT", count), new=False)
            for p in partitions
            if p.cursor < p.goal
        ]
        live = [p for p in partitions if p.cursor >= p.goal]
        if asks or block_ms <= 0:
            block_ms = 0
        if live and not self._server.clustered:
            return [*asks, self._new(live, count, block_ms)]
        # One command a slot. Only the first can wait, or it would keep the others from being read: each in its
        # turn, when there was nothing the last time, and the shorter the fewer there are.
        if len(live) > 1:
            turn = self._quiet.get(place, 0)
            live = live[turn % len(live) :] + live[: turn % len(live)]
            block_ms = min(block_ms, max(_SHORTEST_BLOCK_MS, len(live))) if turn else 0
        return asks + [self._new([p], count, block_ms if p is live[0] else 0) for p in live]

    def _new(self, partitions: list[Partition], count: int, block_ms: int) -> _Ask:
        block = ("BLOCK", block_ms) if block_ms > 0 else ()
        head = ("XREADGROUP", "GROUP", self._group.name, self._group.member, "COUNT", count, *block)
        command = pack(*head, "STREAMS", *(p.stream for p in partitions), *(">" for _ in partitions))
        return _Ask(partitions, command, new=True)

    async def _receive(self, reader: Wire, asks: list[_Ask], block_ms: int) -> list[Reply]:
        replies = await reader.receive(len(asks), extra=block_ms / 1000)
        return await self._followed([(ask.partitions[0].stream, ask.command) for ask in asks], replies)

    async def _followed(self, asked: Sequence[tuple[str, bytes]], replies: list[Reply]) -> list[Reply]:
        """``replies``, and where one says that the stream is at another node, what that one answers."""
        for i, (stream, command) in enumerate(asked):
            if redirects(replies[i]):
                replies[i] = await self._group.ask(stream, command)
        return replies

    def _count(self, partitions: Iterable[Partition]) -> int:
        """How many entries of each partition to ask for, so that frames too come in bounded pieces."""
        sizes = [p.entry_bytes for p in partitions]
        largest = max(sizes, default=0.0)
        if not largest:
            return min(_FIRST_COUNT, self._max_records)
        expected = sum(size or largest for size in sizes)
        return max(1, min(self._max_records, int(READ_BYTES / expected)))

    async def _harvest(self, place: str, idle: dict[int, int], block_ms: int) -> None:
        """Check what a read brought, begin the next one, and make ready what followed without a gap."""
        done = self._rounds.pop(place)
        answers = list(zip(done.asks, await done.task, strict=True))
        self._server.check(reply for _, reply in answers if not missing(reply))
        for ask, reply in answers:
            if missing(reply):
                for p in filter(done.valid, ask.partitions):
                    await self._rewind(p, p.cursor)
        vacant = self._vacant(place)
        live: list[tuple[Partition, Any]] = []
        for ask, reply in answers:
            if missing(reply):
                continue
            if ask.new:
                found = {bytes(stream): entries for stream, entries in reply or ()}
                live += [(p, found.get(p.stream.encode())) for p in filter(done.valid, ask.partitions)]
                continue
            for p in filter(done.valid, ask.partitions):
                p.follow(reply, new=False, short=len(reply) < done.count, began=done.began)
        anything = any(entries for _, entries in live)
        self._quiet[place] = 0 if anything else self._quiet.get(place, 0) + 1
        checks = [(p.stream, p.check(entries)) for p, entries in live]
        verdicts = await self._start(place, checks, vacant, block_ms)
        for (p, entries), verdict in zip(live, verdicts, strict=True):
            if not done.valid(p):
                continue
            if self._gap(p, entries, verdict):
                await self._rewind(p, p.cursor)
            elif entries:
                p.follow(entries, new=True, short=len(entries) < done.count, began=done.began)
            else:
                idle[p.number] = done.began

    def _gap(self, p: Partition, entries: Sequence[Any] | None, verdict: Reply) -> bool:
        """Whether there is something between the cursor and ``entries``, by the answer to :func:`_check`."""
        if missing(verdict):
            return True
        self._server.check([verdict])
        if entries is None:
            handed = last_delivered(verdict, self._group.name)
            return handed is None or handed > p.cursor
        if verdict:
            log.info("gap_healed", stream=p.stream, group=self._group.name, after=p.after)
        return bool(verdict)

    async def _settled(self, p: Partition) -> None:
        """Wait until no read that includes ``p`` is under way."""
        under_way = {r.task for r in self._rounds.values() if p in r.generations}
        if under_way:
            await asyncio.wait(under_way)

    async def _rewind(self, p: Partition, cursor: Offset, *, claim_from: Offset | None = None) -> None:
        """Read ``p`` again after ``cursor``: as a range up to what the group was handed, then what is new.

        What is pending from there on becomes this member's, to be acknowledged when it was delivered.
        """
        p.generation += 1
        mine = p.generation
        # A read under way would move the group on after it was looked at, and so each time anew.
        await self._settled(p)
        end, handed = await self._group.look(p.stream)
        if cursor > handed:
            await self._group.go_to(p.stream, cursor, end=end)
        # What is handed out from here on is past the range and will be seen as a gap, should it not come here.
        chunks = await self._group.claim(p.stream, cursor + 1 if claim_from is None else claim_from)
        if p.generation == mine:
            p.unacked += chunks
            p.cursor, p.goal = cursor, handed
