"""From a producer to bars on a cluster, and what an operator sees of it."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from market_data_core.batch import EventBatch
from market_data_pipeline.cli import app
from market_data_pipeline.producers.runner import ProducerRunner, RunnerOptions
from market_data_pipeline.producers.synthetic import SyntheticProvider, SyntheticSpec
from market_data_pipeline.streaming.bus import Bus
from market_data_pipeline.streaming.drivers import open_bus
from market_data_store import StoreClient
from tests.integration.pipeline import BASE, SETTINGS, TOPIC, assert_equal, drain, stored
from tests.oracle import recount
from tests.servers.redis_cluster import RedisCluster, running

PASSWORD = "s3cret-of-tests"  # noqa: S105
PARTITIONS = 4
SPEC = SyntheticSpec(
    symbols=tuple(f"S{i}" for i in range(12)),
    rate=500.0,
    start_ts=BASE,
    seed=11,
    limit=20_000,
    disorder_ms=300,
    late_ratio=0.01,
    late_ms=5000,
    duplicate_ratio=0.02,
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    yield from running(lambda: RedisCluster(3, password=PASSWORD))


@pytest.fixture
async def bus(cluster: RedisCluster) -> AsyncIterator[Bus]:
    async with open_bus("redis", cluster.uri) as bus:
        yield bus


async def test_bars_made_on_a_cluster_are_those_of_the_oracle(
    cluster: RedisCluster, bus: Bus, store: StoreClient
) -> None:
    events = EventBatch.concat(list(SyntheticProvider(SPEC).batches())).events()
    homes = {cluster.owner(f"{TOPIC}.{p}").port for p in range(PARTITIONS)}
    assert len(homes) > 1
    options = RunnerOptions(partitions=PARTITIONS, codec="json")
    counts = await ProducerRunner(bus, SyntheticProvider(SPEC), TOPIC, options).run()
    assert counts.published == len(events)
    (topic,) = await bus.status([TOPIC])
    assert (topic.partitions, topic.records) == (PARTITIONS, len(events))
    done = await drain(bus, store)
    assert done.events == SPEC.limit
    assert done.counts.duplicate == len(events) - SPEC.limit
    assert_equal(await stored(store), recount(events, SETTINGS.windows.window_ns))
    (topic,) = await bus.status([TOPIC])
    assert [part.pending + part.lag for part in topic.groups[0].partitions] == [0] * PARTITIONS


@pytest.fixture
def at_cluster(cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Commands of this process use the cluster, and no database."""
    monkeypatch.setenv("REDIS_URI", cluster.uri)
    monkeypatch.setenv("DATABASE_URL", "postgresql://u@127.0.0.1:1/d")
    monkeypatch.setenv("MDP_TELEMETRY__METRICS_PORT", "0")
    monkeypatch.chdir(tmp_path)
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:], logging.root.level = handlers, level


def mdp(capfd: pytest.CaptureFixture[str], *args: str) -> list[dict[str, object]]:
    """The rows that a command prints."""
    with pytest.raises(SystemExit):
        app.main([*args, "--json"])
    out, err = capfd.readouterr()
    assert PASSWORD not in out + err
    return [json.loads(line) for line in out.splitlines()]


def test_status_and_doctor_know_a_cluster(
    cluster: RedisCluster, at_cluster: None, capfd: pytest.CaptureFixture[str]
) -> None:
    mdp(capfd, "stream", "produce", "--provider", "synthetic", "--rate", "0", "--limit", "50")
    topics = {row["topic"]: row for row in mdp(capfd, "stream", "status")}
    assert topics["mdp.events"]["records"] == 1
    findings = mdp(capfd, "doctor")
    (whole,) = [row for row in findings if row["check"] == "redis cluster"]
    assert "16384 of 16384 slots served by 3 masters" in str(whole["found"])
    assert (whole["state"], "add a replica" in str(whole["fix"])) == ("warn", True)
    nodes = [row for row in findings if row["check"] == "redis"]
    assert [row["state"] for row in nodes] == ["ok"] * 3
    assert {str(row["found"]).rpartition(":")[2] for row in nodes} == {str(n.port) for n in cluster.nodes}
    # One of them is away: it is named, and the others are looked at all the same.
    dead = cluster.nodes[1]
    dead.kill9()
    findings = mdp(capfd, "doctor")
    dead.start()
    cluster.settled()
    (whole,) = [row for row in findings if row["check"] == "redis cluster"]
    assert whole["state"] == "fail"
    assert str(dead.port) in str(whole["found"])
    assert len([row for row in findings if row["check"] == "redis"]) == 2
