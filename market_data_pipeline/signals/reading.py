"""Signals and the bars that followed them, from the store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from market_data_core.batch import F64, I64, BarBatch
from market_data_core.events import Signal, parse_interval
from market_data_core.times import MIN_TIME
from market_data_pipeline.signals.outcomes import Following, Outcomes

FIRST_SPAN: Final = 64
"""In bars: how far before the first signal of a series its price is looked for; then four times as far, and so on."""
MOST_STEPS: Final = 30

_ROW: Final = np.dtype(
    [("series", "i4"), ("name", "i4"), ("ts", "i8"), ("value", "f8"), ("score", "f8"), ("withdrawn", "?")]
)


class Store(Protocol):
    """What of the store is needed."""

    def signal_pages(
        self,
        *,
        symbols: list[str] | None = None,
        provider: str | None = None,
        name: str | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> AsyncIterator[list[Signal]]:
        """Signals of ``[start, end)``, ordered by (symbol, ts, provider, name)."""
        ...

    def bar_pages(
        self,
        symbols: list[str] | None = None,
        *,
        interval: str,
        provider: str | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> AsyncIterator[BarBatch]:
        """Bars of ``[start, end)``, ordered by (symbol, ts, provider)."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """Which signals, and what is asked of them. ``start``, ``end`` and ``horizon`` in ns; ``interval`` of the bars."""

    start: int
    end: int
    horizon: int
    interval: str
    symbols: tuple[str, ...] = ()
    provider: str | None = None
    name: str | None = None


def steps_to(horizon: int, interval: int) -> I64:
    """The ends of up to 30 steps up to ``horizon``: whole bars, or equal parts where that would be more."""
    if horizon <= MOST_STEPS * interval:
        return np.append(np.arange(interval, horizon, interval, dtype=np.int64), np.int64(horizon))
    return np.arange(1, MOST_STEPS + 1, dtype=np.int64) * horizon // MOST_STEPS


async def read_outcomes(store: Store, question: Question, steps: I64) -> Outcomes:
    """The signals asked for, each followed along the bars of its own provider and symbol.

    ``steps``: ns after a signal at which its path is wanted, ascending; the last is the horizon. In memory are the
    columns of the signals and one page of bars, whatever the range.
    """
    series: dict[tuple[str, str], int] = {}
    names: dict[str, int] = {}
    pages = [np.empty(0, _ROW)]
    async for page in store.signal_pages(
        symbols=list(question.symbols) or None,
        provider=question.provider,
        name=question.name,
        start=question.start,
        end=question.end,
    ):
        rows = [
            (
                series.setdefault((s.symbol, s.provider), len(series)),
                names.setdefault(s.name, len(names)),
                s.ts,
                s.value,
                s.score,
                "withdrawn" in s.meta,
            )
            for s in page
        ]
        pages.append(np.array(rows, _ROW))
    found = np.concatenate(pages)
    # By series, and within one still by time.
    found = found[np.argsort(found["series"], kind="stable")]
    bounds = np.searchsorted(found["series"], np.arange(len(series) + 1))
    forward, unpriced = np.full(len(found), np.nan), np.zeros(len(found), np.bool_)
    path = np.full((len(found), len(steps)), np.nan, np.float32)
    for (symbol, provider), start, end in zip(series, bounds[:-1], bounds[1:], strict=True):
        rows_of = slice(int(start), int(end))
        following = Following(found["ts"][rows_of], steps)
        await _follow(store, question.interval, symbol, provider, int(found["ts"][start]), following)
        forward[rows_of], unpriced[rows_of] = following.forward(), following.unpriced()
        path[rows_of] = following.path()
    symbols = {symbol: code for code, symbol in enumerate(dict.fromkeys(symbol for symbol, _ in series))}
    symbol_of = np.array([symbols[symbol] for symbol, _ in series], np.int32)
    by_time = np.argsort(found["ts"], kind="stable")
    found = found[by_time]
    return Outcomes(
        names=tuple(names),
        symbols=tuple(symbols),
        name=found["name"].copy(),
        symbol=symbol_of[found["series"]],
        ts=found["ts"].copy(),
        value=found["value"].copy(),
        score=found["score"].copy(),
        withdrawn=found["withdrawn"].copy(),
        forward=forward[by_time],
        unpriced=unpriced[by_time],
        steps=steps,
        path=path[by_time],
    )


async def _follow(
    store: Store, interval: str, symbol: str, provider: str, first: int, following: Following
) -> None:
    """Feed ``following`` the bars from the newest that had ended by ``first`` on, until it needs no more."""
    length = parse_interval(interval)
    begun = first - length + 1  # whatever begins before has ended by ``first``
    span, end = FIRST_SPAN * length, begun
    while end > MIN_TIME:
        start = max(end - span, MIN_TIME)
        newest: BarBatch | None = None
        async for page in store.bar_pages(
            [symbol], interval=interval, provider=provider, start=start, end=end
        ):
            newest = page
        if newest is not None:
            following.feed(*_prices(newest, length))
            break
        span, end = 4 * span, start
    async for page in store.bar_pages([symbol], interval=interval, provider=provider, start=begun):
        following.feed(*_prices(page, length))
        if following.complete:
            break


def _prices(bars: BarBatch, length: int) -> tuple[I64, F64]:
    """When each bar ended, and its close."""
    return bars.ts + length, bars.close
