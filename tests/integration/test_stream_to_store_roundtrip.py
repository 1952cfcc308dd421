"""Synthetic events through the producer, the bus and the micro-batcher into the store, and once more: idempotent."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from market_data_core.batch import EventBatch
from market_data_pipeline.producers.runner import ProducerRunner, RunnerOptions
from market_data_pipeline.producers.synthetic import SyntheticProvider, SyntheticSpec
from market_data_pipeline.streaming.bus import Bus
from market_data_pipeline.streaming.drivers import open_bus
from market_data_store import StoreClient
from tests.integration.pipeline import BASE, SECOND, SETTINGS, TOPIC, assert_equal, drain, stored
from tests.oracle import recount
from tests.servers.redis import RedisServer, running

_numbers = itertools.count()
WINDOW = SETTINGS.windows.window_ns
SPEC = SyntheticSpec(
    symbols=("SPY", "AAPL", "MSFT", "IBM"),
    rate=500.0,
    start_ts=BASE,
    seed=3,
    limit=20_000,
    disorder_ms=300,
    late_ratio=0.01,
    late_ms=5000,
    duplicate_ratio=0.02,
)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    yield from running("6.2")


@pytest.fixture(params=["redis", "memory"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    if request.param == "memory":
        async with open_bus("memory", f"memory://roundtrip{next(_numbers)}") as bus:
            yield bus
        return
    server: RedisServer = request.getfixturevalue("server")
    server.client().flushall()
    async with open_bus("redis", server.uri) as bus:
        yield bus


@pytest.mark.parametrize("codec", ["frame", "json", "msgpack"])
async def test_synthetic_to_store_is_idempotent(bus: Bus, store: StoreClient, codec: str) -> None:
    events = EventBatch.concat(list(SyntheticProvider(SPEC).batches())).events()
    want = recount(events, WINDOW)
    options = RunnerOptions(partitions=3, codec=codec)  # type: ignore[arg-type]

    counts = await ProducerRunner(bus, SyntheticProvider(SPEC), TOPIC, options).run()
    assert counts.published == len(events)
    first = await drain(bus, store)
    bars = await stored(store)
    assert_equal(bars, want)
    assert first.events == SPEC.limit
    assert first.counts.duplicate == len(events) - SPEC.limit
    assert (first.counts.late > 0, first.amended > 0) == (True, True)

    # The same events a second time: no row changes, not even a revision.
    await ProducerRunner(bus, SyntheticProvider(SPEC), TOPIC, options).run()
    second = await drain(bus, store)
    assert await stored(store) == bars
    assert (second.events, second.stored, second.amended) == (0, 0, 0)


async def test_what_was_forgotten_is_not_counted_again(bus: Bus, store: StoreClient) -> None:
    """The same file sent twice, hours of event time apart: the second time it is put aside, not added."""
    early = replace(SPEC, limit=2000, late_ratio=0.0, duplicate_ratio=0.0, disorder_ms=0)
    options = RunnerOptions(partitions=1)
    for hour in range(4):
        spec = replace(early, start_ts=BASE + hour * 3600 * SECOND)
        await ProducerRunner(bus, SyntheticProvider(spec), TOPIC, options).run()
        await drain(bus, store)
    bars = await stored(store)
    await ProducerRunner(bus, SyntheticProvider(early), TOPIC, options).run()
    stats = await drain(bus, store)
    assert await stored(store) == bars
    assert (stats.counts.expired, stats.dead_lettered, stats.amended) == (2000, 2000, 0)
