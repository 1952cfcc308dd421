"""What metrics and readiness say while the database is away, and when it is back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from structlog.contextvars import get_contextvars

from market_data_pipeline.consumers.stats import Observers, RunStats
from market_data_pipeline.streaming.redis_bus import RedisBus
from market_data_pipeline.telemetry import Health, Membership, Metrics, MetricsObserver, watching
from market_data_store import StoreClient
from tests.integration.pipeline import TOPIC, batcher, publish, tick, until
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer, running
from tests.servers.wire import Wire
from tests.unit.test_telemetry import samples


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    yield from running("6.2")


@pytest.fixture
async def wire(postgres: PostgresServer) -> AsyncIterator[Wire]:
    async with Wire(postgres.port) as proxy:
        yield proxy


class Noting(RunStats):
    """Which partition the log's context named at each retry."""

    def __init__(self) -> None:
        super().__init__()
        self.named: list[object] = []

    def retrying(self, what: str, error: BaseException) -> None:
        super().retrying(what, error)
        self.named.append(get_contextvars().get("partition"))


async def test_a_store_that_is_away(
    redis: RedisServer, postgres: PostgresServer, database: str, wire: Wire
) -> None:
    metrics, health, stats, stop = Metrics(), Health(), Noting(), asyncio.Event()
    through = database.replace(f":{postgres.port}/", f":{wire.port}/")
    me = Membership(TOPIC, "g", "m")

    def total(name: str, **labels: str) -> float:
        found = samples(metrics).get(name, {})
        return sum(v for key, v in found.items() if labels.items() <= dict(key).items())

    async def ready() -> bool:
        return health.ready

    async def failed() -> bool:
        return total("errors_total", component="store") >= 1 and not health.ready

    async with RedisBus(redis.uri) as bus, await StoreClient.connect(through, pool_size=2) as store:
        consumer = batcher(bus, store, Observers(stats, MetricsObserver(metrics, TOPIC, 2000)))
        await bus.ensure_topic(TOPIC, 1)
        async with watching(metrics, health, bus, store.ping, [me], period_s=0.05):
            task = asyncio.create_task(consumer.run(stop))
            await until(ready)
            wire.cut(refuse=True)
            await publish(bus, [tick("SPY", 0, 1.0, 1.0, 1), tick("SPY", 60_000, 1.0, 1.0, 2)])
            await until(failed)
            assert health.report()["bus"] == "ok"
            assert "check that it runs" in health.report()["store"]
            assert total("retries_total", component="store") == total("errors_total", component="store")
            assert total("microbatch_flush_rows") == 0
            wire.mend()

            async def stored() -> bool:
                return total("microbatch_flush_rows") >= 1 and health.ready

            await until(stored, 30)
            stop.set()
            await task
    assert total("microbatch_flush_rows") == stats.stored
    assert total("microbatch_events_total", result="accepted") == stats.counts.accepted == 2
    assert set(stats.named) == {0}
    assert total("event_loop_delay_seconds_count") > 0
    assert total("stream_owned_partitions") == 0
