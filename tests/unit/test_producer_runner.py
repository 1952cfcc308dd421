"""The runner: from any provider to a topic, with a clock moved by hand and a bus that can be cut off."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from market_data_core.batch import EventBatch
from market_data_core.clock import ManualClock
from market_data_core.codecs import EventDecoder, decode_dead_letter
from market_data_core.errors import BusUnavailable, DatasetError
from market_data_core.events import StreamEvent
from market_data_core.partitioner import partition_of
from market_data_pipeline.producers import runner as runner_module
from market_data_pipeline.producers.counts import Counts, ProducerObserver
from market_data_pipeline.producers.pacing import EventTimePace, RatePace
from market_data_pipeline.producers.provider import BadRow
from market_data_pipeline.producers.replay import replay_lane
from market_data_pipeline.producers.runner import ProducerRunner, RunnerOptions
from market_data_pipeline.producers.spool import Spool
from market_data_pipeline.producers.synthetic import SyntheticProvider, SyntheticSpec
from market_data_pipeline.streaming.memory_bus import MemoryBus

TOPIC = "mdp.events"
S = 1_000_000_000
_names = itertools.count()


def new_bus() -> MemoryBus:
    return MemoryBus(f"memory://runner{next(_names)}")


def event(number: int, symbol: str = "A", at: int | None = None, provider: str = "p") -> StreamEvent:
    return StreamEvent(
        provider, symbol, "tick", "1s", number * S if at is None else at, 0, 1.0, 1.0, 1.0, 1.0, 1.0, number
    )


def batch(*events: StreamEvent) -> EventBatch:
    return EventBatch.from_events(events)


@dataclass
class Listed:
    """A provider that can wait, of given items."""

    items: Sequence[EventBatch | BadRow]
    name: str = "p"
    can_wait: bool = True
    closed: bool = False

    def batches(self) -> Iterator[EventBatch | BadRow]:
        try:
            yield from self.items
        finally:
            self.closed = True


@dataclass
class Feed:
    """A live feed, fed by the test."""

    name: str = "feed"
    can_wait: bool = False
    given: asyncio.Queue[EventBatch | BadRow | None] = field(default_factory=asyncio.Queue)
    closed: bool = False

    async def batches(self) -> AsyncIterator[EventBatch | BadRow]:
        try:
            while (item := await self.given.get()) is not None:
                yield item
        finally:
            self.closed = True


class Time:
    """Sleeping moves the clock."""

    def __init__(self) -> None:
        self.clock = ManualClock(1_700_000_000 * S)

    async def sleep(self, seconds: float) -> None:
        self.clock.advance(max(round(seconds * 1e9), 1))
        await asyncio.sleep(0)


def runner(bus: MemoryBus, provider: Any, time: Time | None = None, **given: Any) -> ProducerRunner:
    time = time or Time()
    options = {k: given.pop(k) for k in list(given) if k in RunnerOptions.__dataclass_fields__}
    return ProducerRunner(
        bus, provider, TOPIC, RunnerOptions(**options), clock=time.clock, sleep=time.sleep, **given
    )


async def records(bus: MemoryBus, topic: str = TOPIC) -> dict[int, list[Any]]:
    return {p: await bus.read(topic, p, None, 100_000) for p in range(await bus.partitions(topic))}


async def published(bus: MemoryBus) -> list[StreamEvent]:
    out: list[StreamEvent] = []
    for partition, some in (await records(bus)).items():
        decoded = EventDecoder().decode([r.value for r in some], [r.lane for r in some])
        assert decoded.poison == []
        events = decoded.batch.events()
        assert {partition_of(e.symbol, await bus.partitions(TOPIC)) for e in events} <= {partition}
        out += events
    return out


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - counts are no events
            await asyncio.sleep(0)


@pytest.mark.parametrize("codec", ["frame", "json", "msgpack"])
async def test_all_events_of_a_provider(codec: str) -> None:
    bus = new_bus()
    spec = SyntheticSpec(tuple(f"S{i}" for i in range(20)), 0.0, 5 * S, 1, 20_000)
    want = EventBatch.concat(list(SyntheticProvider(spec).batches())).events()
    counts = await runner(bus, SyntheticProvider(spec), partitions=3, codec=codec).run()
    got = await published(bus)
    assert sorted(got, key=lambda e: (e.src_ts, e.symbol)) == sorted(want, key=lambda e: (e.src_ts, e.symbol))
    assert (counts.taken, counts.published) == (20_000, 20_000)
    assert counts.records == sum(len(some) for some in (await records(bus)).values())
    assert all(r.lane is None for some in (await records(bus)).values() for r in some), (
        "live events name no lane"
    )


async def test_events_are_stamped_when_they_are_taken() -> None:
    bus, time = new_bus(), Time()
    stamped = EventBatch.from_events([event(0), event(1)])
    stamped.ingest_ts[1] = 77
    start = time.clock.now()
    await runner(bus, Listed([stamped, batch(event(2))]), time, pace=RatePace(1.0)).run()
    assert [e.ingest_ts for e in await published(bus)] == [start, 77, start + 2 * S]


async def test_a_topic_that_exists_keeps_its_partitions() -> None:
    bus = new_bus()
    await bus.ensure_topic(TOPIC, 5)
    await runner(bus, Listed([batch(*(event(i, f"S{i}") for i in range(50)))]), partitions=2).run()
    assert len(await published(bus)) == 50
    assert await bus.partitions(TOPIC) == 5


@pytest.mark.parametrize("limit", [0, 1, 7, 10, 99])
async def test_a_limit(limit: int) -> None:
    bus = new_bus()
    provider = Listed([batch(event(0), event(1), event(2)), batch(*(event(i) for i in range(3, 10)))])
    counts = await runner(bus, provider, limit=limit).run()
    assert [e.seq for e in await published(bus)] == list(range(min(limit, 10)))
    assert counts.taken == min(limit, 10)
    assert provider.closed or limit == 0


async def test_a_duration() -> None:
    bus, time = new_bus(), Time()
    provider = SyntheticProvider(SyntheticSpec(("A",), 10.0, 0, 1))
    counts = await runner(bus, provider, time, pace=EventTimePace(1.0, "ingest_ts"), duration_s=3.0).run()
    assert counts.published == 30
    assert counts.seconds == pytest.approx(3.0)


def wrong(number: int, **changes: Any) -> StreamEvent:
    good = event(number)
    values = {name: getattr(good, name) for name in StreamEvent.__dataclass_fields__}
    return StreamEvent(**{**values, **changes})


BAD = [
    (wrong(1, v=-1.0), "v -1 is negative"),
    (wrong(1, c=float("nan")), "c is not a finite number"),
    (wrong(1, l=2.0), "l 2 is above h 1"),
    (wrong(1, symbol="A|B"), "symbol has a '|'"),
    (wrong(1, kind="trade"), "kind 'trade' is none of"),
    (wrong(1, interval="soon"), "interval 'soon'"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD)
async def test_what_is_no_event_ends_the_run_and_the_rest_is_published(bad: StreamEvent, reason: str) -> None:
    bus = new_bus()
    provider = Listed([batch(event(0)), batch(bad), batch(event(2))])
    with pytest.raises(DatasetError, match="is no event: ") as raised:
        await runner(bus, provider).run()
    assert reason in str(raised.value)
    assert "--bad-rows" in str(raised.value)
    assert [e.seq for e in await published(bus)] == [0]
    assert provider.closed


@pytest.mark.parametrize(("bad", "reason"), BAD)
async def test_what_is_no_event_goes_to_the_dead_letters(bad: StreamEvent, reason: str) -> None:
    bus = new_bus()
    row = BadRow("file.csv:9", "has 3 columns, not 4", b"a,b,\xff")
    provider = Listed([batch(event(0), bad, event(2)), row, batch(event(3))])
    counts = await runner(bus, provider, bad_rows="dlq").run()
    assert [e.seq for e in await published(bus)] == [0, 2, 3]
    letters = [decode_dead_letter(r.value) for r in (await records(bus, TOPIC + ".dlq"))[0]]
    assert letters[0].reason.startswith(reason)
    assert b'"seq":1' in letters[0].value
    assert (letters[1].offset, letters[1].reason, letters[1].value) == (row.place, row.reason, row.value)
    assert {(letter.topic, letter.partition) for letter in letters} == {(TOPIC, -1)}
    assert counts.bad_rows == 2


async def test_what_is_no_event_is_only_counted() -> None:
    bus = new_bus()
    provider = Listed([batch(event(0), BAD[0][0], event(2)), BadRow("f:1", "why", b"x")])
    counts = await runner(bus, provider, bad_rows="skip").run()
    assert [e.seq for e in await published(bus)] == [0, 2]
    assert counts.bad_rows == 2
    assert await bus.partitions(TOPIC + ".dlq") == 0


async def test_what_a_provider_raises_is_raised_after_its_events_are_published() -> None:
    class Failing(Listed):
        def batches(self) -> Iterator[EventBatch | BadRow]:
            yield batch(event(0))
            raise DatasetError("the file ends in the middle")

    bus = new_bus()
    with pytest.raises(DatasetError, match="in the middle"):
        await runner(bus, Failing([])).run()
    assert len(await published(bus)) == 1


async def test_the_bus_must_be_there_at_the_start() -> None:
    bus = new_bus()
    bus.cut()
    with pytest.raises(BusUnavailable):
        await runner(bus, Listed([])).run()


async def test_a_replay_ends_its_lanes_where_they_had_events() -> None:
    bus = new_bus()
    events = [event(i, f"S{i}", provider=f"p{i % 2}") for i in range(12)]
    lane = replay_lane("r1", force=False)
    await runner(bus, Listed([batch(*events)]), partitions=8, lane=lane, end_lanes=True).run()
    for partition, some in (await records(bus)).items():
        lanes = {f"replay/r1/{e.provider}" for e in events if partition_of(e.symbol, 8) == partition}
        decoded = EventDecoder().decode([r.value for r in some], [r.lane for r in some])
        assert {name for _, name in decoded.ends} == lanes
        assert all(r.lane in lanes for r in some)
        last_event = max((i for i, r in enumerate(some) if i not in {x for x, _ in decoded.ends}), default=-1)
        assert all(index > last_event for index, _ in decoded.ends), "the end is the last of its partition"


class Seen(ProducerObserver):
    """Waits for a count."""

    def __init__(self) -> None:
        self.moved = asyncio.Event()

    def published(self, counts: Counts, events: int) -> None:
        self.moved.set()

    def changed(self, counts: Counts) -> None:
        self.moved.set()


async def test_an_interrupted_replay_goes_on_to_the_end_of_its_window() -> None:
    bus, time = new_bus(), Time()
    r = runner(
        bus,
        Listed([batch(*(event(i) for i in range(500)))]),
        time,
        pace=EventTimePace(1.0),
        lane=replay_lane("r", force=True),
        end_lanes=True,
        finish_ns=60 * S,
    )
    task = asyncio.create_task(r.run())
    await until(lambda: r.counts.published > 70)
    r.stop()
    counts = await task
    got = await published(bus)
    assert [e.seq for e in got] == list(range(120)), "all of the second minute, nothing of the third"
    assert counts.published == 120
    some = (await records(bus))[0]
    assert EventDecoder().decode([some[-1].value]).ends == [(0, "replay!/r/p")]


async def test_a_second_stop_ends_a_replay_at_once() -> None:
    bus, time = new_bus(), Time()
    r = runner(
        bus,
        Listed([batch(*(event(i) for i in range(10))), batch(*(event(i) for i in range(10, 100)))]),
        time,
        pace=EventTimePace(1.0),
        lane=replay_lane("r", force=False),
        end_lanes=True,
        finish_ns=60 * S,
    )
    task = asyncio.create_task(r.run())
    await until(lambda: r.counts.published > 3)
    r.stop()
    r.stop()
    await task
    got = EventDecoder().decode([x.value for x in (await records(bus))[0]])
    assert len(got.batch) < 60
    assert got.ends == [], "a cut window is left to the clock"


async def test_a_replay_that_cannot_finish_its_window_does_not_end_its_lanes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though the bus comes back just then: an end would make a bar of the cut window."""
    monkeypatch.setattr(runner_module, "GRACE_S", 0.05)
    monkeypatch.setattr(runner_module, "FRAMED_SLICE", 10)
    bus = new_bus()
    r = runner(
        bus,
        Listed([batch(*(event(i) for i in range(10_000)))]),
        lane=replay_lane("r", force=False),
        end_lanes=True,
        finish_ns=3600 * S,
        memory_bytes=2000,
    )
    task = asyncio.create_task(r.run())
    await until(lambda: r.counts.published > 50)
    bus.cut()
    await until(lambda: r.counts.retries > 2)
    r.stop()
    await until(lambda: r.counts.unpublished)
    bus.heal()
    counts = await task
    got = EventDecoder().decode([x.value for x in (await records(bus))[0]])
    assert got.ends == []
    assert counts.unpublished > 0
    assert len(got.batch) == counts.published < 3600


