"""RollingFeatures: the features of many bars at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from market_data_core.batch import F64, I32, I64, Mask
from market_data_core.codecs import format_time
from market_data_pipeline.features.block import Block, depths
from market_data_pipeline.features.definitions import Feature
from market_data_pipeline.features.history import NO_BAR, SLACK, BarHistory
from market_data_pipeline.features.lookback import LookBack
from market_data_pipeline.features.table import FeatureTable

_CELLS: Final = 1 << 17
"""About how many cells a block has of its deepest column: what a core keeps close by."""
_ROWS: Final = 32
"""Bars of one window that are worth slices of the grid."""
_RUN: Final = 64
"""Bars of one series that are worth a block of all windows between them, with gaps shorter than this:"""
_GAP: Final = 8


def history_for(
    features: Sequence[Feature],
    interval_ns: int,
    *,
    with_previous: bool = True,
    ahead: int = 0,
    slack: int = SLACK,
) -> BarHistory:
    """An empty history that holds what ``features`` need, of bars and, ``with_previous``, of the bars before them too:
    about twice as much. ``ahead``: windows more, for whoever puts bars after those that are asked for. ``slack``: see
    :class:`BarHistory`."""
    reach = reach_of(features) + (look_back(features) if with_previous else 0) + ahead
    return BarHistory(interval_ns, reach, depths(tuple(features)), slack=slack)


def reach_of(features: Sequence[Feature]) -> int:
    """How many windows before its own the features of a bar look at."""
    return max((feature.reach for feature in features), default=0)


def look_back(features: Sequence[Feature]) -> int:
    """Within how many windows the bar before is looked for: as far as the features look, and 64 at least."""
    return max(reach_of(features), 64)


class RollingFeatures:
    """Features of bars held in a history, which :func:`history_for` makes.

    A row is a function of the bars within the reach of the features and of nothing else: the same to the last bit
    whatever other rows are asked for with it, and however the bars came.
    """

    def __init__(self, features: Sequence[Feature], history: BarHistory) -> None:
        self.features = tuple(features)
        self.history = history
        self.reach = reach_of(features)
        self._look_back = look_back(features)
        self._depth = depths(self.features)

    def table(self, code: I32, ts: I64, *, with_previous: bool) -> FeatureTable:
        """The features of the bars ``(code, ts)`` (n), in that order.

        ``with_previous``: the bar before each, at most :func:`look_back` windows earlier, is a row too, behind those
        asked for, unless it is among them; and ``previous`` tells which.

        Raises:
            ValueError: the history does not hold one of the bars, or is not made for the bars before.
        """
        history, n = self.history, len(code)
        if with_previous and history.reach < self.reach + self._look_back:
            raise ValueError(
                f"the history reaches {history.reach} windows back, and rows with those before them need "
                f"{self.reach + self._look_back}; make it by history_for(..., with_previous=True)"
            )
        previous = np.full(n, -1, np.int64)
        if with_previous and n:
            code, ts, previous = self._with_previous(code, ts)
        window = ts // history.interval_ns
        held = history.held(code, window)
        if not held.all():
            row = int(held.argmin())
            raise ValueError(
                f"no bar of {history.series[code[row]].symbol} at {format_time(int(ts[row]))} is held; put it first"
            )
        columns = {feature.name: np.empty(len(code)) for feature in self.features}
        if self.features and len(code):
            self._fill(columns, code, window)
        return FeatureTable(history.series, code, ts, ts + history.interval_ns, columns, previous)

    def _with_previous(self, code: I32, ts: I64) -> tuple[I32, I64, I64]:
        """The keys with those of the bars before behind them, and for each which row is before it."""
        n = len(code)
        before = self.history.previous(code, ts, self._look_back)
        some = np.flatnonzero(before != NO_BAR)
        keys = self._keys(np.append(code, code[some]), np.append(ts, before[some]))
        unique, first = np.unique(keys, return_index=True)
        # Rows asked for stay where they are, also those asked for twice; the others follow.
        new = first[first >= n]
        row = np.where(first < n, first, n + np.cumsum(first >= n) - 1)
        code, ts = np.append(code, code[some][new - n]), np.append(ts, before[some][new - n])
        before = np.append(before, self.history.previous(code[n:], ts[n:], self._look_back))
        known = np.flatnonzero(before != NO_BAR)
        wanted = self._keys(code[known], before[known])
        place = np.minimum(np.searchsorted(unique, wanted), len(unique) - 1)
        previous = np.full(len(code), -1, np.int64)
        previous[known] = np.where(unique[place] == wanted, row[place], -1)
        return code, ts, previous

    def _keys(self, code: I32, ts: I64) -> I64:
        """One number for each key (code, ts)."""
        return ts // self.history.interval_ns * len(self.history.series) + code

    def _fill(self, columns: dict[str, F64], code: I32, window: I64) -> None:
        """Compute every feature of every bar, by blocks: of one window, of one series, and of what is left."""
        order = np.argsort(window, kind="stable")
        groups, left = _runs(order, np.diff(window[order]) != 0, _ROWS)
        for rows in groups:
            self._same_window(columns, rows, code[rows], int(window[rows[0]]))
        order = left[np.lexsort((window[left], code[left]))]
        jumps = (np.diff(code[order]) != 0) | (np.diff(window[order]) > _GAP)
        groups, left = _runs(order, jumps, _RUN)
        for rows in groups:
            self._same_series(columns, rows, int(code[rows[0]]), window[rows])
        if len(left):
            for rows in np.array_split(left, -(-len(left) // self._width)):
                self._compute(columns, rows, LookBack(self.history, self._depth, code[rows], window[rows]))

    def _compute(
        self, columns: dict[str, F64], rows: I64, look: LookBack, chosen: I64 | slice = slice(None)
    ) -> None:
        """Fill in ``rows`` with the ``chosen`` bars of a block."""
        block = Block(look)
        for feature in self.features:
            columns[feature.name][rows] = block.compute(feature)[chosen]

    @property
    def _width(self) -> int:
        return max(1, _CELLS // max(self._depth.values()))

    def _same_window(self, columns: dict[str, F64], rows: I64, code: I32, window: int) -> None:
        low, high = int(code.min()), int(code.max()) + 1
        if high - low > 2 * len(code):
            for some in np.array_split(np.arange(len(rows)), -(-len(rows) // self._width)):
                self._compute(columns, rows[some], LookBack(self.history, self._depth, code[some], window))
            return
        # Most series of the range have this bar: slices of all cost less than picking some.
        order = np.argsort(code, kind="stable")
        for begin in range(low, high, self._width):
            part = slice(begin, min(begin + self._width, high))
            some = order[slice(*np.searchsorted(code, (part.start, part.stop), sorter=order))]
            look = LookBack(self.history, self._depth, part, window)
            self._compute(columns, rows[some], look, code[some].astype(np.int64) - part.start)

    def _same_series(self, columns: dict[str, F64], rows: I64, code: int, window: I64) -> None:
        for begin in range(int(window[0]), int(window[-1]) + 1, self._width):
            part = np.arange(begin, min(begin + self._width, int(window[-1]) + 1))
            some = slice(*np.searchsorted(window, (part[0], part[-1] + 1)))
            look = LookBack(self.history, self._depth, code, part)
            self._compute(columns, rows[some], look, window[some] - begin)


def _runs(order: I64, ends: Mask, least: int) -> tuple[list[I64], I64]:
    """``order`` (n) cut behind each of ``ends`` (n - 1): the pieces of ``least`` rows or more, and all other rows."""
    starts = np.flatnonzero(np.append(True, ends)[: len(order)])
    lengths = np.diff(starts, append=len(order))
    long = lengths >= least
    pieces = zip(starts[long].tolist(), lengths[long].tolist(), strict=True)
    return [order[start : start + length] for start, length in pieces], order[~np.repeat(long, lengths)]
