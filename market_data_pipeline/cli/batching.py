"""Puts a micro-batcher together from the settings: for ``micro-batch``, ``run`` and ``demo`` alike."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay, wait_fixed

from market_data_core.clock import SystemClock
from market_data_core.config import Settings
from market_data_core.ending import end
from market_data_core.errors import BusNotReady, MdpError, StoreNotReady
from market_data_core.protocols import BarSink, Claim
from market_data_core.redact import redact
from market_data_pipeline.cli import context
from market_data_pipeline.consumers.exactly_once import (
    ConsumerSettings,
    ExactlyOnceConsumer,
    Observer,
)
from market_data_pipeline.consumers.micro_batcher import BatcherSettings, PartitionBars
from market_data_pipeline.consumers.partition_logic import PartitionLogic
from market_data_pipeline.streaming.bus import Bus, TrimResult
from market_data_pipeline.tracing.traces import UNTRACED, WINDOWING, Traces
from market_data_pipeline.windows.tumbling import WindowSettings

if TYPE_CHECKING:
    from market_data_store.client import StoreClient
    from market_data_store.job_runs import JobRunTracker

log = structlog.get_logger(__name__)
_MS = 1_000_000
_TRIM_SECONDS = 10.0
_READY_SECONDS = 300.0


def member_name(settings: Settings) -> str:
    """``bus.member``, or a name that no other process has: host, pid and a little chance, since pids come back."""
    return settings.bus.member or f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"


def micro_batcher(
    settings: Settings,
    bus: Bus,
    store: BarSink,
    observer: Observer,
    *,
    topic: str | None = None,
    group: str | None = None,
    member: str | None = None,
    traces: Traces = UNTRACED,
) -> ExactlyOnceConsumer:
    """A member of the micro-batcher's consumer group, not yet running."""
    redis, batch = settings.bus.redis, settings.micro_batch
    topic = topic or redis.stream
    clock = SystemClock()
    batcher = BatcherSettings(
        windows=WindowSettings(
            window_ns=batch.window_ms * _MS,
            allow_late_ns=batch.allow_late_ms * _MS,
            dedupe_horizon_ns=batch.dedupe_horizon_ms * _MS,
            kinds=batch.kinds,
            amend_beyond_horizon=batch.late_beyond_horizon == "amend",
        ),
        flush_timeout_ns=batch.flush_timeout_ms * _MS,
        late_policy=batch.late_policy,
        max_future_ns=batch.max_future_ms * _MS,
    )

    def logic(claim: Claim) -> PartitionLogic:
        bars = PartitionBars(claim, batcher, clock, bus.format_offset, bus.parse_offset)
        return traces.logic(bars, claim, WINDOWING)

    consumer = ConsumerSettings(
        topic=topic,
        group=group or redis.consumer_group,
        member=member or member_name(settings),
        bars_topic=redis.bars_stream,
        dead_letter_topic=f"{topic}.dlq",
        max_records=batch.max_batch_size,
        lease_ms=redis.lease_ms,
        static=bool(settings.bus.member),
    )
    spare_collector()
    return ExactlyOnceConsumer(
        traces.consuming(bus), traces.sink(store, WINDOWING), consumer, logic, clock, observer
    )


async def topic_of(bus: Bus, topic: str, partitions: int) -> None:
    """Have ``topic``. A bus that has just come back and reads its files is waited for, as whoever restarts workers with
    it would have to; one that cannot be reached is an error at once."""
    async for attempt in _while_starting():
        with attempt:
            await bus.ensure_topic(topic, partitions)


async def store_of(settings: Settings) -> StoreClient:
    """A connection pool to the store. A database that is still starting is waited for, as a bus is by
    :func:`topic_of`; one that cannot be reached is an error at once."""
    async for attempt in _while_starting():
        with attempt:
            return await context.open_store(settings)
    raise AssertionError("tenacity ends with a result or an error")


def _while_starting() -> AsyncRetrying:
    """Tries, as long as a server says that it will be there by itself, and not for ever."""

    def tell(state: RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            log.warning(
                "a server is still starting; waiting for it",
                at_most_s=_READY_SECONDS,
                error=str(state.outcome.exception()),
            )

    return AsyncRetrying(
        retry=retry_if_exception_type((BusNotReady, StoreNotReady)),
        wait=wait_fixed(0.5),
        stop=stop_after_delay(_READY_SECONDS),
        before_sleep=tell,
        reraise=True,
    )


def spare_collector() -> None:
    """Let the garbage collector come rarely, and not look at what was there before.

    The replies of the bus are lists by the ten thousand, all of which reference counting frees; the collector going
    through them, and through every module again and again, takes a quarter of the time of a consumer of single events.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@asynccontextmanager
async def trimming(
    settings: Settings, bus: Bus, topics: list[str], trimmed: Callable[[str, TrimResult], None] | None = None
) -> AsyncIterator[None]:
    """Keep the topics within their retention while the block runs; ``trimmed`` is told of each round."""
    told = trimmed or (lambda topic, done: None)
    for topic in topics:
        told(topic, TrimResult(0, 0))

    async def forever() -> None:
        while True:
            await asyncio.sleep(_TRIM_SECONDS)
            for topic in topics:
                try:
                    done = await bus.trim(
                        topic,
                        retention_ms=settings.bus.redis.retention_ms,
                        max_records=settings.bus.redis.max_records,
                    )
                    told(topic, done)
                except MdpError as error:
                    log.warning("could not trim; the next round tries again", topic=topic, error=str(error))

    task = asyncio.create_task(forever())
    try:
        yield
    finally:
        await end(task)
        if not task.cancelled():
            task.result()


def tracked(store: StoreClient, job: str, counters: Callable[[], dict[str, Any]]) -> JobRunTracker:
    """A row of ``job_runs`` around a run, with its command line, secrets taken out."""
    from market_data_store.job_runs import JobRunTracker

    args = [redact(arg) for arg in sys.argv[1:]]
    return JobRunTracker(store, job, command="mdp", args=args, counters=counters)


async def until_stopped(consumer: ExactlyOnceConsumer, until_idle: float | None = None) -> None:
    """Run the consumer; a cancellation (Ctrl-C) stops it gracefully: closed windows are still committed."""
    mine = asyncio.current_task()
    if mine is not None and mine.cancelling():
        # One that came while the servers were being reached was lost on the way, in asyncio.wait_for of Python 3.11.
        raise asyncio.CancelledError
    stop = asyncio.Event()
    task = asyncio.create_task(consumer.run(stop, until_idle))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        await task
        raise
