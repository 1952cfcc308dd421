"""Rules written to do harm: each is refused, at once, and nothing of it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.unit.hostile import written

ROOT: Final = Path(__file__).resolve().parents[2]
FILE: Final = Path(__file__).with_name("hostile_expressions.yaml")
HOSTILE: Final[dict[str, list[Any]]] = yaml.safe_load(FILE.read_text("utf-8"))
LIMIT_MS: Final = {"conditions": 50, "templates": 50, "files": 500}
"""PyYAML reads a thousand lines in 50 ms; what is looked for are files that take minutes."""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What came of each, in a process that was watched."""
    folder = tmp_path_factory.mktemp("hostile")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.unit.hostile", str(FILE)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == [], "nothing was written"
    found: dict[str, list[Any]] = json.loads(done.stdout)
    return found


def test_the_hook_sees_what_runs(outcome: dict[str, list[Any]]) -> None:
    assert {"compile", "open"} <= set(outcome["control"])


def test_there_are_enough_of_them_and_no_two_are_the_same() -> None:
    texts = [written(entry) for entry in HOSTILE["conditions"]]
    assert len(set(texts)) == len(texts) >= 200


def _cases() -> list[Any]:
    return [
        pytest.param(kind, i, id=f"{kind}-{i}-{written(entry)[:30]!a}")
        for kind, entries in HOSTILE.items()
        for i, entry in enumerate(entries)
    ]


@pytest.mark.parametrize(("kind", "i"), _cases())
def test_it_is_refused_at_once_and_nothing_runs(outcome: dict[str, list[Any]], kind: str, i: int) -> None:
    found = outcome[kind][i]
    assert found["error"] == ("ConfigError" if kind == "files" else "ExpressionError"), found
    assert found["events"] == []
    assert found["ms"] < LIMIT_MS[kind]
    assert 0 < len(found["says"]) < 400
    assert "\n" not in found["says"]
    if kind != "files":
        assert 1 <= found["column"] <= len(written(HOSTILE[kind][i])) + 1
