"""Exactly-once effect on an at-least-once bus: the one mechanism that every consumer of mdp runs on.

A partition is owned on the bus and claimed in the store, which raises its epoch. Records go through a
:class:`~market_data_pipeline.consumers.partition_logic.PartitionLogic`, pure and in memory. What it has to keep is
committed in one transaction with the positions and an outbox; after the commit the outbox is published and the bus is
acknowledged, in this order. Nothing that happens between two of these steps can lose or double a result:

- before the commit: the next owner reads again from the committed position;
- after it, before publishing: the next owner finds the outbox;
- after publishing, before the acknowledgement: the next owner reads again what its position says is handled;
- a worker that was stopped and wakes up finds a newer epoch, and may write nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import structlog
from structlog.contextvars import bind_contextvars, bound_contextvars

from market_data_core.clock import Clock
from market_data_core.ending import end
from market_data_core.errors import Fenced, MdpError
from market_data_core.protocols import BarSink, Claim, Committed, Flush, OutboxRecord, SignalFlush
from market_data_pipeline.consumers.idleness import waits
from market_data_pipeline.consumers.offsets import check_topic_id
from market_data_pipeline.consumers.partition_logic import PartitionLogic, Plan
from market_data_pipeline.consumers.publishing import Publisher
from market_data_pipeline.consumers.retrying import Retrying
from market_data_pipeline.streaming.bus import Bus, Consumer, Delivery, Poll

log = structlog.get_logger(__name__)


class Observer(Protocol):
    """Who is told what happened: telemetry, the live view, a test."""

    def assigned(self, partition: int, epoch: int) -> None: ...
    def released(self, partition: int, reason: str) -> None: ...
    def flushed(self, partition: int, plan: Plan, committed: Committed, seconds: float, at: int) -> None: ...
    def fenced(self, partition: int) -> None: ...
    def retrying(self, what: str, error: BaseException) -> None: ...


@dataclass(frozen=True, slots=True)
class ConsumerSettings:
    """Who consumes what. ``signals_topic``: where signals go, empty for a consumer that makes none. ``max_backlog``:
    rows of one partition that may wait for the store before reading stops."""

    topic: str
    group: str
    member: str
    bars_topic: str
    dead_letter_topic: str
    signals_topic: str = ""
    max_records: int = 5000
    lease_ms: int = 10_000
    static: bool = False
    max_backlog: int = 100_000
    poll_seconds: float = 0.05
    drain_seconds: float = 10.0


class _Owned:
    """One partition in this worker's hands."""

    def __init__(self, claim: Claim, logic: PartitionLogic) -> None:
        self.claim = claim
        self.logic = logic
        self.flush: asyncio.Task[None] | None = None
        self.number = 0
        self.published: list[int] = []
        self.paused = False
        self.handing_over = False
        self.caught_up = False


