"""The consumer around the logic: what it does when the store dies, comes back, answers twice or has a newer owner."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_core.batch import EventBatch
from market_data_core.clock import SystemClock
from market_data_core.codecs import decode_bars, encode_events
from market_data_core.errors import StoreUnavailable
from market_data_core.events import StreamEvent
from market_data_core.partitioner import partition_of
from market_data_core.protocols import Claim, Flush
from market_data_pipeline.consumers.exactly_once import ConsumerSettings, ExactlyOnceConsumer
from market_data_pipeline.consumers.micro_batcher import BatcherSettings, PartitionBars
from market_data_pipeline.consumers.stats import RunStats
from market_data_pipeline.streaming.bus import GroupPartition, Offset, Record
from market_data_pipeline.streaming.dead_letters import DeadLetters
from market_data_pipeline.streaming.memory_bus import MemoryBus
from market_data_pipeline.streaming.memory_consumer import MemoryConsumer
from market_data_pipeline.windows.tumbling import WindowSettings
from tests import oracle
from tests.integration.sink import MemorySink
from tests.unit.strategies import SECOND, SEEDS, arrivals

WINDOW = 2 * SECOND
NAMES = ConsumerSettings("t", "g", "m", "bars", "t.dlq", max_records=20, poll_seconds=0.01, lease_ms=500)
BATCHING = BatcherSettings(
    WindowSettings(WINDOW, SECOND, 600 * SECOND), 3600 * SECOND, position_interval_ns=0
)
_numbers = itertools.count()


class CrashError(Exception):
    """The worker dies here."""


class World:
    """A bus and a store that outlive the consumers."""

    def __init__(self, partitions: int = 1) -> None:
        self.bus = MemoryBus(f"memory://consumer{next(_numbers)}")
        self.sink = MemorySink()
        self.partitions = partitions

    async def publish(self, *values: bytes) -> None:
        await self.bus.ensure_topic("t", self.partitions)
        await self.bus.publish("t", [Record(_symbol(value), value) for value in values])

    def consumer(self, stats: RunStats, names: ConsumerSettings = NAMES) -> ExactlyOnceConsumer:
        def logic(claim: Claim) -> PartitionBars:
            return PartitionBars(
                claim, BATCHING, SystemClock(), self.bus.format_offset, self.bus.parse_offset
            )

        return ExactlyOnceConsumer(self.bus, self.sink, names, logic, SystemClock(), stats)

    async def drain(self, names: ConsumerSettings = NAMES) -> RunStats:
        stats = RunStats()
        await self.consumer(stats, names).run(asyncio.Event(), 0.05)
        return stats

    async def published(self) -> dict[tuple[str, int], int]:
        """The newest revision published of each bar."""
        out: dict[tuple[str, int], int] = {}
        for partition in range(await self.bus.partitions("bars")):
            for record in await self.bus.read("bars", partition, None, 100_000):
                for b in decode_bars(record.value).bars():
                    out[b.symbol, b.ts] = max(out.get((b.symbol, b.ts), 0), b.revision)
        return out

    async def group(self) -> list[GroupPartition]:
        [topic] = await self.bus.status(["t"])
        return [p for g in topic.groups for p in g.partitions]

    async def check(self, events: list[StreamEvent]) -> None:
        bars = self.sink.bars()
        oracle.assert_equal(bars, oracle.recount(events, WINDOW))
        assert await self.published() == {(b.symbol, b.ts): b.revision for b in bars}
        assert [(p.lag, p.pending) for p in await self.group()] == [(0, 0)] * self.partitions


def some_events(seed: int = 1, n: int = 300) -> list[StreamEvent]:
    return arrivals(seed, n, allow_late_ns=SECOND, copies=0).order


def json_of(events: list[StreamEvent]) -> list[bytes]:
    return encode_events(EventBatch.from_events(events))


def _symbol(value: bytes) -> str:
    return str(json.loads(value)["symbol"]) if value[:1] == b"{" else ""


def on_flush(number: int, error: Callable[[], Exception], times: int = 1) -> Callable[[Flush], None]:
    """Raise at the ``number``th call, and ``times`` in a row."""
    calls = itertools.count(1)

    def hook(_: Flush) -> None:
        if number <= next(calls) < number + times:
            raise error()

    return hook


async def test_events_in_bars_out_and_everything_acknowledged() -> None:
    world, events = World(partitions=3), some_events()
    await world.publish(*json_of(events))
    stats = await world.drain()
    await world.check(events)
    assert stats.events == len(events)
    assert {flush.claim.partition for flush in world.sink.flushes} == {
        partition_of(e.symbol, 3) for e in events
    }


@given(SEEDS, st.lists(st.tuples(st.sampled_from(["before", "after"]), st.integers(1, 12)), max_size=6))
@settings(max_examples=12)
def test_a_crash_on_either_side_of_any_commit_changes_nothing(
    seed: int, crashes: list[tuple[str, int]]
) -> None:
    async def history() -> None:
        world, events = World(), some_events(seed, 150)
        await world.publish(*json_of(events))
        for side, number in crashes:
            world.sink.before = world.sink.after = lambda flush: None
            setattr(world.sink, side, on_flush(number, CrashError))
            try:
                await world.drain()
            except CrashError:
                continue
        world.sink.before = world.sink.after = lambda flush: None
        await world.drain()
        await world.check(events)
        assert {b.revision for b in world.sink.bars()} == {1}

    asyncio.run(history())


@pytest.mark.parametrize("side", ["before", "after"])
async def test_a_store_that_goes_away_and_comes_back_is_tried_again(side: str) -> None:
    """After the commit the answer is lost: the same flush comes again under its number and is not applied twice."""
    world, events = World(), some_events()
    setattr(world.sink, side, on_flush(2, lambda: StoreUnavailable("it is away"), times=3))
    await world.publish(*json_of(events))
    stats = await world.drain()
    await world.check(events)
    assert stats.retries == 3
    assert stats.last_error == ""
    assert [flush.number for flush in world.sink.flushes] == list(range(1, len(world.sink.flushes) + 1))
    assert {b.revision for b in world.sink.bars()} == {1}


async def test_a_newer_owner_fences_and_the_partition_is_read_again_from_the_position() -> None:
    world, events = World(), some_events()
    calls = itertools.count(1)

    def usurp(flush: Flush) -> None:
        if next(calls) == 3:
            world.sink._partitions["t", "g", 0].epoch += 1

    world.sink.before = usurp
    await world.publish(*json_of(events))
    stats = await world.drain()
    assert stats.fenced_writes == 1
    await world.check(events)
    assert [flush.claim.epoch for flush in world.sink.flushes][:2] == [1, 1]
    assert world.sink.flushes[-1].claim.epoch == 3


async def test_a_stop_commits_what_is_closed_and_leaves_the_rest_to_be_read_again() -> None:
    world, events = World(), some_events()
    await world.publish(*json_of(events))
    stop = asyncio.Event()

    class StopAtTheEnd(RunStats):
        def flushed(self, *args: object) -> None:
            super().flushed(*args)  # type: ignore[arg-type]
            if self.stored > 50:
                stop.set()

    await world.consumer(StopAtTheEnd()).run(stop)
    stored = world.sink.bars()
    want = oracle.recount(events, WINDOW)
    assert 50 < len(stored) < len(want)
    for bar in stored:
        assert bar.n_events == want[bar.provider, bar.symbol, bar.ts].n_events, (
            "only whole windows are stored"
        )
    assert sum(p.lag + p.pending for p in await world.group()) > 0
    await world.drain()
    await world.check(events)
    assert {b.revision for b in world.sink.bars()} == {1}


async def test_a_store_that_is_away_stops_the_reading() -> None:
    world, events = World(), some_events(n=3000)
    names = replace(NAMES, max_backlog=30, max_records=10)
    await world.publish(*json_of(events))
    away = True

    def unreachable(flush: Flush) -> None:
        if away:
            raise StoreUnavailable("it is away")

    world.sink.before = unreachable
    stats = RunStats()
    run = asyncio.create_task(world.consumer(stats, names).run(asyncio.Event(), 0.05))
    async with asyncio.timeout(20):
        before, left, retries = -1, len(events), 0
        while before != left:
            before = left
            while stats.retries < retries + 2:  # noqa: ASYNC110 - counts are no events
                await asyncio.sleep(0)
            retries = stats.retries
            [partition] = await world.group()
            left = partition.lag
    assert left > 2000, "it reads on although the store does not take what was read"
    away = False
    await run
    await world.check(events)


async def test_a_stop_does_not_wait_for_a_store_that_is_away() -> None:
    world, events = World(), some_events()
    await world.publish(*json_of(events))
    world.sink.before = on_flush(1, lambda: StoreUnavailable("it is away"), times=10**9)
    stats, stop = RunStats(), asyncio.Event()
    run = asyncio.create_task(world.consumer(stats, replace(NAMES, drain_seconds=0.05)).run(stop))
    async with asyncio.timeout(20):
        while not stats.retries:  # noqa: ASYNC110 - counts are no events
            await asyncio.sleep(0)
        stop.set()
        await run
    assert world.sink.bars() == []
    world.sink.before = lambda flush: None
    await world.drain()
    await world.check(events)


async def test_an_error_that_trying_again_cannot_cure_ends_the_run() -> None:
    world = World()
    await world.publish(*json_of(some_events()))
    world.sink.before = on_flush(1, lambda: CrashError("for good"))
    with pytest.raises(CrashError, match="for good"):
        await world.drain()


async def test_dead_letters_are_on_the_bus_before_their_position_is_committed() -> None:
    """A crash between the two makes a second copy, and copies are shown as one."""
    world, events = World(), some_events(n=60)
    values = json_of(events)
    await world.publish(*values[:30], b"junk", *values[30:])
    world.sink.before = on_flush(1, CrashError)
    with pytest.raises(CrashError):
        await world.drain(replace(NAMES, max_records=5000))
    letters = DeadLetters(world.bus, "t")
    assert [b.letter.value for b in await letters.letters()] == [b"junk"]
    world.sink.before = lambda flush: None
    stats = await world.drain(replace(NAMES, max_records=5000))
    assert len(await world.bus.read("t.dlq", 0, None, 10)) == 2
    assert [b.letter.value for b in await letters.letters()] == [b"junk"]
    assert stats.dead_lettered == 1
    await world.check(events)


async def test_the_outbox_is_emptied_when_it_is_published() -> None:
    world, events = World(), some_events()
    await world.publish(*json_of(events))
    await world.drain()
    await world.publish(*json_of(some_events(seed=2)))
    await world.drain()
    outbox = world.sink._partitions["t", "g", 0].outbox
    assert len(outbox) <= 1, "only what the last flush wrote"


async def test_everything_is_released_in_the_end() -> None:
    world, rng = World(partitions=8), random.Random(4)
    events = some_events(n=500)
    await world.publish(*rng.sample(json_of(events), len(events)))
    stats = RunStats()
    consumer = world.consumer(stats)
    await consumer.run(asyncio.Event(), 0.05)
    assert (consumer.partitions, stats.partitions) == ([], set())
    assert stats.events + stats.counts.expired == len(events)
    assert [p.owner for p in await world.group()] == [None] * 8


async def test_what_comes_before_the_bus_has_taken_the_position_is_not_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A new owner acknowledges what the one before committed; polls go on meanwhile, and may bring records."""
    acknowledge = MemoryConsumer.ack

    async def tardy(
        self: MemoryConsumer, partition: int, through: Offset, *, keep_from: Offset | None = None
    ) -> None:
        for _ in range(100):
            await asyncio.sleep(0)
        await acknowledge(self, partition, through, keep_from=keep_from)

    monkeypatch.setattr(MemoryConsumer, "ack", tardy)
    world, events = World(), some_events()
    await world.publish(*json_of(events[:150]))
    await world.drain()
    await world.publish(*json_of(events[150:]))
    await world.drain()
    await world.check(events)
