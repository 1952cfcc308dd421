"""Workers on machines of their own, as far as the network goes: one is cut off, the others take over, it comes back."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from market_data_core.errors import BusUnavailable
from market_data_core.events import StreamEvent
from market_data_pipeline.streaming.bus import Bus, GroupStatus
from market_data_pipeline.streaming.drivers import open_bus
from market_data_store import StoreClient, schema
from tests.integration.conftest import missing
from tests.integration.pipeline import assert_equal, publish, stored, until
from tests.integration.walk import WINDOW, walk
from tests.oracle import recount
from tests.servers import ServerMissing
from tests.servers.kafka import KafkaServer
from tests.servers.namespaces import Network
from tests.servers.postgres import PostgresServer

PARTITIONS: Final = 6
LEASE_MS: Final = 3000
PATIENCE: Final = 120.0
TOPIC, GROUP = "mdp.events", "mdp-consumers"
EVENTS: Final = walk(900, symbols=18, every_ms=50)
THIRD: Final = 305


@pytest.fixture
def network() -> Iterator[Network]:
    """The test runs on the hub of it. Who may make no namespaces skips, in CI too: it is no package that is missing."""
    with ExitStack() as stack:
        try:
            made = stack.enter_context(Network(3))
        except ServerMissing as reason:
            pytest.skip(str(reason))
        stack.enter_context(made.entered())
        yield made


class Worker:
    """A micro-batcher in a process and a namespace of its own."""

    def __init__(self, network: Network, host: int, environ: dict[str, str], *arguments: str) -> None:
        mdp = [sys.executable, "-m", "market_data_pipeline.cli.app", "stream", "micro-batch", "--json"]
        self.process = subprocess.Popen(
            network.on(host, [*mdp, *arguments]),
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ended(self) -> dict[str, int]:
        """What it did, as it says itself when it has ended."""
        out, _ = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0
        summary: dict[str, int] = json.loads(out.splitlines()[-1])
        return summary

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.communicate()


async def owned(bus: Bus) -> tuple[dict[int, int], int]:
    """How many partitions each process owns, by its pid, and how many records are to be read."""
    try:
        (status,) = await bus.status([TOPIC])
    except BusUnavailable:
        return {}, 0  # the broker is new, and has no coordinator yet
    (group,) = [g for g in status.groups if g.group == GROUP] or [GroupStatus(GROUP, [], [])]
    pids = [int(p.owner.split("-")[-2]) for p in group.partitions if p.owner is not None]
    return dict(Counter(pids)), sum(p.lag for p in group.partitions)


async def feed(bus: Bus, events: Sequence[StreamEvent]) -> None:
    """One record after the other, as a producer in real time."""
    for event in events:
        await publish(bus, [event], TOPIC)


async def test_one_of_three_machines_is_cut_off(network: Network, tmp_path: Path) -> None:
    with ExitStack() as stack:
        try:
            postgres = stack.enter_context(PostgresServer("18", host=network.hub))
            kafka = stack.enter_context(KafkaServer(host=network.hub))
        except ServerMissing as reason:
            missing(reason)
        database = postgres.create_database("mdp")
        schema.upgrade(database)
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("MDP_", "REDIS_"))}
        environ = keep | {
            "MDP_BUS__TYPE": "kafka",
            "MDP_BUS__REDIS__LEASE_MS": str(LEASE_MS),
            "MDP_HOME": str(tmp_path),
            "MDP_TELEMETRY__METRICS_PORT": "0",
            "KAFKA_BOOTSTRAP": kafka.bootstrap,
            "DATABASE_URL": database,
        }
        async with open_bus("kafka", kafka.bootstrap) as bus, await StoreClient.connect(database) as store:
            await bus.ensure_topic(TOPIC, PARTITIONS)
            await publish(bus, EVENTS[:THIRD], TOPIC)
            workers = [stack.enter_context(Worker(network, host, environ)) for host in range(3)]
            pids = [worker.process.pid for worker in workers]
            even, without_it = dict.fromkeys(pids, 2), dict.fromkeys(pids[1:], 3)

            async def everybody() -> bool:
                return await owned(bus) == (even, 0)

            async def the_others() -> bool:
                return await owned(bus) == (without_it, 0)

            await until(everybody, PATIENCE)
            # It is cut off while it reads: what it has read and not committed, the others read again.
            feeding = asyncio.create_task(feed(bus, EVENTS[THIRD : 2 * THIRD]))
            await publish(bus, EVENTS[THIRD : THIRD + 30], TOPIC)
            await asyncio.to_thread(network.cut, 0)
            await feeding
            await until(the_others, PATIENCE)
            network.heal(0)
            await publish(bus, EVENTS[2 * THIRD :], TOPIC)
            await until(everybody, PATIENCE)
            for worker in workers:
                worker.process.terminate()
            summaries = [worker.ended() for worker in workers]
            with Worker(network, 1, environ, "--until-idle", "1s") as last:
                assert last.ended()["dead_lettered"] == 0
            assert_equal(await stored(store), recount(EVENTS, WINDOW))
    # The one that was cut off may have had a commit on its way, which came to a newer epoch; no other was fenced.
    assert [s["fenced"] for s in summaries[1:]] == [0, 0]
