"""What the live view draws: figures, the newest bars with their closes as a line, the newest signals."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from market_data_core.codecs import format_time
from market_data_core.events import Bar, Signal

CLOSES: Final = 20
"""Closes of a series in its line."""
_LEVELS: Final = "▁▂▃▄▅▆▇█"
_CLOSES_FROM_WIDTH: Final = 96
_BETWEEN: Final = 3
_UP, _DOWN, _SAME = "green", "red", "dim"


def head(stages: Sequence[str], seconds: float, duration: float | None) -> Table:
    """The name, where the events go, and the time that the run has been going on."""
    line = Text.assemble(("mdp", "bold cyan"), "  ")
    line.append_text(Text(" ─► ", "dim").join(Text(stage) for stage in stages))
    passed = (
        f"{int(seconds)} s" if duration is None else f"{min(int(seconds), int(duration))} of {duration:g} s"
    )
    out = Table.grid(expand=True)
    out.add_column(no_wrap=True, overflow="ellipsis")
    out.add_column(no_wrap=True, justify="right", style="dim")
    out.add_row(line, passed)
    return out


def figures(values: Iterable[tuple[str, str, str]], width: int) -> Group:
    """Each figure above its name, from (name, value, style), in as many rows as ``width`` characters need."""
    rows: list[list[tuple[str, str, str]]] = [[]]
    left = width
    for name, value, style in values:
        needed = max(len(name), len(value)) + _BETWEEN
        if rows[-1] and needed > left:
            rows.append([])
            left = width
        rows[-1].append((name, value, style))
        left -= needed
    return Group(*(_figures(row) for row in rows))


def _figures(row: Sequence[tuple[str, str, str]]) -> Table:
    out = Table.grid(padding=(0, _BETWEEN, 0, 0))
    for _ in row:
        out.add_column(justify="right", no_wrap=True)
    out.add_row(*(Text(value, f"bold {style}".strip()) for _, value, style in row))
    out.add_row(*(Text(name, "dim") for name, _, _ in row))
    return out


def title(text: str) -> Rule:
    """A line across that says what is below."""
    return Rule(Text(text, "cyan"), align="left", style="dim")


def bars(newest: Iterable[Bar], closes: dict[str, deque[float]], usual: str, more: int, width: int) -> Table:
    """The newest bar of every series. ``closes``: of each series, by :func:`series_of`. ``usual``: the interval that
    need not be told. ``more``: series there is no room for. ``width``: of the terminal, in characters."""
    out = _table(("symbol", "window"), ("open", "high", "low", "close", "", "volume", "vwap", "events"))
    with_closes = width >= _CLOSES_FROM_WIDTH
    if with_closes:
        out.add_column(f"last {CLOSES} closes", no_wrap=True)
    for bar in newest:
        line = closes.get(series_of(bar), deque([bar.close]))
        before = line[-2] if len(line) > 1 else bar.open
        arrow, style = _direction(bar.close - before)
        out.add_row(
            bar.symbol if bar.interval == usual else f"{bar.symbol} {bar.interval}",
            Text(format_time(bar.ts)[11:19], "dim"),
            *(f"{price:,.2f}" for price in (bar.open, bar.high, bar.low)),
            Text(f"{bar.close:,.2f}", f"bold {style}"),
            Text(arrow, style),
            f"{bar.volume:,.0f}",
            "" if bar.vwap is None else f"{bar.vwap:,.3f}",
            f"{bar.n_events:,}",
            *([Text(sparkline(line), "cyan")] if with_closes else []),
        )
    if more > 0:
        out.add_row(Text(f"… and {more} more", "dim"))
    return out


def signals(newest: Iterable[Signal]) -> Table:
    """Signals, one a line, as they are given."""
    out = _table(("symbol", "at", "signal"), ("value", "score", "price"))
    for signal in newest:
        price = signal.meta.get("price")
        out.add_row(
            signal.symbol,
            Text(format_time(signal.ts)[11:19], "dim"),
            signal.name,
            Text("0" if signal.value == 0 else f"{signal.value:+g}", _direction(signal.value)[1]),
            f"{signal.score:.2f}",
            f"{price:,.2f}" if isinstance(price, float) else "",
        )
    return out


def series_of(bar: Bar) -> str:
    """The key of a bar's series in ``closes``."""
    return f"{bar.provider}/{bar.symbol}/{bar.interval}"


def sparkline(values: Iterable[float]) -> str:
    """Values as bars of eight heights, the least at the bottom; all equal: in the middle.

    >>> sparkline([1.0, 2.0, 3.0])
    '▁▅█'
    """
    known = list(values)
    low, high = min(known, default=0.0), max(known, default=0.0)
    if low == high:
        return _LEVELS[3] * len(known)
    top = len(_LEVELS) - 1
    # Half a level is rounded up, so that the middle of three is above the bottom half.
    return "".join(_LEVELS[int((value - low) / (high - low) * top + 0.5)] for value in known)


def warning(text: str) -> RenderableType:
    """What holds the run up."""
    return Text(text, "yellow")


def _direction(change: float) -> tuple[str, str]:
    if change == 0:
        return " ", _SAME
    return ("▲", _UP) if change > 0 else ("▼", _DOWN)


def _table(left: Sequence[str], right: Sequence[str]) -> Table:
    out = Table(box=None, header_style="dim", pad_edge=False)
    for name in left:
        out.add_column(name, no_wrap=True)
    for name in right:
        out.add_column(name, justify="right", no_wrap=True)
    return out
