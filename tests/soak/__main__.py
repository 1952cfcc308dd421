"""``python -m tests.soak``: the soak in full, or ``--short``; a report in a folder, and an error when a promise is
broken."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import shutil
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.chaos.servers import Servers
from tests.soak import report
from tests.soak.findings import Findings
from tests.soak.plan import PER_MINUTE, SHORT, Plan
from tests.soak.soak import run


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--short", action="store_true", help="in about a minute; delays do not decide then")
    parser.add_argument(
        "--minutes", type=float, help="of the calm phase; each stress takes a fifth (default: 10)"
    )
    parser.add_argument("--rate", type=int, default=PER_MINUTE, help="events a minute (default: %(default)s)")
    parser.add_argument("--symbols", type=int, help="how many (default: 100)")
    parser.add_argument("--partitions", type=int, default=1, help="of each topic (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="the seed of a run to repeat")
    parser.add_argument("--out", type=Path, default=Path("soak-results"), help="folder of the report")
    arguments = parser.parse_args()
    for name in ("minutes", "rate", "symbols", "partitions"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            parser.error(f"--{name} must be more than 0 (got {value})")
    return arguments


def _plan(arguments: argparse.Namespace) -> Plan:
    seed = secrets.randbelow(2**31) if arguments.seed is None else arguments.seed
    plan = replace(SHORT if arguments.short else Plan(0), seed=seed, per_minute=arguments.rate)
    given = {name: getattr(arguments, name) for name in ("minutes", "symbols", "partitions")}
    return replace(plan, **{name: value for name, value in given.items() if value is not None})


async def _soak(plan: Plan, home: Path) -> Findings:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for which in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(which, task.cancel)  # so that everything started is ended
    async with Servers(home) as servers:
        return await run(servers, plan, home / "logs", lambda line: print(line, flush=True))


def main() -> int:
    arguments = _arguments()
    plan, out = _plan(arguments), arguments.out
    print(f"seed {plan.seed}", flush=True)
    home = Path(tempfile.mkdtemp(prefix="mdp-soak-"))
    try:
        found = asyncio.run(_soak(plan, home))
    except AssertionError as failure:
        print(f"the soak with seed {plan.seed} did not come to its end: {failure}", file=sys.stderr)
        print(f"logs and data are in {home}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        shutil.rmtree(home)
        return 130
    report.write(found, out)
    for r in found.requirements():
        verdict = {True: "met", False: "NOT MET", None: "not judged"}[r.met]
        print(f"{r.phase:>10}  {r.what}: {r.found} ({r.limit}){', a goal' if r.goal else ''}: {verdict}")
    for failure_text in found.failures:
        print(failure_text, file=sys.stderr)
    if found.passed:
        shutil.rmtree(home)
    else:
        print(f"failed with seed {plan.seed}; logs and data are in {home}", file=sys.stderr)
    print(f"{'passed' if found.passed else 'failed'}: {out / 'report.md'}")
    return int(not found.passed)


if __name__ == "__main__":
    sys.exit(main())