async def test_a_stop_publishes_what_was_taken() -> None:
    bus, time = new_bus(), Time()
    r = runner(bus, SyntheticProvider(SyntheticSpec(("A",), 100.0, 0, 1)), time, pace=EventTimePace(1.0))
    task = asyncio.create_task(r.run())
    await until(lambda: r.counts.taken > 50)
    r.stop()
    counts = await task
    assert counts.taken == counts.published == len(await published(bus))
    assert counts.unpublished == 0


async def test_a_live_feed_is_gathered_for_the_linger() -> None:
    bus, time, feed = new_bus(), Time(), Feed()
    r = runner(bus, feed, time)
    for i in range(100):
        feed.given.put_nowait(batch(event(i)))
    task = asyncio.create_task(r.run())
    await until(lambda: r.counts.published == 100)
    assert r.counts.records <= 5, "not a record for each of a burst"
    feed.given.put_nowait(batch(event(100)))
    await until(lambda: r.counts.published == 101)
    feed.given.put_nowait(None)
    await task
    assert [e.seq for e in await published(bus)] == list(range(101))
    assert feed.closed


async def test_a_feed_that_fails_says_so() -> None:
    class Broken(Feed):
        async def batches(self) -> AsyncIterator[EventBatch | BadRow]:
            yield batch(event(0))
            raise DatasetError("the vendor hung up")

    bus = new_bus()
    with pytest.raises(DatasetError, match="hung up"):
        await runner(bus, Broken()).run()
    assert len(await published(bus)) == 1


