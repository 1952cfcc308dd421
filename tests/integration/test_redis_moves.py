"""From one Redis to another (docs/migration.md): the server's own means keep ids, so all goes on where it was."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from market_data_core.events import StreamEvent
from market_data_pipeline.consumers.stats import RunStats
from market_data_pipeline.streaming.drivers import open_bus
from market_data_store import StoreClient
from tests.integration.pipeline import (
    SETTINGS,
    TOPIC,
    assert_equal,
    drain,
    publish,
    running,
    stored,
    tick,
    until,
)
from tests.oracle import recount
from tests.servers import redis_cluster
from tests.servers.redis import RedisServer
from tests.servers.redis import running as redis_running
from tests.servers.redis_cluster import RedisCluster

SYMBOLS = ("SPY", "AAPL", "MSFT", "TSLA", "IBM")
EVENTS = [tick(s, i * 40, 100 + i % 7, 1 + i % 5, i) for i in range(400) for s in SYMBOLS]
CUT = 1130
"""In the middle of windows."""


@pytest.fixture
def old() -> Iterator[RedisServer]:
    yield from redis_running("7")


@pytest.fixture
def new() -> Iterator[RedisServer]:
    yield from redis_running("7")


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    yield from redis_cluster.running(lambda: RedisCluster(3))


async def before(old: RedisServer, store: StoreClient) -> None:
    """Some bars are stored, some windows open, when all is stopped."""
    stats = RunStats()

    async def some_stored() -> bool:
        return stats.stored >= 20

    async with open_bus("redis", old.uri) as bus:
        await bus.ensure_topic(TOPIC, 3)
        await publish(bus, EVENTS[:CUT])
        async with running(bus, store, stats):
            await until(some_stored)


async def after(uri: str, store: StoreClient, again: list[StreamEvent]) -> None:
    """A producer that was not sure sends ``again``, and then what is left; every event counts once."""
    async with open_bus("redis", uri) as bus:
        await publish(bus, [*again, *EVENTS[CUT:]])
        stats = await drain(bus, store)
    assert stats.counts.duplicate >= len(again)
    bars = await stored(store)
    assert_equal(bars, recount(EVENTS, SETTINGS.windows.window_ns))
    assert {bar.revision for bar in bars.values()} == {1}


async def test_to_a_replica_that_is_promoted(old: RedisServer, new: RedisServer, store: StoreClient) -> None:
    await before(old, store)
    with new.client() as client:
        client.replicaof("127.0.0.1", old.port)

        async def in_sync() -> bool:
            told = client.info("replication")
            all_of_it = told["slave_repl_offset"] >= told["master_repl_offset"] > 0
            return bool(told["master_link_status"] == "up" and all_of_it)

        await until(in_sync)
        client.replicaof("NO", "ONE")
    old.kill9()
    await after(new.uri, store, EVENTS[CUT - 300 : CUT])


async def test_into_a_cluster(old: RedisServer, cluster: RedisCluster, store: StoreClient) -> None:
    await before(old, store)
    source = f"127.0.0.1:{old.port}"
    target = f"127.0.0.1:{cluster.nodes[0].port}"
    command = ["redis-cli", "--cluster", "import", target, "--cluster-from", source, "--cluster-copy"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    old.kill9()
    await after(cluster.uri, store, EVENTS[CUT - 300 : CUT])
