"""What a scenario came to, as an object for files and a table for people."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from rich.console import Console
from rich.table import Table


def _middle_and_longest(seconds: Sequence[float]) -> tuple[float | None, float | None]:
    if not seconds:
        return None, None
    return round(statistics.median(seconds), 2), round(max(seconds), 2)


def _described(seconds: Sequence[float]) -> dict[str, float | None]:
    p50, longest = _middle_and_longest(seconds)
    return {"p50": p50, "max": longest, "measured": len(seconds)}


def _cell(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.2f}"


@dataclass(slots=True)
class SignalsReport:
    """What became of the signals. ``unsure``: left out of the comparison, since rounding decides them."""

    fenced: int = 0
    flushes: int = 0
    signals: int = 0
    by_name: dict[str, int] = field(default_factory=dict)
    withdrawn: int = 0
    records: int = 0
    unsure: int = 0
    lost: int = 0
    doubled: int = 0
    unwanted: int = 0
    wrong: int = 0
    wrong_published: int = 0
    recovery_s: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"recovery_s": _described(self.recovery_s)}

    def cells(self) -> dict[str, str]:
        """The rows that it adds to the table."""
        p50, longest = _middle_and_longest(self.recovery_s)
        return {
            "fenced writes of infer": f"{self.fenced:,}",
            "signals": f"{self.signals:,}",
            "of these withdrawn": f"{self.withdrawn:,}",
            "too close to tell": f"{self.unsure:,}",
            "lost signals": f"{self.lost:,}",
            "doubled signals": f"{self.doubled:,}",
            "signals that should not be": f"{self.unwanted:,}",
            "wrong signals": f"{self.wrong:,}",
            "wrong signals on the topic": f"{self.wrong_published:,}",
            "infer recovery p50, s": _cell(p50),
            "infer recovery max, s": _cell(longest),
        }


NO_SIGNALS: Final = dict.fromkeys(SignalsReport().cells(), "")


@dataclass(slots=True)
class Report:
    """The figures of one scenario. ``recovery_s``: from a kill to the partition's next commit. ``outages_s``: from when
    a broker was killed that others replace, or a server or a wire was back, to the next commits of all partitions."""

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
    outages_s: list[float] = field(default_factory=list)
    retries: int = 0
    spooled: int = 0
    signals: SignalsReport | None = None
    failures: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "recovery_s": _described(self.recovery_s),
            "outages_s": _described(self.outages_s),
            "signals": None if self.signals is None else self.signals.as_dict(),
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
        p50, longest = _middle_and_longest(report.recovery_s)
        outage, worst = _middle_and_longest(report.outages_s)
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
            "recovery p50, s": _cell(p50),
            "recovery max, s": _cell(longest),
            "outage p50, s": _cell(outage),
            "outage max, s": _cell(worst),
            **(NO_SIGNALS if report.signals is None else report.signals.cells()),
            "drained after, s": f"{report.drain_seconds:.1f}",
            "verdict": "failed" if report.failures else "right",
        }
        for name, cell in cells.items():
            rows.setdefault(name, []).append(cell)
    for name, row in rows.items():
        out.add_row(name, *row)
    Console(width=40 + 24 * len(reports)).print(out)