async def test_an_async_source_that_can_wait() -> None:
    class Pages(Feed):
        taken = 0

        async def batches(self) -> AsyncIterator[EventBatch | BadRow]:
            for i in range(1000):
                self.taken += 1
                yield batch(event(i))

    bus, pages = new_bus(), Pages(can_wait=True)
    r = runner(bus, pages, pace=RatePace(10.0))
    task = asyncio.create_task(r.run())
    await until(lambda: r.counts.published >= 10)
    assert pages.taken < r.counts.taken + 20, "it is held back by the pace"
    r.stop()
    await task
    assert [e.seq for e in await published(bus)] == list(range(r.counts.taken))


async def test_an_outage_loses_nothing(tmp_path: Path) -> None:
    bus, time = new_bus(), Time()
    spool = Spool.open(tmp_path, "p", 1 << 24)
    provider = SyntheticProvider(SyntheticSpec(("A", "B"), 1000.0, 0, 1, 20_000))
    r = runner(bus, provider, time, pace=EventTimePace(1.0), spool=spool, partitions=2)
    task = asyncio.create_task(r.run())
    for begin, end in ((2000, 3000), (9000, 9001), (12_000, 15_000)):
        await until(lambda begin=begin: r.counts.taken > begin)
        bus.cut()
        await until(lambda end=end: r.counts.taken > end and r.counts.retries)
        bus.heal()
    counts = await task
    got = await published(bus)
    assert counts.spooled > 3000
    for symbol in "AB":
        assert [e.seq for e in got if e.symbol == symbol] == list(range(10_000)), "each once, in order"
    assert (counts.published, counts.unpublished, counts.spool_events) == (20_000, 0, 0)
    spool.close()


