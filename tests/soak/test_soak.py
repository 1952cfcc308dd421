"""A soak in little: everything that it does, and what is right; how fast it was is not asked of a busy machine.

``MDP_SOAK_SEED`` repeats the choices of a run that failed; its seed is in the failure.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.servers import Servers
from tests.soak import report
from tests.soak.pictures import PICTURES
from tests.soak.plan import SHORT
from tests.soak.soak import run

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_nothing_is_lost_or_doubled_and_there_is_a_report(tmp_path: Path) -> None:
    seed = int(os.environ.get("MDP_SOAK_SEED") or secrets.randbelow(2**31))
    print(f"MDP_SOAK_SEED={seed}")
    plan = replace(
        SHORT,
        seed=seed,
        minutes=0.1,
        symbols=12,
        stress=(10,),
        stress_least_s=3.0,
        replayed_s=2.0,
        blows=("kill -9 micro-batch", "kill -9 infer", "PostgreSQL away", "replay"),
    )
    async with Servers(tmp_path / "home") as servers:
        found = await run(servers, plan, tmp_path / "logs", print)
    assert found.passed, (seed, found.failures, [r for r in found.requirements() if r.met is False])

    assert [count.phase for count in found.counts] == [
        name for name in ("calm", "trouble", "stress10") for _ in "es"
    ]
    assert all(count.total for count in found.counts if count.what == "events in bars")
    assert sum(count.total for count in found.counts if count.what == "signals")
    assert found.harm.blows == dict.fromkeys(plan.blows, 1)
    for step in ("on the bus", "committed", "published"):
        for phase in ("calm", "stress10"):
            delay = found.spread(phase, step)
            assert delay is not None
            assert delay.p50 > -1  # ids of records are cut to whole ms

    out = tmp_path / "out"
    report.write(found, out)
    written = json.loads((out / "report.json").read_text())
    assert written["passed"] is True
    assert {r["met"] for r in written["requirements"]} == {True, None}
    page = (out / "report.md").read_text()
    for name in PICTURES.values():
        assert f"({name})" in page
        assert (out / name).read_bytes().startswith(PNG)
