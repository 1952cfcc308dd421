"""Who owns which partition on Redis: members that beat, and one lease a partition.

A member beats into a sorted set by the server's own clock, so the clocks of the members' machines do not
matter. A partition is owned through redis-py's Lock, which expires with ``lease_ms`` unless it is extended.
A member that owns more than its share gives partitions up, one that owns less takes free ones; so a lease is
never taken from a member that lives. The owner counts its lease from before it asked, on its own monotonic
clock: it stops before the server lets somebody else in, however long the answer took.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog
from redis.asyncio.lock import Lock
from redis.exceptions import LockError

from market_data_core.clock import Clock
from market_data_core.errors import BusError, BusUnavailable
from market_data_pipeline.streaming.partitions import preference, quota
from market_data_pipeline.streaming.redis_errors import FAILURES
from market_data_pipeline.streaming.redis_names import Name
from market_data_pipeline.streaming.redis_topics import lease_key, members_key
from market_data_pipeline.streaming.redis_wire import RedisServer

_BEAT: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
return redis.call('ZRANGE', KEYS[1], 0, -1)
"""
_MS: Final = 1_000_000
_AT_ONCE: Final = 8
"""Leases asked for at the same time, each on a connection of the pool."""
_SLOWEST_BEAT_MS: Final = 500

log = structlog.get_logger(__name__)


def owner_of(token: bytes | str) -> str:
    """The member's name in a lease or in the set of members (there it is followed by a random part)."""
    text = token.decode("utf-8", "backslashreplace") if isinstance(token, bytes) else token
    return text.rpartition("#")[0]


@dataclass(slots=True)
class _Held:
    lock: Lock
    deadline: int
    renew_at: int
    announced: bool = False
    revoking: bool = False


