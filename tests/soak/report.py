"""The report as a page for people and as JSON; the pictures are :mod:`tests.soak.pictures`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from tests.soak.delays import AFTER_END, STEPS
from tests.soak.findings import Findings
from tests.soak.pictures import PICTURES, draw
from tests.soak.sampler import MACHINE
from tests.soak.stand import Span

_MET = {True: "yes", False: "**no**", None: "not judged"}


def write(found: Findings, folder: Path) -> None:
    """``report.md``, ``report.json``, the pictures, and what they were drawn from as CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(as_dict(found), indent=1) + "\n", encoding="utf-8")
    for name, frame in (("windows", found.windows), ("usage", found.usage), ("backlog", found.backlog)):
        frame.write_csv(folder / f"{name}.csv")
    draw(found, folder)
    (folder / "report.md").write_text(page(found), encoding="utf-8")


def as_dict(found: Findings) -> dict[str, Any]:
    """All figures, as plain values."""
    return {
        "passed": found.passed,
        "failures": found.failures,
        "plan": asdict(found.plan),
        "machine": found.machine,
        "requirements": [asdict(r) for r in found.requirements()],
        "phases": [_phase(found, span) for span in found.spans],
        "trouble": asdict(found.harm),
        "marks": [{"at": at, "what": what} for at, what in found.marks],
        "counts": [asdict(c) for c in found.counts],
    }


def _phase(found: Findings, span: Span) -> dict[str, Any]:
    name = span.phase.name
    delays = {step: found.spread(name, step) for step in (*STEPS, AFTER_END)}
    return {
        "name": name,
        "rate": span.phase.rate,
        "began": span.began,
        "seconds": round(span.seconds, 1),
        "drained_s": round(span.drained - span.ended, 2),
        "produced": span.produced,
        "delay_ms": {step: None if s is None else asdict(s) for step, s in delays.items()},
        "pending_slope": {g: None if t is None else asdict(t) for g, t in found.pending(span).items()},
        "memory_slope_mb": {p: None if t is None else asdict(t) for p, t in found.memory(span).items()},
        "rolling_lag_ms": found.rolling_lag_ms(span),
        "cpu_share": shares(found, span),
    }


def shares(found: Findings, span: Span) -> dict[str, float]:
    """The mean share of one core of everybody in a phase."""
    rows = found.during(found.usage, span).group_by("process").agg(pl.col("share").mean()).sort("process")
    return {name: round(share, 4) for name, share in rows.rows() if share is not None}


def page(found: Findings) -> str:
    """The Markdown of it."""
    plan, machine = found.plan, found.machine
    parts = [
        "# Soak",
        f"{'Passed' if found.passed else '**Failed**'}. Seed {plan.seed}, {plan.symbols} symbols, windows of 2 s, "
        f"{plan.partitions} partition{'s' if plan.partitions > 1 else ''}. {machine['cpu']}, {machine['cores']} cores, "
        f"load {machine['load_before']} before; Python {machine['python']}, Redis {machine['redis']}, "
        f"PostgreSQL {machine['postgres']}; {machine['at']}.",
        *(f"- {failure}" for failure in found.failures),
        "## What was promised",
        _table(
            ("", "phase", "found", "limit", "met"),
            (
                (r.what, r.phase, r.found, r.limit, ("goal: " if r.goal else "") + _MET[r.met])
                for r in found.requirements()
            ),
        ),
        "## Delays",
        "In ms, from when a window could first be closed: when the event that moved the watermark past its end arrived "
        "at the producer. The moment of being durable lies between committed and on the bus. Those of the trouble "
        "stand apart: with kills and an absent store they say how long those last.",
        _table(("phase", "", "windows", "p50", "p95", "p99", "max"), _delays(found)),
        f"![delays over time]({PICTURES['delay']})",
        f"![distribution of delays]({PICTURES['distribution']})",
        "## Load, lag and backlog",
        _table(
            ("phase", "events", "events/min", "s", "drained after, s", "worst lag of a minute, ms"),
            (_load(found, span) for span in found.spans),
        ),
        f"![lag and backlog]({PICTURES['backlog']})",
        "## Memory and CPU",
        "CPU in percent of one core.",
        _table(("phase", *(names := _names(found))), (_cpu(found, span, names) for span in found.spans)),
        f"![memory]({PICTURES['memory']})",
        f"![CPU]({PICTURES['cpu']})",
        "## Trouble",
        _trouble(found),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _delays(found: Findings) -> Iterable[tuple[str, ...]]:
    for span in found.spans:
        for step, said in (*STEPS.items(), (AFTER_END, "committed, from the window's end")):
            s = found.spread(span.phase.name, step)
            if s is not None:
                figures = (s.p50, s.p95, s.p99, s.max)
                yield (span.phase.title, said, f"{s.n:,}", *(f"{x:,.1f}" for x in figures))


def _load(found: Findings, span: Span) -> tuple[str, ...]:
    done, lag = span.produced, found.rolling_lag_ms(span)
    rate = done["published"] / done["seconds"] * 60
    drained, worst = span.drained - span.ended, "" if lag is None else f"{lag:,.0f}"
    return (
        span.phase.title,
        f"{done['published']:,}",
        f"{rate:,.0f}",
        f"{span.seconds:,.0f}",
        f"{drained:.1f}",
        worst,
    )


def _names(found: Findings) -> list[str]:
    seen = found.usage["process"].unique().to_list()
    order = ("produce", "micro-batch", "infer", "redis", "postgres", "this harness", MACHINE)
    return [name for name in order if name in seen]


def _cpu(found: Findings, span: Span, names: Sequence[str]) -> tuple[str, ...]:
    by_name = shares(found, span)
    return (span.phase.title, *(f"{by_name.get(name, 0.0) * 100:.1f}" for name in names))


def _trouble(found: Findings) -> str:
    harm = found.harm
    if not harm.blows:
        return "None."
    lines = [f"{what}: {n}" for what, n in harm.blows.items()]
    lines += [
        f"{role}, from a kill to the next commit: {', '.join(f'{s:.1f}' for s in seconds)} s (a dead worker's lease "
        f"is {found.plan.lease_ms / 1000:g} s)"
        for role, seconds in harm.recoveries_s.items()
        if seconds
    ]
    if harm.replayed:
        lines.append(f"{sum(harm.replayed):,} events replayed; rows written by that: "
                     f"{'none' if not harm.rewritten else ', '.join(harm.rewritten)}")  # fmt: skip
    own = harm.own.get("window_delay_ms", {})
    if own.get("p99") is not None:
        lines.append(
            "by the micro-batcher's own count, the delays of the calm phase to the answer to the commit: "
            + ", ".join(f"{name} {value:.1f} ms" for name, value in own.items())
        )
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join(lines)
