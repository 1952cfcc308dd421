"""What a backfill has done so far: its summary, its counters in ``job_runs``, what the progress line shows."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple

from market_data_pipeline.backfill.bundle import Done, Outcome

MOST_FAILURES: Final = 1000
"""So many are told in full; more are counted."""


class Failure(NamedTuple):
    """A task that was not done, or, without a symbol, a file of which nobody knows what it holds."""

    symbol: str | None
    date: str | None
    reason: str


@dataclass(slots=True)
class Totals:
    """``tasks``: planned so far, of which ``skipped`` were finished by a run before.
    ``behind_horizon``: see docs/backfill.md."""

    files: int = 0
    files_scanned: int = 0
    tasks: int = 0
    done: int = 0
    skipped: int = 0
    failed: int = 0
    events: int = 0
    duplicates: int = 0
    passed_over: int = 0
    bad_rows: int = 0
    behind_horizon: int = 0
    bars_inserted: int = 0
    bars_unchanged: int = 0
    bars_amended: int = 0
    bars_refused: int = 0
    workers: int = 0
    workers_lost: int = 0
    interrupted: bool = False
    failures: list[Failure] = field(default_factory=list)
    cpu: dict[str, float] = field(default_factory=dict)

    def fail(self, symbol: str | None, date: str | None, reason: str) -> None:
        """Note what could not be done."""
        self.failed += 1
        if len(self.failures) < MOST_FAILURES:
            self.failures.append(Failure(symbol, date, reason))

    def take(self, done: Done) -> None:
        """Add a bundle."""
        self.events += done.events
        self.duplicates += done.duplicates
        self.passed_over += done.passed_over
        self.bad_rows += done.bad_rows
        self.behind_horizon += done.behind
        for outcome in done.outcomes:
            self._count(outcome)

    def _count(self, outcome: Outcome) -> None:
        self.bars_inserted += outcome.inserted
        self.bars_amended += outcome.amended
        self.bars_unchanged += outcome.unchanged
        self.bars_refused += outcome.refused
        if outcome.failure is not None:
            self.fail(outcome.symbol, outcome.date, outcome.failure)
        elif outcome.skipped:
            self.skipped += 1
        else:
            self.done += 1

    def summary(self) -> dict[str, Any]:
        """As JSON has it, without times."""
        out = asdict(self)
        del out["cpu"]
        out["failures"] = [failure._asdict() for failure in self.failures]
        out["cpu_seconds"] = round(sum(self.cpu.values()), 3)
        return out

    def counters(self) -> dict[str, Any]:
        """The numbers alone."""
        return {name: value for name, value in self.summary().items() if isinstance(value, int | float)}
