"""Exactly-once effect on an at-least-once bus: the one mechanism that every consumer of mdp runs on.

A partition is owned on the bus and claimed in the store, which raises its epoch. Records go through a
:class:`PartitionLogic`, pure and in memory. What it has to keep is committed in one transaction with the positions and
an outbox; after the commit the outbox is published and the bus is acknowledged, in this order. Nothing that happens
between two of these steps can lose or double a result:

- before the commit: the next owner reads again from the committed position;
- after it, before publishing: the next owner finds the outbox;
- after publishing, before the acknowledgement: the next owner reads again what its position says is handled;
- a worker that was stopped and wakes up finds a newer epoch, and may write nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

import structlog
from structlog.contextvars import bind_contextvars
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential, wait_random

from market_data_core.clock import Clock
from market_data_core.codecs import DeadLetter, encode_dead_letter
from market_data_core.errors import Fenced, MdpError
from market_data_core.events import Signal
from market_data_core.protocols import (
    BarSink,
    Claim,
    Committed,
    Flush,
    LaneFlush,
    OutboxRecord,
    Position,
    SignalFlush,
)
from market_data_core.signal_codec import parcel_of
from market_data_pipeline.streaming.bus import (
    Bus,
    Consumer,
    Delivery,
    GroupPartition,
    Offset,
    Poll,
    Record,
)
from market_data_pipeline.windows.tumbling import Counts

T = TypeVar("T")
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Plan:
    """What one flush carries, taken from the logic at one moment.

    ``through``: everything up to there may be acknowledged once committed. ``keep_from``: a new owner would read
    from there. ``closable_at``: for each closed bar, ns UTC, when it could first have been closed. ``counts``: what
    became of the events since the plan before. ``watermarks``: each lane's, ns. ``signals``, ``revised``: see
    SignalFlush.
    """

    lanes: list[LaneFlush]
    positions: list[Position]
    forget: list[str]
    through: Offset
    keep_from: Offset
    closable_at: list[int] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    watermarks: dict[str, int] = field(default_factory=dict)
    open_rows: int = 0
    signals: list[Signal] = field(default_factory=list)
    revised: list[tuple[str, str, int]] = field(default_factory=list)


class PartitionLogic(Protocol):
    """What a consumer does with one partition: in memory, and without I/O but for :meth:`prepare`."""

    @property
    def start(self) -> Offset | None:
        """Where to read from (None: the first record)."""
        ...

    @property
    def committed(self) -> Offset | None:
        """Up to where the owner before had committed everything (None: nothing)."""
        ...

    @property
    def backlog(self) -> int:
        """Rows that wait for a flush: the bound on them is the consumer's."""
        ...

    async def prepare(self, delivery: Delivery) -> None:
        """Get what processing ``delivery`` needs from elsewhere. May wait, may be called again after an error, and
        changes nothing that a flush meanwhile would see."""
        ...

    def process(self, delivery: Delivery) -> None:
        """Take consecutive records."""
        ...

    def caught_up(self, at: int) -> None:
        """At monotonic ns ``at`` the partition held nothing more than was processed."""
        ...

    def finish(self) -> None:
        """Nothing more is expected: close what can be closed."""
        ...

    def due(self) -> bool:
        """Whether a flush is worth a transaction now."""
        ...

    def take(self) -> Plan:
        """What to commit; from now on the logic counts it as committed."""
        ...


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
            s.topic, s.group, s.member, max_records=s.max_records, lease_ms=s.lease_ms
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
            if delivery.caught_up:
                owned.logic.caught_up(delivery.polled_at)
            self._start_flush(consumer, delivery.partition, owned)
            # Commits, leases and other partitions get their turn between two batches.
            await asyncio.sleep(0)
        for partition, at in poll.idle.items():
            if partition in self._owned:
                self._owned[partition].logic.caught_up(at)
        for partition, owned in list(self._owned.items()):
            self._start_flush(consumer, partition, owned)

    async def _prepared(self, delivery: Delivery, owned: _Owned, stop: asyncio.Event) -> bool:
        """Whether ``delivery`` can be processed now; not when its partition went away meanwhile, or at a stop, which
        does not wait for a store that is away: both are read again by whoever comes next."""

        def wanted() -> bool:
            return self._owned.get(delivery.partition) is owned and not stop.is_set()

        try:
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
            claim = await self._retry(
                "store",
                lambda: self._store.claim(s.topic, s.group, partition, s.member),
                as_long_as=wanted,
            )
            owned = _Owned(claim, self._make_logic(claim))
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
            await self._retry("bus", lambda: self._bury(plan.dead_letters), as_long_as=mine)
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
            await self._retry("bus", partial(self._publish_one, row), as_long_as=as_long_as)
            owned.published.append(row.id)

    async def _publish_one(self, row: OutboxRecord) -> None:
        partitions = await self._topic(row.topic)
        parcel = parcel_of(row.value)
        records = [Record(row.key, row.value, row.lane)]
        if parcel is not None:
            records = [Record(key, value, row.lane) for key, value in parcel]
        await self._bus.publish(row.topic, records, partition=row.partition % partitions)

    async def _topic(self, topic: str) -> int:
        """Partitions of an output topic. One that does not exist yet gets as many as the input has, so that a symbol
        keeps its partition from events to bars; dead letters need one."""
        wanted = 1
        if topic != self._settings.dead_letter_topic:
            wanted = max(1, await self._bus.partitions(self._settings.topic))
        return await self._bus.ensure_topic(topic, wanted)

    async def _bury(self, letters: list[DeadLetter]) -> None:
        topic = self._settings.dead_letter_topic
        await self._bus.ensure_topic(topic, 1)
        records = [Record(letter.key, encode_dead_letter(letter), None) for letter in letters]
        await self._bus.publish(topic, records, partition=0)

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
            await _cancel(claim)
        owned = self._owned.pop(partition, None)
        if owned is not None:
            if owned.flush is not None and reason == "lost":
                # The store knows whether it is still in time: it is done, or fenced and counted. Cut off in the middle
                # its outcome would stay unknown, and whoever is away would be waited for.
                self._outliving.add(owned.flush)
                owned.flush.add_done_callback(self._outliving.discard)
            elif owned.flush is not None:
                await _cancel(owned.flush)
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
            await _cancel(flush)
        await consumer.close()

    async def _is_idle(self, seconds: float) -> bool:
        """Whether nothing came for so long, and nothing waits in a partition that nobody owns yet."""
        if self._claims or any(o.flush is not None or o.paused for o in self._owned.values()):
            return False
        if self._clock.monotonic() - self._active_at < seconds * 1e9:
            return False
        topics = await self._retry("bus", lambda: self._bus.status([self._settings.topic]))
        for topic in topics:
            groups = [g for g in topic.groups if g.group == self._settings.group]
            known = {p.partition for g in groups for p in g.partitions}
            # A partition that no member of the group has come to yet is not among those of the group.
            if any(size and p not in known for p, size in enumerate(topic.sizes)):
                return False
            if any(self._waits(p, g.members) for g in groups for p in g.partitions):
                return False
        return True

    def _waits(self, p: GroupPartition, members: list[str]) -> bool:
        """Whether a partition has something for this worker, now or as soon as the lease of a dead one ends.

        What an owner was handed and did not finish is no lag any more, but still pending.
        """
        if p.partition in self._owned:
            return p.lag > 0
        # Ours by its lease may not have been told by a poll yet.
        theirs = p.owner in members and p.owner != self._settings.member
        return not theirs and (p.lag > 0 or p.pending > 0)

    async def _retry(
        self, what: str, call: Callable[[], Awaitable[T]], as_long_as: Callable[[], bool] = lambda: True
    ) -> T:
        """Call until it works, as long as the error says that it may: exponential backoff with jitter, to 2 s."""

        def report(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            if error is not None:
                self._observer.retrying(what, error)

        async for attempt in AsyncRetrying(
            retry=retry_if_exception(lambda e: isinstance(e, MdpError) and e.retriable and as_long_as()),
            wait=wait_exponential(multiplier=0.05, max=2.0) + wait_random(0, 0.1),
            before_sleep=report,
            reraise=True,
        ):
            with attempt:
                return await call()
        raise AssertionError("unreachable: retrying ends by a result or an error")

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
