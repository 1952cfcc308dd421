"""What a soak came to: the figures, and what they must be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import polars as pl

from tests.soak.delays import AFTER_END, STEPS, Spread, spread
from tests.soak.plan import GOAL_P99_MS, SLA_WINDOWS, WINDOW_S, Plan
from tests.soak.stand import Span
from tests.soak.trend import Trend, trend
from tests.soak.trouble import Harm

SLA_MS: Final = SLA_WINDOWS * WINDOW_S * 1000
OURS: Final = ("produce", "micro-batch", "infer")
"""Whose memory must not grow; that of the servers grows with what they hold."""
MEMORY_TOLERANCE: Final = 0.01
"""Share of a process's memory by which it may seem to grow: an allocator takes it in pieces of up to a megabyte."""
LEAST_TOLERANCE_MB: Final = 1.0
ROLLING_S: Final = 60.0


@dataclass(slots=True)
class Count:
    """A recount. Of bars, ``lost`` and ``duplicated`` are events; of signals, signals. ``wrong``: rows that differ in
    anything. ``rows``: the first of them."""

    what: str
    phase: str
    total: int
    lost: int
    duplicated: int
    wrong: int
    rows: str = ""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One promise. ``met``: None where the run was too short to tell. ``goal``: one that does not decide."""

    what: str
    phase: str
    found: str
    limit: str
    met: bool | None
    goal: bool = False


@dataclass(slots=True)
class Findings:
    """All that was measured. ``windows``: see :func:`tests.soak.delays.delays`."""

    plan: Plan
    spans: list[Span]
    harm: Harm
    marks: list[tuple[float, str]]
    windows: pl.DataFrame
    usage: pl.DataFrame
    backlog: pl.DataFrame
    counts: list[Count]
    machine: dict[str, Any]
    failures: list[str] = field(default_factory=list)

    def spread(self, phase: str, step: str) -> Spread | None:
        """Delays of one step in one phase."""
        return spread(self.windows.filter(pl.col("provider") == phase), step)

    def during(self, samples: pl.DataFrame, span: Span, settle_s: float = 0.0) -> pl.DataFrame:
        """The samples of a phase while it was produced, without its first seconds."""
        return samples.filter(pl.col("at").is_between(span.began + settle_s, span.ended))

    def memory(self, span: Span) -> dict[str, Trend | None]:
        """The trend in MB of each of our processes, after it had time to fill its buffers."""
        rows = self.during(self.usage, span, self.plan.settle_s)
        return {
            name: trend(of["at"], of["rss"])
            for name in OURS
            if len(of := rows.filter(pl.col("process") == name))
        }

    def pending(self, span: Span) -> dict[str, Trend | None]:
        """The trend of each group's records that are not acknowledged yet, those not handed out included."""
        rows = self.during(self.backlog, span, 2 * WINDOW_S)
        groups = rows["group"].unique().sort().to_list()
        parts = {name: rows.filter(pl.col("group") == name) for name in groups}
        return {name: trend(of["at"], of["pending"] + of["lag"]) for name, of in parts.items()}

    def rolling_lag_ms(self, span: Span) -> float | None:
        """The worst mean over a minute (or all of a shorter phase) of the micro-batcher's lag."""
        rows = self.during(self.backlog, span, 2 * WINDOW_S).filter(pl.col("group") == "mdp-consumers")
        if not len(rows):
            return None
        window = f"{int(min(ROLLING_S, span.seconds) * 1000)}ms"
        timed = rows.select(pl.from_epoch((pl.col("at") * 1000).cast(pl.Int64), "ms").alias("at"), "lag_ms")
        means = timed.rolling("at", period=window).agg(pl.col("lag_ms").mean())
        return float(means["lag_ms"].max())  # type: ignore[arg-type]

    def requirements(self) -> list[Requirement]:
        """Everything that was promised."""
        out = list(self._right())
        for span in self.spans:
            if span.phase.judged:
                out += self._fast(span)
                out += self._steady(span)
        return out

    @property
    def passed(self) -> bool:
        return not self.failures and all(r.met is not False or r.goal for r in self.requirements())

    def _right(self) -> Iterable[Requirement]:
        for count in self.counts:
            for name in ("lost", "duplicated", "wrong"):
                found = getattr(count, name)
                yield Requirement(f"{count.what}: {name}", count.phase, f"{found:,}", "0", found == 0)
        wrong = ", ".join(sorted(set(self.harm.rewritten))) or "none"
        yield Requirement("tables that a replay changed", "trouble", wrong, "none", not self.harm.rewritten)

    def _fast(self, span: Span) -> Iterable[Requirement]:
        plan, name = self.plan, span.phase.name
        for step in ("published", "signals published"):
            found = self.spread(name, step)
            met = found.p95 <= SLA_MS if found and plan.speed else None
            said = f"{found.p95:,.0f} ms" if found else "no window"
            yield Requirement(f"p95 to {STEPS[step]}", name, said, f"{SLA_MS:,.0f} ms", met)
        after = self.spread(name, AFTER_END)
        met = after.p95 <= SLA_MS if after and plan.speed else None
        said = f"{after.p95:,.0f} ms" if after else "no window"
        yield Requirement("p95 from a window's end to its commit", name, said, f"{SLA_MS:,.0f} ms", met)
        if name == "calm":
            found = self.spread(name, "published")
            met = found.p99 <= GOAL_P99_MS if found and plan.speed else None
            said = f"{found.p99:,.1f} ms" if found else "no window"
            yield Requirement(
                "p99 to bars on the bus, which follows the commit",
                name,
                said,
                f"{GOAL_P99_MS:.0f} ms",
                met,
                goal=True,
            )
        rate, asked = span.produced["published"] / span.produced["seconds"], span.phase.rate
        met = rate >= 0.98 * asked if plan.speed else None
        yield Requirement("events/min", name, f"{rate * 60:,.0f}", f"{asked * 60 * 0.98:,.0f} or more", met)

    def _steady(self, span: Span) -> Iterable[Requirement]:
        name = span.phase.name
        lag = self.rolling_lag_ms(span)
        limit = 2 * WINDOW_S * 1000
        met = lag < limit if lag is not None and self.plan.speed else None
        said = "not seen" if lag is None else f"{lag:,.0f} ms"
        yield Requirement("lag, worst mean of a minute", name, said, f"below {limit:,} ms", met)
        for group, line in self.pending(span).items():
            # Less than what comes in a window is a wave of the windows.
            level = max(1.0, line.level) if line else 1.0
            met = None if line is None or not self.plan.speed else not line.grows(0.1 * level)
            yield Requirement(f"backlog of {group}", name, _slope(line, "records"), "does not grow", met)
        for process, line in self.memory(span).items():
            tolerance = max(LEAST_TOLERANCE_MB, MEMORY_TOLERANCE * line.level) if line else 0.0
            long_enough = line is not None and line.seconds >= self.plan.settle_s
            met = not line.grows(tolerance) if line and long_enough and self.plan.speed else None
            yield Requirement(f"memory of {process}", name, _slope(line, "MB"), "does not grow", met)


def _slope(line: Trend | None, unit: str) -> str:
    if line is None:
        return "too short"
    return f"{line.slope:+.2f} {unit}/min ({line.low:+.2f} to {line.high:+.2f})"