async def test_at_the_bound_a_source_that_can_wait_is_slowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "FRAMED_SLICE", 100)
    bus = new_bus()
    spool = Spool.open(tmp_path, "p", 50_000)
    given = 0

    class Counted(Listed):
        def batches(self) -> Iterator[EventBatch | BadRow]:
            nonlocal given
            for i in range(400):
                given += 1
                yield batch(*(event(i * 100 + k) for k in range(100)))

    r = runner(bus, Counted([]), spool=spool, memory_bytes=20_000)
    bus_away = asyncio.create_task(r.run())
    await until(lambda: r.counts.published > 0)
    bus.cut()
    before = -1
    while before != given:  # until it does not move on
        before = given
        for _ in range(300):
            await asyncio.sleep(0)
        await asyncio.to_thread(lambda: None)
    assert 10 < given < 400
    assert spool.bytes <= 50_000
    assert r.counts.dropped == 0
    bus.heal()
    counts = await bus_away
    assert [e.seq for e in await published(bus)] == list(range(40_000))
    assert (counts.published, counts.dropped) == (40_000, 0)
    spool.close()


async def test_at_the_bound_a_live_feed_is_dropped_and_counted(tmp_path: Path) -> None:
    bus, feed = new_bus(), Feed()
    spool = Spool.open(tmp_path, "feed", 200_000)
    r = runner(bus, feed, spool=spool, codec="json", memory_bytes=100_000)
    task = asyncio.create_task(r.run())
    feed.given.put_nowait(batch(event(0)))
    await until(lambda: r.counts.published == 1)
    bus.cut()
    sent = 1
    while r.counts.dropped < 5000:
        feed.given.put_nowait(batch(*(event(sent + k) for k in range(1000))))
        sent += 1000
        await until(lambda sent=sent: r.counts.taken >= sent or task.done())
    assert 130_000 < spool.bytes <= 200_000
    bus.heal()
    feed.given.put_nowait(None)
    counts = await task
    got = [e.seq for e in await published(bus)]
    assert len(got) == len(set(got)) == counts.published
    assert got == sorted(got)
    assert counts.published + counts.dropped == counts.taken == sent
    spool.close()


