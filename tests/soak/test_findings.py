"""What breaks a promise, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.soak.delays import AFTER_END, STEPS
from tests.soak.findings import OURS, Count, Findings
from tests.soak.plan import GROUPS, WINDOW_NS, Plan
from tests.soak.stand import Span
from tests.soak.trouble import Harm

PLAN = Plan(1, minutes=10)
BEGAN = 1_700_000_000.0
Change = Callable[[dict[str, Any]], None]


def findings(change: Change = lambda figures: None) -> Findings:
    """A good soak of ten calm minutes, with one thing changed in its figures."""
    calm = PLAN.phases[0]
    length = calm.seconds or 0.0
    at = BEGAN + np.arange(0, length, 0.5)
    wave = 40 + 30 * (at % 2)
    made = round(calm.rate * length)
    figures: dict[str, Any] = {
        "delay": np.full(300, 30.0),
        "pending": wave,
        "memory": np.full(len(at), 110.0) + np.sin(at),
        "produced": {"published": made, "seconds": length},
        "lost": 0,
        "rewritten": [],
    }
    change(figures)
    ends = int(BEGAN * 1e9) // WINDOW_NS * WINDOW_NS + WINDOW_NS * np.arange(300)
    windows = pl.DataFrame(
        {"provider": "calm", "partition": 0, "end": ends, "due": ends + 500_000_000}
        | dict.fromkeys(STEPS, figures["delay"])
        | {AFTER_END: figures["delay"] + 500}
    )
    usage = pl.concat(
        pl.DataFrame({"at": at, "process": name, "pid": 1, "rss": figures["memory"], "cpu": at, "share": 0.1})
        for name in OURS
    )
    backlog = pl.concat(
        pl.DataFrame({"at": at, "group": group, "lag": 0, "lag_ms": 5, "pending": figures["pending"]})
        for group in GROUPS.values()
    )
    span = Span(calm, BEGAN, BEGAN + length, BEGAN + length + 2, figures["produced"])
    count = Count("events in bars", "calm", made, figures["lost"], 0, 0)
    harm = Harm(rewritten=figures["rewritten"])
    return Findings(PLAN, [span], harm, [], windows, usage, backlog, [count], {"cores": 2})


def _set(name: str, value: Any) -> Change:
    return lambda figures: figures.__setitem__(name, value)


def _rising(name: str, by: float) -> Change:
    return lambda figures: figures.__setitem__(name, figures[name] + np.linspace(0, by, len(figures[name])))


def broken(found: Findings) -> set[str]:
    return {r.what for r in found.requirements() if r.met is False}


def test_a_good_soak_passes_and_everything_was_judged() -> None:
    found = findings()
    assert found.passed
    assert {r.met for r in found.requirements()} == {True}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (_set("delay", np.where(np.arange(300) % 10, 30.0, 3100.0)), "p95 to bars on the bus"),
        (_set("delay", np.full(300, 2600.0)), "p95 from a window's end to its commit"),
        (_rising("pending", 60.0), "backlog of mdp-consumers"),
        (_rising("memory", 9.0), "memory of micro-batch"),
        (_set("lost", 1), "events in bars: lost"),
        (_set("rewritten", ["signals"]), "tables that a replay changed"),
        (_set("produced", {"published": 400_000, "seconds": 600.0}), "events/min"),
    ],
    ids=["slow", "slow after the end", "backlog", "memory", "lost", "rewritten", "rate"],
)
def test_a_broken_promise_fails_it(change: Change, what: str) -> None:
    found = findings(change)
    assert what in broken(found)
    assert not found.passed


def test_a_missed_goal_fails_nothing() -> None:
    found = findings(_set("delay", np.full(300, 60.0)))
    assert broken(found) == {"p99 to bars on the bus, which follows the commit"}
    assert found.passed


def test_a_failure_that_is_no_figure_fails_it_too() -> None:
    found = findings()
    found.failures.append("the producer kept events")
    assert not found.passed


def test_a_short_soak_is_not_judged_by_its_speed() -> None:
    found = findings(_set("delay", np.full(300, 9999.0)))
    found.plan = replace(PLAN, speed=False)
    assert found.passed
    found = findings(_set("lost", 1))
    found.plan = replace(PLAN, speed=False)
    assert not found.passed


def test_delays_of_the_trouble_are_not_mixed_with_the_calm_ones() -> None:
    found = findings()
    late = found.windows.with_columns(pl.lit("trouble").alias("provider"), published=pl.lit(20_000.0))
    found.windows = pl.concat([found.windows, late])
    spread = found.spread("calm", "published")
    assert spread is not None
    assert spread.max == 30.0
    assert found.passed
