"""What a scenario came to, as an object for files and a table for people."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(slots=True)
class Report:
    """The figures of one scenario. ``recovery_s``: from a kill to the partition's next commit."""

    scenario: str
    seed: int
    blows: dict[str, int] = field(default_factory=dict)
    fenced: int = 0
    flushes: int = 0
    events: int = 0
    copies: int = 0
    seconds: float = 0.0
    events_per_second: int = 0
    bars: int = 0
    amended_bars: int = 0
    bar_records: int = 0
    lost: int = 0
    duplicated: int = 0
    wrong_bars: int = 0
    wrong_published: int = 0
    drain_seconds: float = 0.0
    recovery_s: list[float] = field(default_factory=list)
    retries: int = 0
    spooled: int = 0
    failures: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def recovery(self) -> tuple[float | None, float | None]:
        """Median and longest."""
        if not self.recovery_s:
            return None, None
        return round(statistics.median(self.recovery_s), 2), round(max(self.recovery_s), 2)

    def as_dict(self) -> dict[str, Any]:
        p50, longest = self.recovery()
        return asdict(self) | {
            "recovery_s": {"p50": p50, "max": longest, "measured": len(self.recovery_s)},
            "passed": not self.failures,
        }


def table(reports: Sequence[Report]) -> None:
    """All scenarios, one a column, on stdout."""
    out = Table(box=None, pad_edge=False, header_style="bold")
    out.add_column("")
    for report in reports:
        out.add_column(report.scenario, justify="right")
    rows: dict[str, list[str]] = {}
    for report in reports:
        p50, longest = report.recovery()
        cells = {
            "blows": "\n".join(f"{n} {what}" for what, n in report.blows.items()),
            "fenced writes": f"{report.fenced:,}",
            "flushes": f"{report.flushes:,}",
            "events": f"{report.events:,}",
            "copies on top": f"{report.copies:,}",
            "events/s": f"{report.events_per_second:,}",
            "bars": f"{report.bars:,}",
            "of these amended": f"{report.amended_bars:,}",
            "lost events": f"{report.lost:,}",
            "duplicated events": f"{report.duplicated:,}",
            "wrong bars": f"{report.wrong_bars:,}",
            "wrong or missing on the topic": f"{report.wrong_published:,}",
            "recovery p50, s": "" if p50 is None else f"{p50:.2f}",
            "recovery max, s": "" if longest is None else f"{longest:.2f}",
            "drained after, s": f"{report.drain_seconds:.1f}",
            "verdict": "failed" if report.failures else "right",
        }
        for name, cell in cells.items():
            rows.setdefault(name, []).append(cell)
    for name, row in rows.items():
        out.add_row(name, *row)
    Console(width=40 + 24 * len(reports)).print(out)
