"""The way of parcels from a producer to the bus: in order, bounded, through outages.

While the bus takes records they go from a small queue in memory straight to it. When it cannot be reached, what is
not on it yet goes to the spool, and so does all that comes after, until the spool has been published, in order. Without
a spool it waits in memory. Either way the bound holds: :meth:`Delivery.offer` refuses what
has no room, and :meth:`Delivery.room` waits for some.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import takewhile
from typing import Final, Protocol

import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from market_data_core.codecs import EventDecoder
from market_data_core.ending import end
from market_data_core.errors import BusUnavailable
from market_data_core.frames import FRAME_BYTE
from market_data_core.partitioner import partition_of
from market_data_pipeline.producers.framing import Framer, Parcel
from market_data_pipeline.producers.spool import Spool, Spooled, SpoolFull
from market_data_pipeline.streaming.bus import Bus

log = structlog.get_logger(__name__)

MEMORY_BYTES: Final = 1 << 24
"""Most bytes of parcels in memory that are not on the bus yet."""
AT_ONCE: Final = 1 << 22
"""Most bytes published at once."""
FIRST_WAIT_S: Final = 0.05
LONGEST_WAIT_S: Final = 5.0

Sleep = Callable[[float], Awaitable[None]]


class DeliveryObserver(Protocol):
    """What an operator wants to know of a delivery."""

    def published(self, events: int, records: int, size: int) -> None:
        """These are on the bus."""

    def unavailable(self, reason: str) -> None:
        """The bus could not be reached; it will be tried again."""

    def available(self) -> None:
        """The bus took all that it was given."""

    def spooled(self, events: int) -> None:
        """These went to the disk."""

    def spool_depth(self, events: int, size: int) -> None:
        """So much is on the disk now."""


class Delivery:
    """Publishes the parcels of one topic in the order in which they are given.

    :meth:`start` begins, :meth:`finish` ends when all is on the bus, :meth:`abandon` at once. An error that trying
    again cannot cure ends the delivery, and is raised by the next call.
    """

    def __init__(
        self,
        bus: Bus,
        topic: str,
        partitions: int,
        observer: DeliveryObserver,
        *,
        spool: Spool | None = None,
        memory_bytes: int = MEMORY_BYTES,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._bus = bus
        self._topic = topic
        self._partitions = partitions
        self._observer = observer
        self._spool = spool
        self._memory_bytes = memory_bytes
        self._sleep = sleep
        self._queue: deque[Parcel] = deque()
        self._bytes = 0
        self._spooling = spool is not None and len(spool) > 0
        self._full = False
        self._ending = False
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; what an earlier run left in the spool goes first."""
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(lambda _: self._room.set())

    def offer(self, parcel: Parcel) -> bool:
        """Take ``parcel`` in if there is room; otherwise return False."""
        self._raise_failure()
        if self._queue and self._bytes + parcel.size > self._memory_bytes:
            return False
        self._queue.append(parcel)
        self._bytes += parcel.size
        if self._spooling:
            self._to_disk()
        self._work.set()
        return True

    async def room(self) -> None:
        """Wait until it is worth to offer again what was refused."""
        self._room.clear()
        await self._room.wait()

    async def finish(self) -> None:
        """Return when everything is on the bus, however long that takes."""
        self._ending = True
        self._work.set()
        if self._task is not None:
            await asyncio.shield(self._task)

    async def abandon(self) -> int:
        """Stop at once. What is not on the bus goes to the spool; return how many events found no place there."""
        if self._task is not None:
            await end(self._task)
        if self._spool is not None:
            self._spooling = True
            self._to_disk()
        lost = sum(parcel.events for parcel in self._queue)
        self._queue.clear()
        return lost

    def _raise_failure(self) -> None:
        if self._task is not None and self._task.done() and not self._task.cancelled():
            error = self._task.exception()
            if error is not None:
                raise error

    async def _run(self) -> None:
        while True:
            if self._spool is not None and self._spooling:
                await self._drain(self._spool)
            if not self._queue:
                if self._ending:
                    return
                self._work.clear()
                await self._work.wait()
                continue
            failure = await self._publish_front()
            if failure is None:
                continue
            self._spooling = self._spool is not None
            if not self._to_disk():
                # Nothing may be moved to the disk from under what is being published.
                self._spooling = False
                await self._persist(self._publish_or_spool)

    async def _publish_or_spool(self) -> BusUnavailable | None:
        """Again, after the disk was full: it may have room by now."""
        if self._to_disk():
            self._spooling = True
            return None
        return await self._publish_front()

    async def _publish_front(self) -> BusUnavailable | None:
        """Publishes the first parcels of the queue, which keeps those that could not be."""
        size = 0

        def fits(parcel: Parcel) -> bool:
            nonlocal size
            size += parcel.size
            return size == parcel.size or size <= AT_ONCE

        batch = list(takewhile(fits, self._queue))
        left, failure = await self._publish(batch)
        for _ in batch:
            self._queue.popleft()
        self._queue.extendleft(reversed(left))
        self._bytes -= sum(p.size for p in batch) - sum(p.size for p in left)
        if len(left) < len(batch):
            self._room.set()
        return failure

    async def _publish(self, parcels: Sequence[Parcel]) -> tuple[list[Parcel], BusUnavailable | None]:
        """Publishes to all partitions side by side; returns what could not be, and why."""
        by_partition: dict[int, list[Parcel]] = {}
        for parcel in parcels:
            by_partition.setdefault(parcel.partition, []).append(parcel)
        outcomes = await asyncio.gather(
            *(
                self._bus.publish(self._topic, [r for p in some for r in p.records], partition=partition)
                for partition, some in by_partition.items()
            ),
            return_exceptions=True,
        )
        failed: set[int] = set()
        failure: BusUnavailable | None = None
        for (partition, some), outcome in zip(by_partition.items(), outcomes, strict=True):
            if isinstance(outcome, BusUnavailable):
                failed.add(partition)
                failure = outcome
            elif outcome is not None:
                raise outcome
            else:
                events, records = sum(p.events for p in some), sum(len(p.records) for p in some)
                self._observer.published(events, records, sum(p.size for p in some))
        if failure is None:
            self._observer.available()
        else:
            self._observer.unavailable(str(failure))
        return [p for p in parcels if p.partition in failed], failure

    async def _persist(self, publish: Callable[[], Awaitable[BusUnavailable | None]]) -> None:
        """Calls ``publish`` until it succeeds, with growing, random pauses."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(BusUnavailable),
            wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
            sleep=self._sleep,
        )
        async for attempt in retrying:
            with attempt:
                failure = await publish()
                if failure is not None:
                    raise failure

    async def _drain(self, spool: Spool) -> None:
        """Publishes the spool to its end, while what comes in goes to its back."""
        while True:
            self._to_disk()
            head = spool.head(AT_ONCE)
            if not head:
                self._spooling = False
                return
            left = [parcel for spooled in head for parcel in self._fitting(spooled)]

            async def publish() -> BusUnavailable | None:
                nonlocal left
                self._to_disk()  # what a full disk did not take
                left, failure = await self._publish(left)
                return failure

            await self._persist(publish)
            spool.remove(head)
            self._observer.spool_depth(spool.events, spool.bytes)

    def _to_disk(self) -> bool:
        """Moves the queue to the spool as far as that and its disk have room; whether it moved anything."""
        spool = self._spool
        if spool is None:
            return False
        moving: list[Parcel] = []
        size = 0
        while self._queue and spool.has_room(size + self._queue[0].size):
            parcel = self._queue.popleft()
            moving.append(parcel)
            size += parcel.size
        if not moving:
            return False
        try:
            spool.append(self._partitions, moving)
        except SpoolFull as error:
            # As at the bound of the spool: memory holds what it may, then the source waits or drops.
            self._queue.extendleft(reversed(moving))
            self._say_full(error)
            return False
        except BaseException:
            self._queue.extendleft(reversed(moving))
            raise
        self._full = False
        self._bytes -= size
        self._observer.spooled(sum(p.events for p in moving))
        self._observer.spool_depth(spool.events, spool.bytes)
        self._room.set()
        return True

    def _say_full(self, error: SpoolFull) -> None:
        """Once for each time that the disk fills up."""
        if not self._full:
            self._full = True
            log.warning("the disk of the spool is full; events wait in memory", error=str(error))

    def _fitting(self, spooled: Spooled) -> list[Parcel]:
        """The parcel as the topic is cut now: it may have another number of partitions than at the time."""
        if spooled.partitions == self._partitions:
            return [spooled.parcel]
        out: list[Parcel] = []
        for record in spooled.parcel.records:
            if record.value[0] == FRAME_BYTE:
                batch = EventDecoder().decode([record.value]).batch
                out += Framer(self._partitions, "frame", lambda _, lane=record.lane: lane).parcels(batch)  # type: ignore[misc]
            else:
                out.append(Parcel(partition_of(record.key, self._partitions), [record], 1, len(record.value)))
        return out
