"""The scenarios of ``make chaos``, shortened, on one Redis and one PostgreSQL.

``MDP_CHAOS_SEED`` repeats the choices of a run that failed; its seed is in the failure.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest

from tests.chaos.report import table
from tests.chaos.scenarios import SCENARIOS, SHORT, run
from tests.chaos.servers import Servers

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the servers of all scenarios share, so that the database is made once."""
    return tmp_path_factory.mktemp("chaos")


@pytest.mark.parametrize("name", SCENARIOS)
async def test_every_bar_is_right_after(name: str, home: Path) -> None:
    seed = int(os.environ.get("MDP_CHAOS_SEED") or secrets.randbelow(2**31))
    async with Servers(home) as servers:
        report = await run(name, servers, home / "logs" / name, SHORT, seed, print)
    table([report])
    assert not report.failures, f"seed {seed}: {report.failures}"