class ExactlyOnceConsumer:
    """Runs a group member: owns partitions, feeds their logic, commits, publishes, acknowledges.

    ``logic`` makes the logic of a partition from its claim; ``bus`` and ``store`` may go away and come back at any
    moment.
    """

    def __init__(
        self,
        bus: Bus,
        store: BarSink,
        settings: ConsumerSettings,
        logic: Callable[[Claim], PartitionLogic],
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._bus = bus
        self._store = store
        self._settings = settings
        self._make_logic = logic
        self._clock = clock
        self._observer = observer
        self._retry = Retrying(observer.retrying)
        self._publisher = Publisher(bus, settings.topic, settings.dead_letter_topic)
        self._owned: dict[int, _Owned] = {}
        self._claims: dict[int, asyncio.Task[None]] = {}
        self._outliving: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._active_at = clock.monotonic()
        self._until_idle: float | None = None

    @property
    def partitions(self) -> list[int]:
        """The partitions owned now."""
        return sorted(self._owned)

    def end_when_idle(self, seconds: float) -> None:
        """From now on :meth:`run` ends, all windows closed, when nothing has come for so long."""
        self._until_idle = seconds
        self._active_at = max(self._active_at, self._clock.monotonic())

    async def run(self, stop: asyncio.Event, until_idle: float | None = None) -> None:
        """Consume until ``stop`` is set, or until nothing has come for ``until_idle`` seconds.

        A stop commits closed windows only and leaves the events of open ones unacknowledged; going idle closes all.
        """
        if until_idle is not None:
            self._until_idle = until_idle
        s = self._settings
        consumer = self._bus.consumer(
            s.topic, s.group, s.member, max_records=s.max_records, lease_ms=s.lease_ms, static=s.static
        )
        try:
            self._active_at = self._clock.monotonic()
            while not stop.is_set():
                poll = await self._retry("bus", lambda: self._poll(consumer, stop))
                await self._take(consumer, poll, stop)
                self._raise_failure()
                if self._until_idle is not None and await self._is_idle(self._until_idle):
                    for owned in self._owned.values():
                        owned.logic.finish()
                    break
            await self._drain(consumer, stop)
        finally:
            await self._shut(consumer)

    async def _poll(self, consumer: Consumer, stop: asyncio.Event) -> Poll:
        return Poll() if stop.is_set() else await consumer.poll(self._settings.poll_seconds)

    async def _take(self, consumer: Consumer, poll: Poll, stop: asyncio.Event) -> None:
        # All at once, before anything is awaited: a claim that went on would seek what is not owned any more.
        given_up = [self._claims.pop(p) for p in poll.lost if p in self._claims]
        for claim in given_up:
            claim.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)
        for partition in poll.lost:
            await self._drop(consumer, partition, "lost")
        for partition in poll.assigned:
            self._active_at = self._clock.monotonic()
            self._claims[partition] = asyncio.create_task(self._claim(consumer, partition))
        for partition in poll.revoking:
            await self._hand_over(consumer, partition)
        for delivery in poll.deliveries:
            owned = self._owned.get(delivery.partition)
            if owned is None or owned.handing_over:
                continue
            self._active_at = self._clock.monotonic()
            if not await self._prepared(delivery, owned, stop):
                # What follows it in its partition must not be processed either.
                owned.handing_over = True
                continue
            owned.logic.process(delivery)
            owned.caught_up = delivery.caught_up
            if delivery.caught_up:
                owned.logic.caught_up(delivery.polled_at)
            self._start_flush(consumer, delivery.partition, owned)
            # Commits, leases and other partitions get their turn between two batches.
            await asyncio.sleep(0)
        for partition, at in poll.idle.items():
            if partition in self._owned:
                self._owned[partition].caught_up = True
                self._owned[partition].logic.caught_up(at)
        for partition, owned in list(self._owned.items()):
            self._start_flush(consumer, partition, owned)

    async def _prepared(self, delivery: Delivery, owned: _Owned, stop: asyncio.Event) -> bool:
        """Whether ``delivery`` can be processed now; not when its partition went away meanwhile, or at a stop, which
        does not wait for a store that is away: both are read again by whoever comes next."""

        def wanted() -> bool:
            return self._owned.get(delivery.partition) is owned and not stop.is_set()

        try:
            with bound_contextvars(partition=delivery.partition):
                await self._retry("store", lambda: owned.logic.prepare(delivery), as_long_as=wanted)
        except MdpError as error:
            if error.retriable and not wanted():
                return False
            raise
        return self._owned.get(delivery.partition) is owned

    async def _claim(self, consumer: Consumer, partition: int) -> None:
        s = self._settings
        task = asyncio.current_task()
        bind_contextvars(partition=partition)

        def wanted() -> bool:
            # A cancellation alone may be lost: asyncio.wait_for of Python 3.11, in which drivers wait, drops one that
            # comes as what it waits for is done.
            return self._claims.get(partition) is task

        try:
            topic_id = await self._retry("bus", lambda: self._bus.topic_id(s.topic), as_long_as=wanted)
            claim = await self._retry(
                "store",
                lambda: self._store.claim(s.topic, s.group, partition, s.member, topic_id=topic_id),
                as_long_as=wanted,
            )
            owned = _Owned(claim, self._make_logic(claim))
            check_topic_id(claim, topic_id)
            await self._publish(owned, claim.outbox, as_long_as=wanted)
            if wanted():
                start = owned.logic.start
                # What a poll brought before the partition counts as owned here would be passed over.
                consumer.pause(partition)
                await self._retry("bus", lambda: consumer.seek(partition, start), as_long_as=wanted)
            through = owned.logic.committed
            if wanted() and through is not None:
                # The owner before may have died before it could say so here, and it may be that nothing more comes.
                await self._retry(
                    "bus", lambda: consumer.ack(partition, through, keep_from=start), as_long_as=wanted
                )
            if wanted():
                self._owned[partition] = owned
                consumer.resume(partition)
                self._observer.assigned(partition, claim.epoch)
        except Exception as error:
            if wanted():
                self._failure = error
        finally:
            if wanted():
                del self._claims[partition]

    def _start_flush(self, consumer: Consumer, partition: int, owned: _Owned) -> None:
        if not owned.paused and owned.logic.backlog > self._settings.max_backlog:
            owned.paused = True
            consumer.pause(partition)
        if owned.flush is None and not owned.handing_over and owned.logic.due():
            owned.flush = asyncio.create_task(self._flush(consumer, partition, owned))

    async def _flush(self, consumer: Consumer, partition: int, owned: _Owned) -> None:
        bind_contextvars(partition=partition)  # of this task alone
        try:
            await self._commit(consumer, partition, owned)
        except Fenced as fence:
            log.warning(
                "a newer owner holds the partition; nothing was written",
                partition=partition,
                error=str(fence),
            )
            self._observer.fenced(partition)
            await self._forget(consumer, partition, owned, "fenced")
        except Exception as error:
            if isinstance(error, MdpError) and error.retriable and self._owned.get(partition) is not owned:
                return  # the partition is somebody else's, who reads these events again
            # A task's error would be lost otherwise; the loop raises it.
            self._failure = error
        finally:
            owned.flush = None
        if owned.paused and owned.logic.backlog <= self._settings.max_backlog:
            owned.paused = False
            if self._owned.get(partition) is owned:
                consumer.resume(partition)

    async def _commit(self, consumer: Consumer, partition: int, owned: _Owned) -> None:
        plan = owned.logic.take()
        s = self._settings

        def mine() -> bool:
            return self._owned.get(partition) is owned

        if plan.dead_letters:
            await self._retry("bus", lambda: self._publisher.bury(plan.dead_letters), as_long_as=mine)
        owned.number += 1
        flush = Flush(
            claim=owned.claim,
            number=owned.number,
            lanes=plan.lanes,
            positions=plan.positions,
            forget=plan.forget,
            published=owned.published,
            bars_topic=s.bars_topic,
            dead_letter_topic=s.dead_letter_topic,
            signals=SignalFlush(s.signals_topic, plan.signals, plan.revised) if s.signals_topic else None,
        )
        started = self._clock.monotonic()
        committed = await self._retry("store", lambda: self._store.commit(flush), as_long_as=mine)
        owned.published = []
        at = self._clock.now()
        self._observer.flushed(partition, plan, committed, (self._clock.monotonic() - started) / 1e9, at)
        for reason, row in committed.rejected:
            log.error("the store rejected a row; it is in the dead letter topic", reason=reason, row=row)
        await self._publish(owned, committed.outbox, as_long_as=mine)
        if mine():
            await self._retry(
                "bus",
                lambda: consumer.ack(partition, plan.through, keep_from=plan.keep_from),
                as_long_as=mine,
            )

    async def _publish(
        self, owned: _Owned, outbox: Iterable[OutboxRecord], as_long_as: Callable[[], bool]
    ) -> None:
        """Publish outbox rows in order; the next transaction removes them."""
        for row in outbox:
            if not as_long_as():
                return  # whoever has the partition now finds the rest
            await self._retry("bus", partial(self._publisher.publish, row), as_long_as=as_long_as)
            owned.published.append(row.id)

    async def _hand_over(self, consumer: Consumer, partition: int) -> None:
        """Commit what is closed, then let go. Open windows go with the partition: the next owner reads them again."""
        owned = self._owned.get(partition)
        if owned is not None:
            owned.handing_over = True
            await self._flush_all(consumer, partition, owned)
        await self._drop(consumer, partition, "handed over")
        await self._retry("bus", lambda: consumer.release(partition))

    async def _flush_all(self, consumer: Consumer, partition: int, owned: _Owned) -> None:
        if owned.flush is not None:
            await owned.flush
        if self._owned.get(partition) is owned and owned.logic.due():
            owned.flush = asyncio.create_task(self._flush(consumer, partition, owned))
            await owned.flush

    async def _drop(self, consumer: Consumer, partition: int, reason: str) -> None:
        """Forget a partition's state without writing anything."""
        claim = self._claims.pop(partition, None)
        if claim is not None:
            await end(claim)
        owned = self._owned.pop(partition, None)
        if owned is not None:
            if owned.flush is not None and reason == "lost":
                # The store knows whether it is still in time: it is done, or fenced and counted. Cut off in the middle
                # its outcome would stay unknown, and whoever is away would be waited for.
                self._outliving.add(owned.flush)
                owned.flush.add_done_callback(self._outliving.discard)
            elif owned.flush is not None:
                await end(owned.flush)
            self._observer.released(partition, reason)

    async def _forget(self, consumer: Consumer, partition: int, owned: _Owned, reason: str) -> None:
        if self._owned.get(partition) is owned:
            del self._owned[partition]
            self._observer.released(partition, reason)
            await self._retry("bus", lambda: consumer.release(partition))

    async def _drain(self, consumer: Consumer, stop: asyncio.Event) -> None:
        """Commit what is closed. Who asked to stop does not wait for a store that is away: it is read again."""
        try:
            async with asyncio.timeout(self._settings.drain_seconds if stop.is_set() else None):
                for partition, owned in list(self._owned.items()):
                    await self._flush_all(consumer, partition, owned)
        except TimeoutError:
            log.warning("stopped before the last commit; the next start reads these events again")
        self._raise_failure()

    async def _shut(self, consumer: Consumer) -> None:
        for partition in list(self._owned.keys() | self._claims.keys()):
            await self._drop(consumer, partition, "stopped")
        for flush in list(self._outliving):
            await end(flush)
        await consumer.close()

    async def _is_idle(self, seconds: float) -> bool:
        """Whether nothing came for so long, and nothing waits in a partition that nobody owns yet."""
        # What an owner before was handed and did not finish is no lag of the group: that it was read again is known
        # by having come to the end.
        busy = (o.flush is not None or o.paused or not o.caught_up for o in self._owned.values())
        if self._claims or any(busy):
            return False
        if self._clock.monotonic() - self._active_at < seconds * 1e9:
            return False
        s = self._settings
        topics = await self._retry("bus", lambda: self._bus.status([s.topic]))
        return not any(waits(topic, s.group, s.member, self._owned.keys()) for topic in topics)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
