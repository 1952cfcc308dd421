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

One read is always under way while the caller works on the one before.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from market_data_core.clock import Clock
from market_data_core.errors import BusError
from market_data_pipeline.streaming.bus import Consumer, Delivery, Offset, Poll
from market_data_pipeline.streaming.leases import Leases
from market_data_pipeline.streaming.redis_entries import Offsets, columns, format_id, parse_id
from market_data_pipeline.streaming.redis_group import RedisGroup, last_delivered, missing
from market_data_pipeline.streaming.redis_topics import Topics, stream_names
from market_data_pipeline.streaming.redis_wire import RedisServer, Reply, pack

LONGEST_BLOCK_MS: Final = 200
"""How long one read waits for entries: also how long a hand-over may wait for a read under way."""
READ_BYTES: Final = 4 << 20
"""What one read should bring at most, judged by the size of the entries before: frames can be large. Also how long the
caller is busy with it, and so how long leases and commits wait for their turn: 0.1 s or so."""
_FIRST_COUNT: Final = 64

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Partition:
    """``cursor``: the last offset that was read and found to follow the one before. ``goal``: the last one to
    be read as a range; past it, new entries are read. A read asked for in an older ``generation`` is void."""

    number: int
    stream: str
    cursor: Offset = -1
    goal: Offset = -1
    sought: bool = False
    paused: bool = False
    revoking: bool = False
    generation: int = 0
    entry_bytes: float = 0.0
    ready: deque[tuple[Delivery, list[bytes]]] = field(default_factory=deque)
    unacked: list[list[bytes]] = field(default_factory=list)
    kept: Offset | None = None

    @property
    def readable(self) -> bool:
        return self.sought and not self.paused and not self.revoking

    @property
    def after(self) -> str:
        """Where a range read goes on."""
        return f"({format_id(self.cursor)}" if self.cursor >= 0 else "-"

    def follow(self, entries: Sequence[Any], *, new: bool, short: bool, began: int) -> None:
        """Make ready what comes next: new entries, or those of a range; ``short`` when there are no more."""
        ids, values, lanes = columns(entries)
        if new and parse_id(ids[0]) <= self.cursor:
            # Somebody moved the group back (XGROUP SETID). What was read is not delivered again here.
            again = bisect_right(Offsets(ids), self.cursor)
            self.unacked.append(ids[:again])
            ids, values, lanes = ids[again:], values[again:], lanes and lanes[again:]
        if ids:
            self.cursor = parse_id(ids[-1])
            self.entry_bytes = max(sum(map(len, values)) / len(values), self.entry_bytes / 2, 1.0)
            delivery = Delivery(self.number, Offsets(ids), values, lanes, new and short, began)
            # What is pending of a range was claimed when the range was set.
            self.ready.append((delivery, ids if new else []))
        if short and not new:
            self.cursor = self.goal

    def due(self, through: Offset) -> tuple[list[bytes], list[list[bytes]]]:
        """Ids to acknowledge up to ``through``, and what of ``unacked`` stays."""
        ids: list[bytes] = []
        rest = []
        for chunk in self.unacked:
            cut = len(chunk) if parse_id(chunk[-1]) <= through else bisect_right(Offsets(chunk), through)
            ids += chunk[:cut]
            if cut < len(chunk):
                rest.append(chunk[cut:])
        return ids, rest


