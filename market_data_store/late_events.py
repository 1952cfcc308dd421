"""Late events into bars that are stored already: the one place where a stored bar is merged with something."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import AsyncConnection

from market_data_core.batch import BarBatch, EventBatch
from market_data_core.ohlcv import merge_bars, partial_bars
from market_data_store import bars as bars_table


@dataclass(frozen=True, slots=True)
class Amended:
    """``created``: bars of windows that had none. ``merged``: stored bars that now hold the events too.
    ``stale``: keys ``(provider, symbol, ts)`` of bars that another writer holds, with that writer."""

    created: BarBatch
    merged: BarBatch
    stale: dict[tuple[str, str, int], str]


async def amend(connection: AsyncConnection[Any], late: EventBatch, window_ns: int, writer: str) -> Amended:
    """Add ``late`` to the bars of their windows.

    A bar that another writer has rewritten since is left alone, because nobody can tell whether that writer
    has seen these events.

    Raises:
        psycopg.DataError, psycopg.IntegrityError: the server does not take a row; the transaction is over.
    """
    rest = bars_table.key_order(partial_bars(late, window_ns))
    created: list[BarBatch] = []
    merged: list[BarBatch] = []
    stale: dict[tuple[str, str, int], str] = {}
    while len(rest):
        found = await bars_table.find(connection, rest)
        mine = np.array([name == writer for name in found.writer], np.bool_)
        for row, name in zip(found.row.tolist(), found.writer, strict=True):
            if name != writer:
                series = rest.series[rest.code[row]]
                stale[series.provider, series.symbol, int(rest.ts[row])] = name
        # Somebody may change or insert one of these rows right now: then the next turn finds it so.
        again = [rest.take(np.setdiff1d(np.arange(len(rest)), found.row))]
        if len(again[0]):
            created.append(await bars_table.insert_new(connection, again[0], writer))
            again[0] = _without(again[0], created[-1])
        if mine.any():
            ours = found.bars.take(mine)
            news = rest.take(found.row[mine])
            both = merge_bars(BarBatch.concat([ours, news]))
            merged.append(await bars_table.amend(connection, both, both.revision, writer))
            again.append(_without(news, merged[-1]))
        rest = bars_table.key_order(BarBatch.concat(again))
    empty = BarBatch.empty()
    return Amended(
        BarBatch.concat(created) if created else empty,
        BarBatch.concat(merged) if merged else empty,
        stale,
    )


def rows_of(late: EventBatch, window_ns: int, bars: set[tuple[str, str, int]]) -> NDArray[np.intp]:
    """The rows of ``late`` that belong to the windows ``(provider, symbol, ts)`` in ``bars``."""
    starts = late.src_ts - late.src_ts % window_ns
    names = [(s.provider, s.symbol) for s in late.series]
    keys = zip(late.code.tolist(), starts.tolist(), strict=True)
    return np.flatnonzero(np.array([(*names[code], ts) in bars for code, ts in keys], np.bool_))


def _without(bars: BarBatch, done: BarBatch) -> BarBatch:
    """The rows of ``bars`` whose keys are not in ``done``; both share their series."""
    have = set(zip(done.code.tolist(), done.ts.tolist(), strict=True))
    keys = zip(bars.code.tolist(), bars.ts.tolist(), strict=True)
    return bars.take(np.array([key not in have for key in keys], np.bool_))
