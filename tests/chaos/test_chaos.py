"""The scenarios of ``make chaos``, shortened, one after another on one deployment.

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


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_every_bar_and_signal_is_right_after_kills_stops_crashes_cuts_and_joins(tmp_path: Path) -> None:
    seed = int(os.environ.get("MDP_CHAOS_SEED") or secrets.randbelow(2**31))
    print(f"MDP_CHAOS_SEED={seed}")
    async with Servers(tmp_path, wired=True) as servers:
        report = await run(
            "medley", servers, tmp_path / "logs", SHORT, seed, print, scenarios=list(SCENARIOS)
        )
    table([report])
    assert not report.failures, f"seed {seed}: {report.failures}"