async def test_stopped_while_the_bus_is_away_leaves_a_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "GRACE_S", 0.05)
    bus, time = new_bus(), Time()
    spec = SyntheticSpec(("A",), 1000.0, 0, 1)
    first = Spool.open(tmp_path, "p", 1 << 24)
    r = runner(bus, SyntheticProvider(spec), time, pace=EventTimePace(1.0), spool=first)
    task = asyncio.create_task(r.run())
    await until(lambda: r.counts.published > 100)
    bus.cut()
    await until(lambda: r.counts.spool_events > 500)
    r.stop()
    counts = await task
    first.close()
    assert counts.published + counts.spool_events == counts.taken
    assert counts.unpublished == 0
    bus.heal()
    second = Spool.open(tmp_path, "p", 1 << 24)
    again = await runner(bus, Listed([]), spool=second).run()
    second.close()
    assert again.published == counts.spool_events
    assert [e.seq for e in await published(bus)] == list(range(counts.taken))


async def test_stopped_while_the_bus_is_away_without_a_spool_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner_module, "GRACE_S", 0.05)
    bus, time = new_bus(), Time()
    r = runner(bus, SyntheticProvider(SyntheticSpec(("A",), 1000.0, 0, 1)), time, pace=EventTimePace(1.0))
    task = asyncio.create_task(r.run())
    await until(lambda: r.counts.published > 100)
    bus.cut()
    await until(lambda: r.counts.retries > 2)
    r.stop()
    counts = await task
    bus.heal()
    assert counts.published == len(await published(bus))
    assert counts.published + counts.unpublished == counts.taken
    assert counts.unpublished > 0


async def test_a_cancelled_run_spools_what_it_had(tmp_path: Path) -> None:
    bus, time = new_bus(), Time()
    spool = Spool.open(tmp_path, "p", 1 << 24)
    provider = SyntheticProvider(SyntheticSpec(("A",), 1000.0, 0, 1))
    r = runner(bus, provider, time, pace=EventTimePace(1.0), spool=spool)
    task = asyncio.create_task(r.run())
    await until(lambda: r.counts.published > 100)
    bus.cut()
    await until(lambda: r.counts.retries > 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert r.counts.published + spool.events == r.counts.taken
    spool.close()


async def test_a_provider_writes_twenty_lines() -> None:
    """As docs/writing-a-provider.md has it: events one at a time, and nothing else."""

    class Coins:
        name = "coins"
        can_wait = True

        def batches(self) -> Iterator[EventBatch]:
            for i in range(3):
                yield batch(event(i, "COIN", provider=self.name))

    bus = new_bus()
    counts = await runner(bus, Coins()).run()
    assert counts.published == 3
    assert np.unique([e.symbol for e in await published(bus)]).tolist() == ["COIN"]
