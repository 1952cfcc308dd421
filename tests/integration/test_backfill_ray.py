"""``mdp backfill`` on a Ray cluster of two nodes, one of which dies midway."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

from tests.extras import without
from tests.integration.backfills import Command, until
from tests.integration.test_backfill import (
    DATA,
    MINUTE,
    TICKS,
    configured,
    days_of_files,
    lean,
    stream,
    stream_ticks,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    without("ray"),
    # Ray leaves pipes and sockets of its processes to the collector, and warns of its own plans.
    pytest.mark.filterwarnings("ignore"),
]
WORKERS = 2


class Nodes:
    """A head and one more node, of a CPU each, on this machine."""

    def __init__(self) -> None:
        utils: Any = import_module("ray.cluster_utils")
        quiet = {"include_dashboard": False}
        self._cluster = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **quiet})
        self._second = self._cluster.add_node(num_cpus=1)
        self._cluster.wait_for_nodes()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def kill_second(self) -> None:
        """As when a machine loses its power."""
        self._cluster.remove_node(self._second, allow_graceful=False)

    def stop(self) -> None:
        self._cluster.shutdown()


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    started = Nodes()
    try:
        yield started
    finally:
        started.stop()


def test_a_node_that_dies_midway(command: Command, streamed: Command, nodes: Nodes) -> None:
    days_of_files(command.folder, days=16)
    configured(command)
    asyncio.run(stream_ticks(command.folder, streamed.url))
    on_ray = (*TICKS, "--engine", "ray", "--ray-address", nodes.address)
    process = command.start(*on_ray)
    with command.held(after=6):
        assert command.living_owners() == WORKERS
        nodes.kill_second()
        until(lambda: command.living_owners() < WORKERS)
    summary = command.end(process)
    assert (summary["tasks"], summary["failed"], summary["done"] + summary["skipped"]) == (48, 0, 48)
    assert (summary["workers"], summary["workers_lost"]) == (WORKERS, 1)
    assert command.rows() == streamed.rows()
    again = command.run(*on_ray)
    assert (again["skipped"], again["done"], again["events"]) == (48, 0, 0)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real market data at {DATA}; set MDP_DATA")
def test_real_days_of_which_a_node_dies_with_its_own(
    command: Command, streamed: Command, nodes: Nodes
) -> None:
    """Then those of Ray, of the stream and of this machine alone are one table."""
    asyncio.run(stream(streamed.url, lean(sorted(DATA.glob("tick_*_trade.zip"))), MINUTE))
    given = ("--dataset", f"{DATA}/tick_*_trade.zip", "--preset", "lean", "--window", "1m", "--workers", "2")
    on_ray = (*given, "--engine", "ray", "--ray-address", nodes.address)
    process = command.start(*on_ray)
    with command.held(after=0):
        nodes.kill_second()
        until(lambda: command.living_owners() < WORKERS)
    summary = command.end(process)
    assert (summary["tasks"], summary["done"], summary["failed"]) == (3, 3, 0)
    assert (summary["events"], summary["behind_horizon"], summary["workers_lost"]) == (308_275, 0, 1)
    rows = command.rows()
    assert rows == streamed.rows()
    before = command.versions()
    again = command.run(*on_ray)
    assert (again["skipped"], again["done"], again["events"]) == (3, 0, 0)
    local = command.run(*given, "--no-resume")
    assert (local["done"], local["bars_inserted"], local["bars_unchanged"]) == (3, 0, len(rows))
    assert command.versions() == before, "rows of the other engine differ"


def test_a_poison_file_and_an_address_without_a_cluster(command: Command, nodes: Nodes) -> None:
    days_of_files(command.folder, days=2)
    configured(command)
    (command.folder / "1.csv").write_bytes(b"time,symbol,price,size,seq\nnoon,S1,1,1,1\n")
    summary = command.run(*TICKS, "--engine", "ray", "--ray-address", nodes.address, code=1)
    assert (summary["done"], summary["failed"]) == (3, 1)
    assert summary["failures"][0]["reason"].startswith(f"{command.folder}/1.csv:2 is no event")
