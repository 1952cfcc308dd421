"""The pictures of a soak: delays, lag and backlog, memory and CPU over time, with the phases and what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tests.soak.delays import STEPS
from tests.soak.findings import OURS, SLA_MS, Findings
from tests.soak.plan import GOAL_P99_MS, GROUPS
from tests.soak.sampler import MACHINE
from tests.soak.stand import Span

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURES: Final = {name: f"{name}.png" for name in ("delay", "distribution", "backlog", "memory", "cpu")}
_BLUE, _RED, _GREEN, _PINK, _SKY, _ORANGE = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"
"""Of Okabe and Ito: told apart by the colour-blind too."""
_GREY, _PALE, _TROUBLE = "#6f6f6f", "#f3f5f8", "#fdeee6"
_COLOURS: Final = {
    "on the bus": _GREY,
    "committed": _SKY,
    "published": _BLUE,
    "signals committed": _ORANGE,
    "signals published": _RED,
    "produce": _GREEN,
    "micro-batch": _BLUE,
    "infer": _RED,
    "redis": _ORANGE,
    "postgres": _PINK,
    "this harness": _SKY,
    MACHINE: "#b5b5b5",
    "mdp-consumers": _BLUE,
    "mdp-inference": _RED,
}
_MARKS: Final = {
    "SIGTERM micro-batch": ("o", _BLUE),
    "kill -9 micro-batch": ("X", _BLUE),
    "SIGTERM infer": ("o", _RED),
    "kill -9 infer": ("X", _RED),
    "PostgreSQL away": ("v", _PINK),
    "PostgreSQL back": ("^", _PINK),
    "replay": ("D", _GREEN),
}
_STYLE: Final[dict[Any, Any]] = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titlepad": 26,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,
}


def draw(found: Findings, folder: Path) -> None:
    """All of :data:`PICTURES` into ``folder``."""
    painters: dict[str, Callable[[Findings, Figure], None]] = {
        "delay": _delay,
        "distribution": _distribution,
        "backlog": _backlog,
        "memory": _memory,
        "cpu": _cpu,
    }
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        for name, paint in painters.items():
            figure = Figure(figsize=(13, 6), layout="constrained")
            FigureCanvasAgg(figure)
            paint(found, figure)
            figure.savefig(folder / PICTURES[name], dpi=110)


class _Axis:
    """The time axis of one soak: from s UTC to what the pictures show."""

    def __init__(self, found: Findings) -> None:
        self._found = found
        self._start = found.spans[0].began
        self._end = found.spans[-1].drained
        self._unit, self._name = (60.0, "min") if self._end - self._start > 180 else (1.0, "s")

    def of(self, at: Any) -> Any:
        return (np.asarray(at, np.float64) - self._start) / self._unit

    def dress(self, axes: Axes, *, marks: bool = True) -> list[Line2D]:
        """Shade and name the phases, and set a mark for everything that was done; the legend of the marks."""
        axes.set_xlim(0, float(self.of(self._end)))
        axes.set_xlabel(f"time since the start ({self._name})")
        axes.grid(axis="x", visible=False)
        top = axes.get_xaxis_transform()
        for span in self._found.spans:
            left, right = float(self.of(span.began)), float(self.of(span.drained))
            axes.axvspan(left, right, color=_PALE if span.phase.judged else _TROUBLE, linewidth=0, zorder=0)
            axes.axvline(right, color="white", linewidth=3, zorder=1)
            axes.text((left + right) / 2, 1.015, _label(span), ha="center", va="bottom", fontsize=9.5,
                      color=_GREY, transform=top)  # fmt: skip
        if not marks:
            return []
        for at, what in self._found.marks:
            symbol, colour = _MARKS[what]
            x = float(self.of(at))
            axes.axvline(x, color=colour, linewidth=0.6, alpha=0.35, zorder=1)
            axes.plot([x], [0.975], symbol, color=colour, markersize=6, transform=top, clip_on=False)
        seen = {what for _, what in self._found.marks}
        return [
            Line2D([], [], linestyle="", marker=symbol, color=colour, label=what)
            for what, (symbol, colour) in _MARKS.items()
            if what in seen
        ]


def _label(span: Span) -> str:
    if not span.phase.judged:
        return "trouble"
    minute = span.phase.rate * 60
    return f"{minute / 1e6:g}M/min" if minute >= 1e6 else f"{minute / 1e3:g}k/min"


def _legend(figure: Figure, axes: Axes, more: Sequence[Line2D] = ()) -> None:
    handles, _ = axes.get_legend_handles_labels()
    figure.legend(handles=[*handles, *more], loc="outside lower center", ncols=6, fontsize=9.5)


def _delay(found: Findings, figure: Figure) -> None:
    axes, axis = figure.subplots(), _Axis(found)
    for step in ("committed", "published", "signals published"):
        rows = found.windows.drop_nulls(step)
        axes.plot(
            axis.of(rows["due"].to_numpy() / 1e9),
            rows[step].clip(lower_bound=0.1),
            "o",
            color=_COLOURS[step],
            markersize=3,
            alpha=0.65,
            markeredgewidth=0,
            label=STEPS[step],
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
    axes.axhline(SLA_MS, color="black", linewidth=1.4, linestyle="--", label=f"1.5 windows: {SLA_MS:,.0f} ms")
    axes.axhline(
        GOAL_P99_MS, color=_GREEN, linewidth=1.4, linestyle=":", label=f"goal of the p99: {GOAL_P99_MS:g} ms"
    )
    low, high = axes.get_ylim()
    axes.set_ylim(low, max(high, SLA_MS) * 2.2)
    axes.set_ylabel("delay since a window could be closed (ms)")
    axes.set_title("Every window: from its earliest possible close to its results")
    _legend(figure, axes, axis.dress(axes))


def _distribution(found: Findings, figure: Figure) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1, 1))
    spans = [span for span in found.spans if span.phase.judged]
    calm = found.windows.filter(pl.col("provider") == spans[0].phase.name)
    every = [calm[step].drop_nulls() for step in STEPS]
    most = max((float(v.quantile(0.995) or 1.0) for v in every if len(v)), default=1.0)
    for step, values in zip(STEPS, every, strict=True):
        if len(values):
            left.hist(values.clip(0, most), bins=60, range=(0, most), histtype="stepfilled", alpha=0.35,
                      color=_COLOURS[step])  # fmt: skip
            left.hist(values.clip(0, most), bins=60, range=(0, most), histtype="step", linewidth=1.4,
                      color=_COLOURS[step], label=STEPS[step])  # fmt: skip
    left.axvline(GOAL_P99_MS, color=_GREEN, linewidth=1.4, linestyle=":")
    left.set_xlim(0, max(most, GOAL_P99_MS) * 1.03)
    left.set_xlabel("delay since a window could be closed (ms)")
    left.set_ylabel("windows")
    left.yaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_title(f"The steps of a window at {_label(spans[0])}", pad=10)
    left.legend(loc="upper right", fontsize=9.5)
    for span, colour in zip(spans, (_BLUE, _ORANGE, _PINK, _GREEN), strict=False):
        of = found.windows.filter(pl.col("provider") == span.phase.name)
        for step, line in (("published", "-"), ("signals published", "--")):
            took = np.sort(of[step].drop_nulls().to_numpy())
            if len(took):
                share = np.arange(1, len(took) + 1) / len(took)
                right.step(took, share, line, where="post", color=colour, linewidth=1.6,
                           label=f"{_label(span)}: {STEPS[step]}")  # fmt: skip
    right.set_xscale("log")
    right.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
    right.axvline(SLA_MS, color="black", linewidth=1.4, linestyle="--")
    right.axvline(GOAL_P99_MS, color=_GREEN, linewidth=1.4, linestyle=":")
    right.set_ylim(0, 1.01)
    for level in (0.95, 0.99):
        right.axhline(level, color=_GREY, linewidth=0.7)
    right.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0%}"))
    right.set_xlabel("delay since a window could be closed (ms)")
    right.set_ylabel("share of windows that took no longer")
    right.set_title("By load; dashed to the right: 1.5 windows, dotted: goal", pad=10)
    right.set_xlim(right=SLA_MS * 1.6)
    handles, _ = right.get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9.5)


def _backlog(found: Findings, figure: Figure) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True)
    axis = _Axis(found)
    for group in GROUPS.values():
        rows = found.backlog.filter(pl.col("group") == group)
        at = axis.of(rows["at"])
        upper.plot(at, rows["pending"] + rows["lag"], color=_COLOURS[group], linewidth=1.2, label=group)
        lower.plot(at, rows["lag_ms"] / 1000, color=_COLOURS[group], linewidth=1.2)
    upper.set_yscale("symlog", linthresh=100)
    upper.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    upper.set_ylim(bottom=0)
    upper.set_ylabel("records")
    upper.set_title("Not acknowledged yet: handed out or not")
    lower.set_ylim(bottom=0)
    lower.set_ylabel("s")
    lower.set_title("Lag: age of the oldest record that the group was not handed", pad=24)
    more = axis.dress(upper)
    axis.dress(lower)
    upper.set_xlabel("")
    _legend(figure, upper, more)


def _lines(
    found: Findings, axes: Axes, axis: _Axis, names: Iterable[str], column: str, factor: float
) -> None:
    """A line for each life of each process."""
    for name in names:
        label: str | None = name
        for (_,), rows in found.usage.filter(pl.col("process") == name).group_by("pid", maintain_order=True):
            values = rows[column].rolling_mean(5, min_samples=1) if column == "share" else rows[column]
            axes.plot(axis.of(rows["at"]), values * factor, color=_COLOURS[name], linewidth=1.3, label=label)
            label = None


def _memory(found: Findings, figure: Figure) -> None:
    axes, axis = figure.subplots(), _Axis(found)
    _lines(found, axes, axis, (*OURS, "redis", "postgres"), "rss", 1.0)
    for span in found.spans:
        for name, line in found.memory(span).items():
            if span.phase.judged and line is not None and line.seconds >= found.plan.settle_s:
                end = span.ended
                at = np.array([end - line.seconds, end])
                middle = line.level + line.slope * np.array([-0.5, 0.5]) * line.seconds / 60
                axes.plot(axis.of(at), middle, color="black", linewidth=1.0, linestyle=":")
                axes.annotate(
                    f"{line.slope:+.2f} MB/min",
                    (float(axis.of(at)[1]), float(middle[1])),
                    (-4, -15 if name == "infer" else 6),
                    textcoords="offset points",
                    ha="right",
                    fontsize=9,
                    color=_COLOURS[name],
                )
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(8))
    axes.set_ylabel("MB")
    axes.set_title("Resident memory; dotted: the trend that is judged")
    _legend(figure, axes, axis.dress(axes))


def _cpu(found: Findings, figure: Figure) -> None:
    axes, axis = figure.subplots(), _Axis(found)
    _lines(found, axes, axis, (MACHINE, *OURS, "redis", "postgres", "this harness"), "share", 100.0)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("% of one core")
    axes.set_title(f"CPU, of {found.machine['cores']} cores")
    _legend(figure, axes, axis.dress(axes))
