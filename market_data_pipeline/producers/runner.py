"""From a provider to a topic: the one loop that every producer runs in.

The runner validates, paces, stamps and frames what the provider gives, and hands it to the :class:`Delivery`, which
gets it onto the bus in order. A source that can wait is slowed when the delivery is full; what a live feed gives
then is dropped, counted and reported.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from market_data_core.batch import EventBatch
from market_data_core.clock import Clock, SystemClock
from market_data_core.codecs import (
    Codec,
    DeadLetter,
    encode_dead_letter,
    encode_end_of_lane,
)
from market_data_core.errors import DatasetError
from market_data_pipeline.producers.checks import EventCheck
from market_data_pipeline.producers.counts import Counts, ProducerObserver, Tally, Untold
from market_data_pipeline.producers.delivery import MEMORY_BYTES, Delivery, Sleep
from market_data_pipeline.producers.framing import Framer, Parcel
from market_data_pipeline.producers.intake import Intake
from market_data_pipeline.producers.pacing import Pace, Unpaced
from market_data_pipeline.producers.provider import BadRow, Provider
from market_data_pipeline.producers.release import Release
from market_data_pipeline.producers.spool import Spool
from market_data_pipeline.streaming.bus import Bus, Record

BadRows = Literal["fail", "dlq", "skip"]
DEAD_LETTERS: Final = ".dlq"
FRAMED_SLICE: Final = 32_768
SINGLE_SLICE: Final = 4096
"""Events encoded before others of the event loop get their turn."""
GRACE_S: Final = 5.0
"""How long a stopped producer waits for a bus that takes nothing."""


def live(provider: str) -> None:
    """The lane of live events: none, which readers take as one lane a provider."""


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """How a producer publishes.

    ``partitions``: of a topic that does not exist yet. ``lane``: of a provider's events. ``limit``: events to
    take at most. ``duration_s``: seconds from the first event on. ``bad_rows``: whether a row that is no event
    ends the run, goes to the dead letters, or is only counted. ``linger_s``: longest that an event that is due waits
    for others. ``end_lanes``: the lanes end with the provider. ``finish_ns``: a stopped run goes on, unpaced, to the
    end of the window of that length in which it was stopped, so that no window is cut. ``memory_bytes``: most that
    waits in memory for the bus.
    """

    partitions: int = 1
    codec: Codec = "frame"
    lane: Callable[[str], str | None] = live
    limit: int | None = None
    duration_s: float | None = None
    bad_rows: BadRows = "fail"
    linger_s: float = 0.02
    end_lanes: bool = False
    finish_ns: int | None = None
    memory_bytes: int = MEMORY_BYTES


class ProducerRunner:
    """Publishes all that ``provider`` gives to ``topic``.

    ``await runner.run()`` returns the counts when the provider ends, a limit is reached, or after :meth:`stop`.

    Raises, from :meth:`run`:
        DatasetError: a row is no event and ``bad_rows`` is ``fail``; what was taken before is published.
        BusUnavailable: the bus cannot be reached at the start.
        BusError: the bus refused for good. What was taken is in the spool, if there is one.
    """

    def __init__(
        self,
        bus: Bus,
        provider: Provider,
        topic: str,
        options: RunnerOptions | None = None,
        *,
        pace: Pace | None = None,
        spool: Spool | None = None,
        observer: ProducerObserver | None = None,
        clock: Clock | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._bus = bus
        self._provider = provider
        self._topic = topic
        self._options = options or RunnerOptions()
        self._spool = spool
        self._observer = observer or ProducerObserver()
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._release = Release(
            pace or Unpaced(),
            self._clock,
            sleep,
            linger_s=self._options.linger_s,
            duration_s=self._options.duration_s,
            largest=FRAMED_SLICE if self._options.codec == "frame" else SINGLE_SLICE,
        )
        self._check = EventCheck(provider.name)
        self.counts = Counts(provider.name, topic)

    def stop(self) -> None:
        """Take no more (or, with ``finish_ns``, only the rest of the window); publish what is taken; end."""
        window = self._options.finish_ns
        if window is not None and self.counts.newest and not self._release.hurry.is_set():
            self._release.finish(at=(self.counts.newest // window + 1) * window)
        else:
            self._release.halt()

    async def run(self) -> Counts:
        """Publish until the provider ends, a limit is reached, or :meth:`stop`."""
        began = self._clock.monotonic()
        counts = self.counts
        partitions = await self._bus.ensure_topic(self._topic, self._options.partitions)
        framer = Framer(partitions, self._options.codec, self._options.lane)
        tally = Tally(counts, self._observer)
        delivery = Delivery(
            self._bus,
            self._topic,
            partitions,
            tally,
            spool=self._spool,
            memory_bytes=self._options.memory_bytes,
            sleep=self._sleep,
        )
        letters = await self._dead_letters()
        deliveries = [d for d in (delivery, letters) if d is not None]
        for each in deliveries:
            each.start()
        try:
            try:
                whole = await self._take_all(framer, delivery, letters)
                if self._options.end_lanes and whole and not self._release.halted.is_set():
                    await self._hand_over(_ends(framer), delivery)
            except Exception:
                self._release.hurry.set()  # what was taken before is published, if the bus takes it
                raise
            finally:
                if not _cancelled():
                    for each in deliveries:
                        await self._or_stopped(each.finish())
        finally:
            for each in deliveries:
                counts.unpublished += await each.abandon()
            if self._spool is not None:
                counts.spool_events, counts.spool_bytes = self._spool.events, self._spool.bytes
            counts.seconds = (self._clock.monotonic() - began) / 1e9
        return counts

    async def _dead_letters(self) -> Delivery | None:
        if self._options.bad_rows != "dlq":
            return None
        topic = self._topic + DEAD_LETTERS
        return Delivery(self._bus, topic, await self._bus.ensure_topic(topic, 1), Untold(), sleep=self._sleep)

    async def _take_all(self, framer: Framer, delivery: Delivery, letters: Delivery | None) -> bool:
        """Gives everything to the delivery; False when a stop cut that short."""
        options = self._options
        intake = Intake(
            self._provider,
            self._release.halted,
            sleep=self._release.pause,
            linger_s=options.linger_s,
            dropped=self._drop,
        )
        try:
            async with aclosing(intake.items()) as items:
                async for item in items:
                    if isinstance(item, BadRow):
                        await self._put_aside(item, letters)
                        continue
                    batch, bad = self._check(item)
                    for row in bad:
                        await self._put_aside(row, letters)
                    left = len(batch) if options.limit is None else options.limit - self.counts.taken
                    batch = batch if len(batch) <= left else batch.take(slice(left))
                    async with aclosing(self._release.rows(batch)) as released:
                        async for rows in released:
                            self.counts.taken += len(rows)
                            self.counts.newest = max(self.counts.newest, int(rows.src_ts.max()))
                            if not await self._hand_over(framer.parcels(self._stamped(rows)), delivery):
                                return False
                            await asyncio.sleep(0)  # the delivery's turn
                    if self._release.over or self.counts.taken == options.limit:
                        break
            return True
        finally:
            await intake.close()

    def _stamped(self, batch: EventBatch) -> EventBatch:
        if batch.ingest_ts.all():
            return batch
        now = np.int64(self._clock.now())
        return replace(batch, ingest_ts=np.where(batch.ingest_ts == 0, now, batch.ingest_ts))

    async def _hand_over(self, parcels: Sequence[Parcel], delivery: Delivery) -> bool:
        """Gives ``parcels`` to the delivery, waiting if the source can wait; False when a stop cut that short."""
        for index, parcel in enumerate(parcels):
            while not delivery.offer(parcel):
                if not self._provider.can_wait:
                    self._drop(parcel.events)
                    break
                if not await self._or_stopped(delivery.room()):
                    self.counts.unpublished += sum(p.events for p in parcels[index:])
                    return False
        return True

    def _drop(self, events: int) -> None:
        self.counts.dropped += events
        self._observer.changed(self.counts)

    async def _put_aside(self, row: BadRow, letters: Delivery | None) -> None:
        self.counts.bad_rows += 1
        if self._options.bad_rows == "fail":
            raise DatasetError(
                f"{row.place} is no event: {row.reason}; correct it, or go on without it by --bad-rows dlq or skip"
            )
        if letters is not None:
            letter = DeadLetter(
                row.reason, self._topic, -1, row.place, row.key, None, row.value, self._clock.now()
            )
            value = encode_dead_letter(letter)
            await self._hand_over([Parcel(0, [Record(row.key, value)], 1, len(value))], letters)
        self._observer.changed(self.counts)

    async def _or_stopped(self, awaitable: Awaitable[None]) -> bool:
        """Awaits, but once the run is stopped no longer than the grace; False when that was not enough."""
        work = asyncio.ensure_future(awaitable)
        stopped = asyncio.ensure_future(self._release.hurry.wait())
        try:
            await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await asyncio.wait([work], timeout=GRACE_S)
            if work.done():
                work.result()
            return work.done()
        finally:
            work.cancel()
            stopped.cancel()


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _ends(framer: Framer) -> list[Parcel]:
    """The end-of-lane record of every lane, in each partition where it has events."""
    out = []
    for partition, lane in framer.lanes:
        if lane is not None:
            value = encode_end_of_lane(lane)
            out.append(Parcel(partition, [Record(lane, value, lane)], 0, len(value)))
    return out
