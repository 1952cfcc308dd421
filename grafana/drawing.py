"""A picture of a dashboard, as near to what Grafana shows as matplotlib comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from grafana.pages import WIDTH, Page, Panel
from grafana.prometheus_api import Line
from grafana.units import written

CELL: Final = (0.75, 0.42)
"""Inches of a cell of the grid."""
_TOP: Final = 0.6
_COLORS: Final = {
    "green": "#73bf69",
    "yellow": "#fade2a",
    "orange": "#ff9830",
    "red": "#f2495c",
    "blue": "#5794f2",
    "transparent": "none",
}
_CYCLE: Final = ("#73bf69", "#fade2a", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#37872d", "#e0b400")
_PAGE, _PAPER, _INK, _FAINT = "#111217", "#181b1f", "#d8d9da", "#34373d"

Found = Mapping[Panel, Sequence[Line]]


def draw(page: Page, found: Found, span: tuple[float, float], path: Path) -> None:
    """Write the picture of ``page`` with the series of each panel over ``span``, in seconds since 1970."""
    width, height = WIDTH * CELL[0], page.rows * CELL[1] + _TOP
    figure = Figure(figsize=(width, height), facecolor=_PAGE)
    FigureCanvasAgg(figure)
    figure.text(0.01, 1 - 0.3 / height, page.title, color=_INK, size=15, va="center")
    for panel in page.panels:
        _panel(figure, panel, found[panel], span, (width, height))
    figure.savefig(path, dpi=80)


def _panel(
    figure: Figure,
    panel: Panel,
    lines: Sequence[Line],
    span: tuple[float, float],
    size: tuple[float, float],
) -> None:
    width, height = size
    left, top = panel.x * CELL[0] / width, 1 - (panel.y * CELL[1] + _TOP) / height
    wide, high = panel.w * CELL[0] / width, panel.h * CELL[1] / height
    paper = figure.add_axes((left + 0.002, top - high + 0.003, wide - 0.004, high - 0.006), facecolor=_PAPER)
    paper.set_xticks([])
    paper.set_yticks([])
    for spine in paper.spines.values():
        spine.set_color(_FAINT)
    figure.text(
        left + 0.006, top - 0.25 / height, panel.title, color=_INK, size=9, va="center", weight="bold"
    )
    if not lines:
        paper.text(0.5, 0.5, "No data", color=_INK, ha="center", va="center", transform=paper.transAxes)
        return
    if panel.kind == "stat":
        _stat(paper, panel, lines)
        return
    low, up = 0.85 / height, 0.5 / height
    plot = figure.add_axes((left + 0.045, top - high + low, wide - 0.055, high - low - up), facecolor=_PAPER)
    _style(plot)
    _timeline(plot, lines) if panel.kind == "state-timeline" else _chart(plot, panel, lines)
    plot.set_xlim(span)
    plot.set_xticks(np.linspace(*span, 5))
    plot.xaxis.set_major_formatter(FuncFormatter(lambda at, _: written(round(at - span[1]), "s")))


def _style(plot: Axes) -> None:
    plot.tick_params(colors=_INK, labelsize=7, length=0)
    plot.grid(color=_FAINT, linewidth=0.5)
    for spine in plot.spines.values():
        spine.set_visible(False)


def _stat(paper: Axes, panel: Panel, lines: Sequence[Line]) -> None:
    value = lines[0].values[np.isfinite(lines[0].values)]
    last = float(value[-1]) if len(value) else float("nan")
    reached = [name for least, name in panel.steps if last >= least] or ["green"]
    color = _COLORS.get(reached[-1], _INK)
    paper.text(
        0.5, 0.45, written(last, panel.unit), color=color, size=22, ha="center", va="center",
        transform=paper.transAxes,
    )  # fmt: skip
    spark = paper.inset_axes((0, 0, 1, 0.3))
    spark.fill_between(lines[0].times, lines[0].values, color=color, alpha=0.25)
    spark.set_axis_off()


def _chart(plot: Axes, panel: Panel, lines: Sequence[Line]) -> None:
    if panel.stacked:
        times = np.unique(np.concatenate([line.times for line in lines]))
        rows = [np.interp(times, line.times, np.nan_to_num(line.values), left=0, right=0) for line in lines]
        plot.stackplot(times, rows, labels=[line.name for line in lines], colors=_CYCLE, alpha=0.7)
    else:
        for number, line in enumerate(lines):
            goal = line.name in panel.red
            color = _COLORS["red"] if goal else _CYCLE[number % len(_CYCLE)]
            style = "--" if goal else "-"
            plot.plot(line.times, line.values, style, color=color, label=line.name, linewidth=1)
    if panel.least is not None:
        plot.set_ylim(bottom=panel.least)
    if panel.soft is not None:
        plot.set_ylim(top=max(panel.soft, plot.get_ylim()[1]))
    if panel.lines:
        for least, color in panel.steps[1:]:
            plot.axhline(least, color=_COLORS[color], linewidth=1, linestyle="--")
    plot.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value, panel.unit)))
    _legend(plot)


def _timeline(plot: Axes, lines: Sequence[Line]) -> None:
    for number, line in enumerate(lines):
        on = line.values > 0
        plot.fill_between(line.times, number + 0.1, number + 0.9, where=on.tolist(), color=_COLORS["blue"])
    plot.set_ylim(0, len(lines))
    plot.set_yticks([n + 0.5 for n in range(len(lines))], [line.name for line in lines])


def _legend(plot: Axes) -> None:
    plot.legend(
        loc="upper left", bbox_to_anchor=(0.0, -0.1), ncols=3, fontsize=6.5, frameon=False, labelcolor=_INK,
        borderaxespad=0.2,
    )  # fmt: skip
