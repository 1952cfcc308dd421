"""Run the contract on every bus and print what each one keeps: python -m tests.conformance [--write PAGE]."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import pytest
import typer

from tests.conformance.delivery import DeliverySuite
from tests.conformance.ownership import OwnershipSuite
from tests.conformance.retention import RetentionSuite
from tests.conformance.static_members import StaticMembersSuite

FOLDER = Path(__file__).parent
BUSES = {
    "Memory": "test_memory.py",
    "Redis 6.2 and 7": "test_redis.py",
    "Redis Cluster": "test_redis_cluster.py",
    "Kafka": "test_kafka.py",
}
SUITES = {
    "Delivery": DeliverySuite,
    "Ownership": OwnershipSuite,
    "Retention": RetentionSuite,
    "Members that keep their name": StaticMembersSuite,
}
HEAD = """\
# The contract of a bus

What `streaming/bus.py` promises, one behaviour a line, and what keeps it. The same tests run on every bus, against real
servers; `python -m tests.conformance --write docs/bus-contract.md` runs them and writes this page.

"yes": the test passed. "-": it has no meaning there. How to add a bus: [writing-a-driver.md](writing-a-driver.md).
"""


def behaviours(suite: type) -> list[str]:
    """The tests of a suite, in the order of its file."""
    return [name for name in vars(suite) if name.startswith("test_")]


def in_words(test: str) -> str:
    text = test.removeprefix("test_").replace("_", " ")
    return text[0].upper() + text[1:]


class Results:
    """Of each test of each file: passed, failed or skipped, with all its parameters."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str], set[str]] = defaultdict(set)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            file, _, test = report.nodeid.partition("::")
            name = test.rpartition("::")[2].partition("[")[0]
            self.seen[Path(file).name, name].add(report.outcome)

    def cell(self, file: str, name: str) -> str:
        outcomes = self.seen[file, name]
        if "failed" in outcomes:
            return "**failed**"
        return "yes" if "passed" in outcomes else "-" if outcomes else "not run"


def page(results: Results) -> str:
    lines = [HEAD]
    for title, suite in SUITES.items():
        lines += [f"| {title} | {' | '.join(BUSES)} |", "|---" * (1 + len(BUSES)) + "|"]
        for name in behaviours(suite):
            cells = (results.cell(file, name) for file in BUSES.values())
            lines.append(f"| {in_words(name)} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main(write: Annotated[Path | None, typer.Option(help="The page to write.")] = None) -> None:
    """Run the contract on every bus."""
    results = Results()
    files = [str(FOLDER / file) for file in BUSES.values()]
    code = pytest.main(["-q", "--no-header", *files], plugins=[results])
    text = page(results)
    if write is None:
        typer.echo(text)
    elif code == pytest.ExitCode.OK:
        write.write_text(text, encoding="utf-8")
    sys.exit(code)


if __name__ == "__main__":
    typer.run(main)
