"""The scenarios of ``make chaos``, shortened: those of every bus one after another on one deployment, and the deaths of
brokers on a cluster of Kafka.

``MDP_CHAOS_SEED`` repeats the choices of a run that failed; its seed is in the failure.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest

from tests.chaos.report import table
from tests.chaos.run import run
from tests.chaos.scale import SHORT
from tests.chaos.scenarios import SCENARIOS
from tests.chaos.servers import Servers
from tests.servers.kafka import available

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(600)]


async def _all_right(servers: Servers, name: str, scenarios: list[str], logs: Path) -> None:
    seed = int(os.environ.get("MDP_CHAOS_SEED") or secrets.randbelow(2**31))
    print(f"MDP_CHAOS_SEED={seed}")
    async with servers:
        report = await run(name, servers, logs, SHORT, seed, print, scenarios=scenarios)
    table([report])
    assert not report.failures, f"seed {seed}: {report.failures}"


async def test_every_bar_and_signal_is_right_after_kills_stops_crashes_cuts_and_joins(tmp_path: Path) -> None:
    await _all_right(Servers(tmp_path, wired=True), "medley", list(SCENARIOS), tmp_path / "logs")


async def test_every_bar_is_right_after_each_of_three_brokers_died(tmp_path: Path) -> None:
    available()
    await _all_right(Servers(tmp_path, "kafka-cluster"), "brokers", ["brokers"], tmp_path / "logs")
