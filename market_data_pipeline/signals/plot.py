"""A picture of the report: the mean return of each name with its interval, and its way there.

matplotlib is imported when something is drawn. The same outcomes give the same bytes of SVG.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from market_data_core.errors import MissingExtra, UsageError
from market_data_core.events import format_interval
from market_data_core.times import format_time
from market_data_pipeline.signals.outcomes import Outcomes
from market_data_pipeline.signals.reading import Question
from market_data_pipeline.signals.report import Curve, Figures, curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS: Final = (".svg", ".png")
MOST_CURVES: Final = 6
"""More lines in one picture cannot be told from each other; the names with the most signals are drawn."""
MOST_NAMES: Final = 24
"""More rows make no picture any more but a table, and that is printed."""
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Of Okabe and Ito: told apart by the colour-blind too."""
_PALE: Final = "#8c8c8c"
_STYLE: Final[dict[Any, Any]] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    # A dollar in a name is no formula.
    "text.parse_math": False,
    # Without this, the ids in an SVG are random.
    "svg.hashsalt": "mdp",
}


def check(path: Path) -> None:
    """Whether a picture can be drawn to ``path`` at all, before the work is done.

    Raises:
        UsageError: the name ends in neither .svg nor .png, or its folder does not exist. MissingExtra: matplotlib is
            not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--plot: {path} must end in .svg or .png")
    if not path.parent.is_dir():
        raise UsageError(f"--plot: there is no folder {path.parent}; make it, or name another file")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MissingExtra("a picture needs matplotlib; run: pip install 'mdp[plot]'") from None


def draw(outcomes: Outcomes, figures: Sequence[Figures], question: Question, path: Path) -> None:
    """Write the picture of ``figures`` to ``path``, as its ending says.

    Raises:
        UsageError: the file cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    judged = [row for row in figures if row.group == "name" and row.mean_bps is not None]
    most = sorted(judged, key=lambda row: (row.undirected - row.scored, row.name or ""))[:MOST_NAMES]
    names = [row for row in judged if row in most]
    ways = curves(outcomes, question.horizon)
    drawn = sorted(sorted(ways, key=lambda way: (-way.n, way.name))[:MOST_CURVES], key=lambda way: way.name)
    colours = {way.name: colour for way, colour in zip(drawn, _COLOURS, strict=False)}
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        figure = Figure(figsize=(13, max(5.6, 3.2 + 0.44 * len(names))), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
        _means(left, names, colours, question, left_out=len(judged) - len(names))
        _ways(right, drawn, colours, question)
        # Below: wherever it stood inside, it would cover a band.
        note = f"the {len(drawn)} names with the most signals" if len(ways) > len(drawn) else None
        if drawn:
            figure.legend(loc="outside lower right", ncols=2, title=note, alignment="left")
        _title(figure, figures, question)
        # No date: the same report is the same file.
        metadata: dict[str, Any] = {"Date": None} if path.suffix.lower() == ".svg" else {}
        try:
            figure.savefig(path, format=path.suffix.lower()[1:], dpi=144, metadata=metadata)
        except OSError as error:
            raise UsageError(f"--plot: cannot write {path} ({error.strerror}); name another file") from None


def _title(figure: Figure, figures: Sequence[Figures], question: Question) -> None:
    all_ = figures[0]
    about = ", ".join([*question.symbols[:5], *(["…"] if len(question.symbols) > 5 else [])]) or "all symbols"
    figure.suptitle(
        f"What followed {all_.scored:,} signals ({about}), {_day(question.start)} to {_day(question.end)}, "
        f"on bars of {question.interval}",
        x=0.01,
        ha="left",
        fontweight="bold",
    )


def _means(
    axes: Axes, names: Sequence[Figures], colours: dict[str, str], question: Question, *, left_out: int
) -> None:
    """A row a name: the mean as a point, its interval as a line."""
    axes.set_title(f"Mean return after {format_interval(question.horizon)}, with its 95 % interval")
    axes.set_xlabel("return in the direction of the signal (bps)")
    if left_out:
        axes.set_ylabel(f"the {len(names)} names with the most signals")
    if not names:
        _say_nothing(axes)
        return
    axes.axvline(0.0, color="black", linewidth=1)
    axes.grid(axis="y", visible=False)
    for place, row in enumerate(names):
        colour = colours.get(row.name or "", _PALE)
        if row.low_bps is not None and row.high_bps is not None:
            axes.plot([row.low_bps, row.high_bps], [place, place], color=colour, linewidth=2.5)
        axes.plot([row.mean_bps or 0.0], [place], "o", color=colour, markersize=8)
    axes.set_yticks(
        range(len(names)), [f"{_short(row.name)}\nn = {row.scored - row.undirected:,}" for row in names]
    )
    axes.set_ylim(len(names) - 0.5, -0.5)


def _ways(axes: Axes, drawn: Sequence[Curve], colours: dict[str, str], question: Question) -> None:
    """The event study curve of each name, from 0 at the signal to the horizon."""
    axes.set_title("Mean return since the signal, with its 95 % interval")
    unit, divisor = _unit(question.horizon)
    axes.set_xlabel(f"time since the signal ({unit})")
    axes.set_ylabel("return in the direction of the signal (bps)")
    if not drawn:
        _say_nothing(axes)
        return
    axes.axhline(0.0, color="black", linewidth=1)
    axes.set_xlim(0.0, question.horizon / divisor)
    for way in drawn:
        at, colour = way.steps / divisor, colours[way.name]
        if not np.isnan(way.low[1:]).any():
            axes.fill_between(at, way.low, way.high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(at, way.mean, color=colour, linewidth=2, label=_short(way.name))


def _say_nothing(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, "no signal with a direction could be scored", ha="center", transform=axes.transAxes)


def _unit(horizon: int) -> tuple[str, int]:
    """What a horizon is read in, and how many ns that is."""
    for unit, ns in (
        ("days", 86_400 * 10**9),
        ("hours", 3600 * 10**9),
        ("minutes", 60 * 10**9),
        ("s", 10**9),
    ):
        if horizon >= 3 * ns:
            return unit, ns
    return "ms", 10**6


def _day(ns: int) -> str:
    """The time, without what is zero."""
    text = format_time(ns).removesuffix("Z").removesuffix(".000000")
    return text.removesuffix("T00:00:00").replace("T", " ")


def _short(name: str | None, length: int = 32) -> str:
    text = name or ""
    return text if len(text) <= length else text[: length - 1] + "…"
