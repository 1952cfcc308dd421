"""What the live view draws, as a terminal would show it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from market_data_core.events import Bar, Signal
from market_data_pipeline.cli import picture

NOON = 1_700_049_600_000_000_000
FIGURES = (("events", "11,913", ""), ("behind", "1,168 ms", ""), ("dead letters", "0", "red"))


def bar(symbol: str = "SPY", close: float = 10.5, interval: str = "1s") -> Bar:
    return Bar("synthetic", symbol, interval, NOON, 10.0, 11.0, 9.0, close, 1234.0, 10.25, 7, NOON, NOON, 1)


def drawn(what: RenderableType, width: int) -> list[str]:
    """Its lines, without colours."""
    console = Console(file=StringIO(), width=width, color_system=None)
    with console.capture() as captured:
        console.print(what)
    return [line.rstrip() for line in captured.get().splitlines()]


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=40))
def test_a_line_of_closes_keeps_their_order(closes: list[float]) -> None:
    line = picture.sparkline(closes)
    assert len(line) == len(closes)
    # The characters of the blocks are in the order of their heights.
    for (a, x), (b, y) in zip(
        zip(closes, line, strict=True), list(zip(closes, line, strict=True))[1:], strict=False
    ):
        assert a > b or x <= y
    if min(closes) < max(closes):
        assert {line[closes.index(min(closes))], line[closes.index(max(closes))]} == {"▁", "█"}


@pytest.mark.parametrize(("width", "rows"), [(60, 1), (35, 1), (34, 2), (12, 3), (1, 3)])
def test_figures_take_as_many_rows_as_they_need(width: int, rows: int) -> None:
    lines = drawn(picture.figures(FIGURES, width), max(width, 20))
    assert len(lines) == 2 * rows
    words = " ".join(lines)
    assert all(name in words and value in words for name, value, _ in FIGURES)


def bars(newest: Sequence[Bar], closes: Sequence[float], width: int, more: int = 0) -> list[str]:
    return drawn(
        picture.bars(newest, {picture.series_of(b): deque(closes) for b in newest}, "1s", more, width), width
    )


def test_a_bar_says_where_its_close_went() -> None:
    assert "10.50  ▲" in bars([bar()], [10.4, 10.5], 120)[1]
    assert "10.50  ▼" in bars([bar()], [10.6, 10.5], 120)[1]
    assert not {"▲", "▼"} & set(bars([bar()], [10.5, 10.5], 120)[1])


def test_a_bar_fits_a_terminal_of_80_characters_with_nothing_cut() -> None:
    head, line, more = bars([bar(close=12345.678)], [1.0, 2.0], 80, more=3)
    assert "closes" not in head
    assert line.split() == [
        "SPY",
        "12:00:00",
        "10.00",
        "11.00",
        "9.00",
        "12,345.68",
        "▲",
        "1,234",
        "10.250",
        "7",
    ]
    assert more == "… and 3 more"


def test_an_interval_is_told_where_it_is_another_one() -> None:
    assert bars([bar(interval="1m")], [10.5], 120)[1].startswith("SPY 1m ")
    assert bars([bar()], [10.5], 120)[1].startswith("SPY     12:00:00")


def test_signals_are_one_a_line_with_the_price_if_it_is_known() -> None:
    made = [
        Signal("x", "SPY", NOON, "up", 1.0, 0.8, {"price": 12.5}),
        Signal("x", "QQQ", NOON, "flat", 0.0, 0.9),
    ]
    _, up, flat = drawn(picture.signals(made), 80)
    assert up.split() == ["SPY", "12:00:00", "up", "+1", "0.80", "12.50"]
    assert flat.split() == ["QQQ", "12:00:00", "flat", "0", "0.90"]
