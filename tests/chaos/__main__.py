"""``python -m tests.chaos``: the scenarios in full, with a table and a JSON file of what was found."""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import shutil
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.chaos.buses import BUSES
from tests.chaos.report import Report, table
from tests.chaos.run import run
from tests.chaos.scale import FULL, SHORT, Scale
from tests.chaos.scenarios import ON_A_CLUSTER, SCENARIOS
from tests.chaos.servers import Servers

MEDLEY = "medley"
"""All scenarios of every bus, one after another on one deployment."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "scenarios",
        nargs="*",
        metavar="NAME",
        help=f"of {', '.join(SCENARIOS)}, {MEDLEY}, and of a cluster brokers (default: all but {MEDLEY})",
    )
    parser.add_argument("--bus", choices=BUSES, default="redis", help="what the events go over")
    parser.add_argument("--short", action="store_true", help="as short as in the tests")
    parser.add_argument("--seed", type=int, default=None, help="the seed of a run to repeat")
    parser.add_argument("--rate", type=int, default=None, help="events a second")
    parser.add_argument("--kills", type=int, default=None, help="kill -9 in the scenarios kills and signals")
    parser.add_argument("--results", type=Path, default=Path("chaos-results"), help="folder of the JSON")
    parser.add_argument("--keep", action="store_true", help="keep logs and data of what passed, too")
    arguments = parser.parse_args()
    known = ON_A_CLUSTER if arguments.bus == "kafka-cluster" else SCENARIOS
    if unknown := [name for name in arguments.scenarios if name not in (*known, MEDLEY)]:
        parser.error(
            f"there is no scenario {unknown[0]} on {arguments.bus}; use some of {', '.join(known)}, {MEDLEY}"
        )
    arguments.scenarios = arguments.scenarios or list(known)
    return arguments


async def _one(name: str, bus: str, scale: Scale, seed: int, keep: bool) -> Report:
    """A scenario on servers of its own. What it leaves is kept when it fails."""
    home = Path(tempfile.mkdtemp(prefix=f"mdp-chaos-{name}-"))
    report = Report(name, seed)
    try:
        chosen = list(SCENARIOS) if name == MEDLEY else [name]
        async with Servers(home, bus, wired="cuts" in chosen) as servers:
            report = await run(
                name,
                servers,
                home / "logs",
                scale,
                seed,
                lambda line: print(line, flush=True),
                scenarios=chosen,
            )
    except AssertionError as failure:
        report.failures.append(str(failure))
    if report.failures:
        print(f"{name} failed with seed {seed}; logs and data are in {home}", file=sys.stderr)
        for failure_text in report.failures:
            print(failure_text, file=sys.stderr)
    elif keep:
        print(f"logs and data of {name} are in {home}", file=sys.stderr)
    else:
        shutil.rmtree(home)
    return report


async def _all(arguments: argparse.Namespace) -> int:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for which in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(which, task.cancel)  # so that everything started is ended
    scale = SHORT if arguments.short else FULL
    if arguments.rate is not None:
        scale = replace(scale, rate=arguments.rate)
    if arguments.kills is not None:
        scale = replace(scale, kills=arguments.kills, signals=replace(scale.signals, kills=arguments.kills))
    seed = secrets.randbelow(2**31) if arguments.seed is None else arguments.seed
    reports = []
    for name in arguments.scenarios:
        reports.append(await _one(name, arguments.bus, scale, seed, arguments.keep))
        arguments.results.mkdir(parents=True, exist_ok=True)
        found = {"seed": seed, "bus": arguments.bus, "scenarios": [r.as_dict() for r in reports]}
        (arguments.results / "chaos.json").write_text(json.dumps(found, indent=2))
    table(reports)
    return int(any(r.failures for r in reports))


if __name__ == "__main__":
    sys.exit(asyncio.run(_all(_arguments())))
