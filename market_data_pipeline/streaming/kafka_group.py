"""Membership of a Kafka group: which partitions are this member's, kept up in the background.

Kafka's classic group protocol with a rule of our own (:mod:`kafka_shares`), so that a partition is handed over when its
owner says so and all others go on undisturbed. aiokafka's consumer would take every partition away from every member
each time that one joins or leaves; and it does not tell how long ago the broker heard of it, which is all that a member
that is cut off can know. A member counts its session from before it sent the last request that the broker took, on
its own monotonic clock: it stops before the broker lets somebody else in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import structlog
from aiokafka import errors as kafka

from market_data_core.clock import Clock
from market_data_core.ending import end
from market_data_core.errors import BusError, BusUnavailable
from market_data_pipeline.streaming.bus import Offset
from market_data_pipeline.streaming.kafka_address import Address
from market_data_pipeline.streaming.kafka_coordinator import Coordinator
from market_data_pipeline.streaming.kafka_errors import explain
from market_data_pipeline.streaming.kafka_link import TIMEOUT, KafkaLink
from market_data_pipeline.streaming.kafka_ownership import Ownership
from market_data_pipeline.streaming.kafka_shares import Claim, shares

_BEATS: Final = 10
"""Heartbeats in one session."""
_SLOWEST_BEAT: Final = 1.0
_AGAIN: Final = 0.1
"""Seconds between attempts while the coordinator cannot be reached."""
_SETTLING: Final = (kafka.RebalanceInProgressError, kafka.IllegalGenerationError)
_EXPELLED: Final = (kafka.UnknownMemberIdError,)

log = structlog.get_logger(__name__)


class Membership:
    """One member of one group. Everything here is of one event loop; no call is needed to stay a member between
    :meth:`start` and :meth:`close`."""

    def __init__(
        self,
        address: Address,
        topic: str,
        partitions: int,
        group: str,
        member: str,
        *,
        lease_ms: int,
        clock: Clock,
        static: bool = False,
    ) -> None:
        # The name of the client is what Kafka's tools show of a member.
        self._link = KafkaLink(address, name=member)
        self._joins = KafkaLink(address, name=member, timeout=lease_ms / 1000 + TIMEOUT)
        self._coordinator = Coordinator(self._link, self._joins, group, member if static else None)
        self._static = static
        self._topic = topic
        self._partitions = partitions
        self._group = group
        self._session_ms = lease_ms
        self._clock = clock
        self._member_id = ""
        self._generation = -1
        self._joining = False
        self._rejoin = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.error: BusError | None = None
        self.owned = Ownership(f"{topic} for {group}", lease_ms, clock)

    async def start(self) -> None:
        """Join the group, and keep up with it from now on."""
        await self._link.client()
        self._rejoin.set()
        self._tasks = [
            asyncio.create_task(self._follow(), name=f"membership of {self._group}"),
            asyncio.create_task(self._beat(), name=f"heartbeats of {self._group}"),
        ]

    def check(self) -> None:
        """Raise what keeps this member from the group now, if anything does."""
        if self.error is not None:
            raise self.error
        for task in self._tasks:
            if task.done():
                task.result()

    def release(self, partition: int) -> None:
        """Let go of ``partition``, and let the group share it out."""
        self.owned.release(partition)
        self._rejoin.set()

    async def commit(self, offsets: Mapping[int, tuple[Offset, str]]) -> None:
        """Keep an offset and a text of each partition for the group.

        Raises:
            BusUnavailable: it cannot be kept now; also while the group does not know this member.
        """
        give_up = self._clock.monotonic() + int(TIMEOUT * 1e9)
        while True:
            if self._generation < 0:
                # Without a generation the broker would take it from anybody, as long as nobody is in the group.
                raise BusUnavailable(
                    f"this process is not in group {self._group} of Kafka at {self._link.where} now"
                )
            try:
                return await self._coordinator.commit(self._generation, self._member_id, self._topic, offsets)
            except _SETTLING as error:
                # Members join or leave: it is taken when they are done.
                if self._clock.monotonic() >= give_up:
                    raise explain(error, self._link.where) from error
                await asyncio.sleep(_AGAIN)
            except kafka.KafkaError as error:
                raise explain(error, self._link.where) from error

    async def committed(self, partition: int) -> tuple[Offset, str] | None:
        """What the group has kept of ``partition``."""
        try:
            return (await self._coordinator.committed(self._topic, [partition])).get(partition)
        except kafka.KafkaError as error:
            raise explain(error, self._link.where) from error

    async def close(self) -> None:
        """Leave the group, if it can be reached. A static member does not: it may come back."""
        await end(*self._tasks)
        try:
            if self._member_id and not self._static:
                async with asyncio.timeout(TIMEOUT):
                    await self._coordinator.leave(self._member_id)
        except (BusError, kafka.KafkaError, TimeoutError) as error:
            log.info("group_not_left", group=self._group, error=str(error))
        await self._joins.close()
        await self._link.close()

    # --- the two tasks -----------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Join whenever the group shares out."""
        while True:
            await self._rejoin.wait()
            self._rejoin.clear()
            self._joining = True
            try:
                await self._join()
            except kafka.MemberIdRequired as told:
                self._member_id = str(told.args[0])
                self._rejoin.set()
            except _EXPELLED:
                self._expelled()
                self._member_id = ""
            except (kafka.KafkaError, BusError) as error:
                await self._failed(error)
                self._rejoin.set()
            finally:
                self._joining = False

    async def _join(self) -> None:
        keeping, leaving = self.owned.keeping, self.owned.leaving
        claim = Claim(self._topic, self._partitions, self._generation, keeping, leaving)
        joined = await self._coordinator.join(self._member_id, claim, self._session_ms)
        self._member_id, self._generation = joined.member_id, joined.generation
        asked = self._clock.monotonic()
        claims = joined.claims or {}
        topics = {member: claim.topic for member, claim in claims.items()}
        given = await self._coordinator.sync(joined, topics, shares(claims))
        self.owned.heard(asked)
        if self.owned.take(given.get(self._topic, []), keeping):
            self._rejoin.set()
        self.error = None

    async def _beat(self) -> None:
        """Tell the broker that this member lives, also while a join waits for others."""
        interval = min(_SLOWEST_BEAT, self._session_ms / 1000 / _BEATS)
        while True:
            await asyncio.sleep(interval)
            if self._generation < 0:
                continue
            asked, generation = self._clock.monotonic(), self._generation
            try:
                await self._coordinator.heartbeat(generation, self._member_id)
            except kafka.RebalanceInProgressError:
                self.owned.heard(asked)
                if not self._joining and generation == self._generation:
                    self._rejoin.set()
            except kafka.IllegalGenerationError:
                # The answer to a join may be on its way.
                if not self._joining and generation == self._generation:
                    self._lose("the group went on without this member")
            except _EXPELLED:
                self._expelled()
            except (kafka.KafkaError, BusError) as error:
                await self._failed(error)
            else:
                self.owned.heard(asked)
                self.error = None
            self.owned.expire()
            if self.owned.vacated:
                self._rejoin.set()

    async def _failed(self, error: kafka.KafkaError | BusError) -> None:
        explained = error if isinstance(error, BusError) else explain(error, self._link.where)
        if not isinstance(explained, BusUnavailable):
            self.error = explained
            self.owned.changed.set()
        await asyncio.sleep(_AGAIN)

    def _expelled(self) -> None:
        self._lose("the group does not know this member any more")
        self._generation = -1
        # Who has a name asks with its old id, and so learns whether somebody else has the name now.
        if not self._static:
            self._member_id = ""

    def _lose(self, why: str) -> None:
        self.owned.lose(why)
        self._rejoin.set()
