"""The page on operations: every alert has a runbook, and every failure it describes a test that exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import Final

import pytest
import yaml

from tests.docs.pages import ROOT

PAGE: Final = (ROOT / "docs" / "operations.md").read_text("utf-8")
_TEST: Final = re.compile(r"^- `(?P<file>tests/[\w/]+\.py)::(?P<name>test_\w+)`$", re.MULTILINE)
WANTED: Final = (
    *("worker dies", "taken for dead", "lease", "Redis is down", "lost its data", "no memory", "Kafka"),
    *("PostgreSQL is down", "network", "cut off from Redis", "producer dies", "spool or its disk", "poison"),
    *("refuses", "Late", "Event time", "Clocks", "Duplicates", "hot symbol", "slow consumer", "schema"),
    *("version of an event", "model is slow", "rules file", "embedded services is full"),
)
"""What a stream can suffer: the scenarios of section 11 of the first design, and those met since."""


def _scenarios() -> dict[str, str]:
    """The text of each failure, by its heading."""
    _, _, part = PAGE.partition("\n## When something fails\n")
    return {
        heading.strip(): text
        for heading, _, text in (section.partition("\n") for section in part.split("\n### ")[1:])
    }


SCENARIOS: Final = _scenarios()


@cache
def _tests(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_failure_is_told_with_what_is_seen_and_done_and_is_tested(scenario: str) -> None:
    text = SCENARIOS[scenario]
    named = _TEST.findall(text)
    assert named, "name a test that holds it"
    assert len(named) == text.count("tests/"), "a test is a line of its own, as - `FILE::NAME`"
    missing = [f"{file}::{name}" for file, name in named if name not in _tests(file)]
    assert missing == []
    assert "Do:" in text


@pytest.mark.parametrize("words", WANTED)
def test_nothing_that_can_fail_is_left_out(words: str) -> None:
    assert len([scenario for scenario in SCENARIOS if words in scenario]) == 1


def test_what_is_seen_exists() -> None:
    rules = yaml.safe_load((ROOT / "grafana" / "prometheus" / "alerts.yml").read_text("utf-8"))
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    assert {*re.findall(r"\bMdp[A-Z]\w+", PAGE)} == alerts
    assert {*re.findall(r"^### (Mdp\w+)", PAGE, re.MULTILINE)} == alerts