class Leases:
    """The leases of one member of one group. Everything here is of one event loop; no call is needed to keep
    the leases alive between :meth:`start` and :meth:`close`."""

    def __init__(
        self,
        server: RedisServer,
        topic: str,
        group: str,
        member: str,
        streams: list[str],
        *,
        lease_ms: int,
        clock: Clock,
        static: bool = False,
    ) -> None:
        self._server = server
        self._members_key = members_key(topic, group)
        self._lease_keys = [lease_key(stream, group) for stream in streams]
        # Two processes may be given the same name, or a new one the name of one that just died. Of a static name the
        # leases are the name's, whoever has it.
        self._process = uuid.uuid4().hex[:12]
        self._me = f"{member}#" if static else f"{member}#{self._process}"
        self._name = Name(server, topic, group, self._me, self._process) if static else None
        self._lease_ms = lease_ms
        self._clock = clock
        self._beat = server.client.register_script(_BEAT)
        self._held: dict[int, _Held] = {}
        self._lost: list[int] = []
        self._revoking: list[int] = []
        self._task: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._closing = False
        self.changed = asyncio.Event()
        self.error: BusError | None = None

    @property
    def held(self) -> set[int]:
        """Partitions owned now, as far as this member can know."""
        self.expire()
        return set(self._held)

    async def start(self) -> None:
        """Join the group, and keep up with it from now on."""
        if self._name is not None:
            await self._name.take()
        await self._turn_once()
        self._task = asyncio.create_task(self._run(), name=f"leases of {self._me}")

    def expire(self) -> None:
        """Give up what could not be renewed in time."""
        now = self._clock.monotonic()
        for partition in [p for p, held in self._held.items() if now >= held.deadline]:
            self._lose(partition, "it could not be renewed in time")

    def seconds_left(self) -> float:
        """Until the first lease ends unless it is renewed."""
        first = min((held.deadline for held in self._held.values()), default=None)
        return math.inf if first is None else max(0, first - self._clock.monotonic()) / 1e9

    def check(self) -> None:
        """Raise what keeps this member from the group now, if anything does."""
        if self.error is not None:
            raise self.error
        if self._task is not None and self._task.done():
            self._task.result()

    def take_changes(self) -> tuple[list[int], list[int], list[int]]:
        """Partitions newly assigned, to be handed over, and lost, since the last call."""
        self.expire()
        self.changed.clear()
        assigned = sorted(p for p, held in self._held.items() if not held.announced)
        for partition in assigned:
            self._held[partition].announced = True
        revoking, self._revoking = self._revoking, []
        lost, self._lost = self._lost, []
        return assigned, [p for p in revoking if p in self._held], lost

    async def release(self, partition: int) -> None:
        """Let somebody else have ``partition``; not owning it any more is no error."""
        async with self._turn:
            held = self._held.pop(partition, None)
            if held is not None:
                await self._give_back(held.lock)

    async def close(self) -> None:
        """Leave the group and release everything, so that the others need not wait for the leases' end. Of a static
        member they wait: it may come back."""
        self._closing = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        held, self._held = self._held, {}
        if self._name is not None:
            return
        try:
            with self._server.translated():
                async with asyncio.timeout(self._lease_ms / 1000):
                    for one in held.values():
                        await self._give_back(one.lock)
                    await self._server.client.zrem(self._members_key, self._me)
        except BusUnavailable as error:
            log.warning("group_not_left", members=self._members_key, error=str(error))

    async def _run(self) -> None:
        """Beat until cancelled. An error is kept for the next poll to raise, and the next beat tries again."""
        pause = min(self._lease_ms / 10, _SLOWEST_BEAT_MS) / 1000
        # A cancellation alone may be lost: asyncio.wait_for of Python 3.11, which redis-py sends with, drops
        # one that comes as what it waits for is done.
        while not self._closing:
            await asyncio.sleep(pause)
            try:
                await self._turn_once()
            except BusError as error:
                if self.error is None:
                    log.warning("bus_unavailable", error=str(error))
                self.error = error
                self.changed.set()
            else:
                self.error = None
            self.expire()

    async def _turn_once(self) -> None:
        with self._server.translated():
            # By a deadline of its own: cut short again and again, it would never come to an end.
            await self._server.settle()
            async with self._turn, asyncio.timeout(self._lease_ms / 2000):
                if self._name is not None and not await self._name.mine():
                    for partition in list(self._held):
                        self._lose(partition, "another process has taken this member's name")
                    raise BusError(self._name.taken)
                # First, and whatever becomes of the rest: of a cluster only the one node may be away that has
                # the members. What is owned elsewhere is kept.
                failed = await self._renew()
                beat = await self._beat(keys=[self._members_key], args=[self._me, self._lease_ms])
                await self._balance([str(name, "utf-8") for name in beat])
                if failed is not None:
                    raise failed

    async def _renew(self) -> BaseException | None:
        """Renew what is due; the first error, after everything was tried."""
        now = self._clock.monotonic()
        due = [p for p, held in self._held.items() if now >= held.renew_at]
        return await self._each(self._extend, due)

    async def _extend(self, partition: int) -> None:
        held = self._held.get(partition)
        if held is None:
            return
        asked = self._clock.monotonic()
        try:
            await held.lock.extend(self._lease_ms / 1000, replace_ttl=True)
        except LockError:
            # It may have run out here as well while the server was asked.
            if self._held.get(partition) is held:
                self._lose(partition, "the server gave it to somebody else or forgot it")
        else:
            held.deadline = asked + self._lease_ms * _MS
            held.renew_at = asked + self._lease_ms * _MS // 3

    async def _balance(self, members: list[str]) -> None:
        share = quota(members, self._me, len(self._lease_keys))
        keeping = sorted(p for p, held in self._held.items() if not held.revoking)
        # What nobody was told of can go at once; the rest is asked back, the highest first.
        for partition in sorted(keeping, key=lambda p: (self._held[p].announced, -p)):
            if len(keeping) <= share:
                break
            keeping.remove(partition)
            held = self._held.get(partition)
            if held is None:  # it ran out while another was given back
                continue
            if held.announced:
                held.revoking = True
                self._revoking.append(partition)
                self.changed.set()
            else:
                del self._held[partition]
                await self._give_back(held.lock)
        if len(keeping) < share:
            await self._acquire(members, share - len(keeping))

    async def _acquire(self, members: list[str], wanted: int) -> None:
        # One that was lost is not taken again before the caller knows that it lost it.
        known = self._held.keys() | set(self._lost)
        candidates = [p for p in preference(members, self._me, len(self._lease_keys)) if p not in known]
        pipe = self._server.client.pipeline(transaction=False)
        for partition in candidates:
            pipe.get(self._lease_keys[partition])
        owners = dict(zip(candidates, await pipe.execute(), strict=True))
        for partition, owner in owners.items():
            if owner is not None and str(owner, "utf-8", "replace") == self._me:
                # Ours, but its answer never came or came too late: start it afresh.
                lock = self._lock(partition)
                lock.local.token = owner
                await self._give_back(lock)
                owners[partition] = None
        free = [p for p, owner in owners.items() if owner is None]
        failed = await self._each(self._try, free[:wanted])
        if failed is not None:
            raise failed

    async def _try(self, partition: int) -> None:
        lock = self._lock(partition)
        asked = self._clock.monotonic()
        if await lock.acquire(blocking=False, token=self._me):
            lease = self._lease_ms * _MS
            self._held[partition] = _Held(lock, asked + lease, asked + lease // 3)
            self.changed.set()

    def _lock(self, partition: int) -> Lock:
        return Lock(
            self._server.client,
            self._lease_keys[partition],
            timeout=self._lease_ms / 1000,
            blocking=False,
            thread_local=False,
        )

    async def _give_back(self, lock: Lock) -> None:
        try:
            await lock.release()
        except LockError:
            return  # It expired: somebody else may have it, and that is what giving back is for.
        except FAILURES as error:
            # It expires by itself.
            log.warning("lease_not_released", lease=str(lock.name), error=str(self._server.explain(error)))

    def _lose(self, partition: int, why: str) -> None:
        held = self._held.pop(partition)
        if held.announced:
            self._lost.append(partition)
        self.changed.set()
        log.warning("lease_lost", lease=self._lease_keys[partition], why=why)

    async def _each(
        self, do: Callable[[int], Awaitable[None]], partitions: list[int]
    ) -> BaseException | None:
        failed: list[BaseException] = []
        for start in range(0, len(partitions), _AT_ONCE):
            some = partitions[start : start + _AT_ONCE]
            results = await asyncio.gather(*(do(p) for p in some), return_exceptions=True)
            failed += [result for result in results if isinstance(result, BaseException)]
        return failed[0] if failed else None