@dataclass(slots=True, eq=False)
class _Round:
    """One read under way: ranges first, then the new entries of all other partitions by one command."""

    ranged: list[_Partition]
    live: list[_Partition]
    count: int
    began: int
    generations: dict[_Partition, int]
    task: asyncio.Task[list[Reply]]

    def valid(self, partition: _Partition) -> bool:
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
        clock: Clock,
    ) -> None:
        self._server = server
        self._topics = topics
        self._group = RedisGroup(server, topics, topic, group, member)
        self._max_records = max_records
        self._lease_ms = lease_ms
        self._clock = clock
        self._reader = server.wire()
        self._acking = asyncio.Lock()
        self._leases: Leases | None = None
        self._changed: asyncio.Task[bool] | None = None
        self._owned: dict[int, _Partition] = {}
        self._streams: list[str] = []
        self._round: _Round | None = None

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
                if self._round is not None and self._round.task.done():
                    await self._harvest(self._round, idle, block_ms)
                if self._round is None:
                    await self._start((), self._vacant(), block_ms)
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
        if self._round is not None:
            tasks.append(self._round.task)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._reader.close()
        owned, self._owned = self._owned, {}
        leases, self._leases = self._leases, None
        self._round = self._changed = None
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
            self._owned[number] = _Partition(number, self._streams[number])
        for number in revoking:
            self._owned[number].revoking = True
        return Poll(assigned, revoking, lost)

    async def _wait(self, leases: Leases, seconds: float) -> None:
        """Until the read under way has ended, ownership has changed, or a lease ran out."""
        if self._changed is None or self._changed.done():
            self._changed = asyncio.create_task(leases.changed.wait())
        waiters: set[asyncio.Task[Any]] = {self._changed}
        if self._round is not None:
            waiters.add(self._round.task)
        seconds = min(seconds, leases.seconds_left())
        await asyncio.wait(waiters, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)

    def _vacant(self) -> list[_Partition]:
        return [p for p in self._owned.values() if p.readable and not p.ready]

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
        self, checks: Sequence[bytes], partitions: list[_Partition], block_ms: int
    ) -> list[Reply]:
        """Begin to read ``partitions``, after ``checks``, whose replies are returned."""
        ranged = [p for p in partitions if p.cursor < p.goal]
        live = [p for p in partitions if p.cursor >= p.goal]
        count = self._count(partitions)
        commands = [pack("XRANGE", p.stream, p.after, format_id(p.goal), "COUNT", count) for p in ranged]
        if live:
            block = ("BLOCK", block_ms) if block_ms > 0 and not ranged else ()
            head = ("XREADGROUP", "GROUP", self._group.name, self._group.member, "COUNT", count, *block)
            commands.append(pack(*head, "STREAMS", *(p.stream for p in live), *(">" for _ in live)))
        if not commands and not checks:
            return []
        began = self._clock.monotonic()
        await self._reader.send([*checks, *commands])
        replies = await self._reader.receive(len(checks))
        if commands:
            reading = self._reader.receive(len(commands), extra=block_ms / 1000)
            task = asyncio.create_task(reading, name=f"read {self._group.topic}")
            generations = {p: p.generation for p in partitions}
            self._round = _Round(ranged, live, count, began, generations, task)
        return replies

    def _count(self, partitions: Iterable[_Partition]) -> int:
        """How many entries of each partition to ask for, so that frames too come in bounded pieces."""
        sizes = [p.entry_bytes for p in partitions]
        largest = max(sizes, default=0.0)
        if not largest:
            return min(_FIRST_COUNT, self._max_records)
        expected = sum(size or largest for size in sizes)
        return max(1, min(self._max_records, int(READ_BYTES / expected)))

    async def _harvest(self, done: _Round, idle: dict[int, int], block_ms: int) -> None:
        """Check what a read brought, begin the next one, and make ready what followed without a gap."""
        self._round = None
        replies = await done.task
        if any(missing(reply) for reply in replies):
            for p in filter(done.valid, done.live + done.ranged):
                await self._rewind(p, p.cursor)
            return
        self._server.check(replies)
        vacant = self._vacant()
        for p, entries in zip(done.ranged, replies, strict=False):
            if done.valid(p):
                p.follow(entries, new=False, short=len(entries) < done.count, began=done.began)
        found = {bytes(stream): entries for stream, entries in (replies[-1] or ())} if done.live else {}
        live = [(p, found.get(p.stream.encode())) for p in filter(done.valid, done.live)]
        checks = [_check(p, entries) for p, entries in live]
        verdicts = await self._start(checks, vacant, block_ms)
        for (p, entries), verdict in zip(live, verdicts, strict=True):
            if not done.valid(p):
                continue
            if self._gap(p, entries, verdict):
                await self._rewind(p, p.cursor)
            elif entries:
                p.follow(entries, new=True, short=len(entries) < done.count, began=done.began)
            else:
                idle[p.number] = done.began

    def _gap(self, p: _Partition, entries: Sequence[Any] | None, verdict: Reply) -> bool:
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

    async def _settled(self, p: _Partition) -> None:
        """Wait until no read that includes ``p`` is under way."""
        if self._round is not None and p in self._round.generations:
            await asyncio.wait({self._round.task})

    async def _rewind(self, p: _Partition, cursor: Offset, *, claim_from: Offset | None = None) -> None:
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


def _check(p: _Partition, entries: Sequence[Any] | None) -> bytes:
    """The question whether there is something between the cursor and ``entries``, or past it if there are none."""
    if entries is None:
        return pack("XINFO", "GROUPS", p.stream)
    return pack("XRANGE", p.stream, p.after, b"(" + entries[0][0], "COUNT", 1)
