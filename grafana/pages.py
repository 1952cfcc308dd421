"""The dashboards of the repository, as far as a picture of them needs: what is where, and what it asks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from grafana.__main__ import FOLDER

WIDTH: Final = 24
"""Columns of Grafana's grid."""


@dataclass(frozen=True, slots=True)
class Target:
    ref: str
    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. ``x y w h`` in cells of the grid; ``steps``: thresholds as (from, colour), the first from minus
    infinity; ``lines``: whether they are drawn. ``least`` and
    ``soft``: where the axis begins, and how far it goes at least. ``red``: names of lines that are dashed."""

    board: str
    title: str
    kind: str
    unit: str
    x: int
    y: int
    w: int
    h: int
    least: float | None
    soft: float | None
    stacked: bool
    steps: tuple[tuple[float, str], ...]
    lines: bool
    red: tuple[str, ...]
    targets: tuple[Target, ...]

    def overlaps(self, other: Panel) -> bool:
        return (
            self.x < other.x + other.w
            and other.x < self.x + self.w
            and self.y < other.y + other.h
            and other.y < self.y + self.h
        )


@dataclass(frozen=True, slots=True)
class Page:
    name: str
    title: str
    panels: tuple[Panel, ...]

    @property
    def rows(self) -> int:
        return max(panel.y + panel.h for panel in self.panels)

    def faults(self) -> list[str]:
        """What is wrong with the layout: panels over one another or beyond the page, and holes."""
        over = [f"{a.title} lies over {b.title}" for a, b in combinations(self.panels, 2) if a.overlaps(b)]
        beyond = [f"{p.title} is beyond the page" for p in self.panels if p.x < 0 or p.x + p.w > WIDTH]
        free = WIDTH * self.rows - sum(p.w * p.h for p in self.panels)
        return over + beyond + ([f"{free} cells are empty"] if free and not over else [])


def pages(folder: Path = FOLDER) -> Iterator[Page]:
    """Every dashboard of ``folder``."""
    for path in sorted(folder.glob("*.json")):
        page = json.loads(path.read_text("utf-8"))
        yield Page(path.stem, page["title"], tuple(_panel(path.stem, panel) for panel in page["panels"]))


def _panel(board: str, panel: Mapping[str, Any]) -> Panel:
    defaults = panel["fieldConfig"]["defaults"]
    custom, at = defaults.get("custom", {}), panel["gridPos"]
    steps = defaults.get("thresholds", {}).get("steps", [])
    return Panel(
        board,
        panel["title"],
        panel["type"],
        defaults.get("unit", "short"),
        at["x"],
        at["y"],
        at["w"],
        at["h"],
        defaults.get("min"),
        custom.get("axisSoftMax"),
        custom.get("stacking", {}).get("mode", "none") != "none",
        tuple((float("-inf") if s["value"] is None else float(s["value"]), s["color"]) for s in steps),
        custom.get("thresholdsStyle", {}).get("mode", "off") != "off",
        tuple(o["matcher"]["options"] for o in panel["fieldConfig"]["overrides"]),
        tuple(Target(t["refId"], t["expr"], t["legendFormat"]) for t in panel["targets"]),
    )
