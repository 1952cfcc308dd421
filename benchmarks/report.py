"""What a benchmark found: contenders measured in turn, ratios of the same round, goals; as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Measured

FOLDER: Final = Path("bench-results")
_SERVERS: Final = {"redis": "Redis", "bus": "bus", "postgres": "PostgreSQL"}

Contender = Callable[[], Measured]


@dataclass(slots=True)
class Ratio:
    """``values``: one a round. ``goal``: the median should reach it."""

    label: str
    values: list[float]
    goal: float | None = None

    @property
    def met(self) -> bool:
        return self.goal is None or median(self.values) >= self.goal


@dataclass(slots=True)
class Report:
    """One benchmark. ``runs``: by contender, one a round. ``notes``: what else was found."""

    name: str
    title: str
    unit: str = "events"
    runs: dict[str, list[Measured]] = field(default_factory=dict)
    ratios: list[Ratio] = field(default_factory=list)
    shares: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def measure(self, contenders: dict[str, Contender], rounds: int, console: Console) -> None:
        """All contenders in turn, ``rounds`` times, so that what else the machine does meets all alike."""
        with console.status("") as status:
            for number in range(rounds):
                for label, contender in contenders.items():
                    status.update(f"{self.name}, round {number + 1} of {rounds}: {label}")
                    self.runs.setdefault(label, []).append(contender())

    def compare(
        self, label: str, one: str, other: str, goal: float | None = None, *, cpu: bool = False
    ) -> None:
        """The ratio of two contenders' rates; with ``cpu``, of their events a CPU second."""

        def rate(run: Measured) -> float:
            return 1e6 / run.cpu_per_million if cpu else run.rate

        pairs = zip(self.runs[one], self.runs[other], strict=True)
        self.ratios.append(Ratio(label, [rate(a) / rate(b) for a, b in pairs], goal))

    def evenness(
        self, label: str, contenders: Sequence[str], goal: float | None, *, cpu: bool = False
    ) -> None:
        """The slowest contender's median rate by the fastest one's."""
        values = [median(r.cpu_per_million if cpu else r.rate for r in self.runs[c]) for c in contenders]
        self.ratios.append(Ratio(label, [min(values) / max(values)], goal))

    def print(self, console: Console) -> None:
        table = Table(title=self.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        table.add_column("")
        used = {name for runs in self.runs.values() for r in runs for name in r.cpu}
        servers = {name: title for name, title in _SERVERS.items() if name in used}
        for column in (f"{self.unit}/s", "min to max", "CPU s a million", *servers.values(), "peak MB"):
            table.add_column(column, justify="right")
        for label, runs in self.runs.items():
            rates = [r.rate for r in runs]
            cpu = [median(r.cpu.get(p, 0.0) / r.events * 1e6 for r in runs) for p in ("client", *servers)]
            peak = max(r.peak_bytes for r in runs) / 1e6
            span = f"{min(rates):,.0f} to {max(rates):,.0f}"
            table.add_row(label, f"{median(rates):,.0f}", span, *(f"{c:.2f}" for c in cpu), f"{peak:.0f}")
        console.print(table)
        for ratio in self.ratios:
            low, middle, high = min(ratio.values), median(ratio.values), max(ratio.values)
            text = f"  {ratio.label}: [bold]{middle:.2f}[/]"
            text += f" ({low:.2f} to {high:.2f})" if len(ratio.values) > 1 else ""
            if ratio.goal is not None:
                verdict = "[green]met[/]" if ratio.met else "[red]not met[/]"
                text += f", goal {ratio.goal:g}: {verdict}"
            console.print(text, highlight=False)
        for label, shares in self.shares.items():
            parts = ", ".join(f"{part} {share:.0%}" for part, share in shares.items() if share >= 0.005)
            console.print(f"  where the CPU time of {label} goes: {parts}", highlight=False)
        for note in self.notes:
            console.print(f"  {note}", highlight=False)
        console.print()

    def write(self, machine: dict[str, Any]) -> Path:
        FOLDER.mkdir(exist_ok=True)
        ratios = [asdict(r) | {"median": median(r.values), "met": r.met} for r in self.ratios]
        runs = {
            label: [asdict(r) | {"rate": r.rate, "cpu_per_million": r.cpu_per_million} for r in some]
            for label, some in self.runs.items()
        }
        found = {"benchmark": self.name, "title": self.title, "machine": machine, "ratios": ratios}
        path = FOLDER / f"{self.name}.json"
        path.write_text(
            json.dumps(found | {"shares": self.shares, "notes": self.notes, "runs": runs}, indent=1) + "\n",
            encoding="utf-8",
        )
        return path


def machine(versions: dict[str, str]) -> dict[str, Any]:
    """What it was measured on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name")
        ]
        model = names[0].partition(":")[2].strip() if names else model
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": model,
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **versions,
    }
