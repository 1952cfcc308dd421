"""RollingFeatures: the features of many bars at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from market_data_core.batch import F64, I32, I64
from market_data_core.codecs import format_time
from market_data_pipeline.features.block import Block, depths
from market_data_pipeline.features.definitions import Feature
from market_data_pipeline.features.history import NO_BAR, BarHistory
from market_data_pipeline.features.lookback import LookBack
from market_data_pipeline.features.table import FeatureTable

_CELLS: Final = 1 << 17
"""About how many cells a block has of its deepest column: what a core keeps close by."""
_ROWS: Final = 32
"""Bars of one window that are worth slices of the grid."""


def history_for(
    features: Sequence[Feature], interval_ns: int, *, with_previous: bool = True, ahead: int = 0
) -> BarHistory:
    """An empty history that holds what ``features`` need, of bars and, ``with_previous``, of the bars before them too:
    about twice as much. ``ahead``: windows more, for whoever puts bars after those that are asked for."""
    reach = reach_of(features) + (look_back(features) if with_previous else 0) + ahead
    return BarHistory(interval_ns, reach, depths(tuple(features)))


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
        """Compute every feature of every bar, by blocks."""
        order = np.argsort(window, kind="stable")
        cuts = np.flatnonzero(np.diff(window[order])) + 1
        groups = np.split(order, cuts)
        single = [rows for rows in groups if len(rows) < _ROWS]
        for rows in groups:
            if len(rows) >= _ROWS:
                self._same_window(columns, rows, code[rows], int(window[rows[0]]))
        if single:
            rows = np.concatenate(single)
            for part in np.array_split(rows, -(-len(rows) // self._width)):
                block = Block(LookBack(self.history, self._depth, code[part], window[part]))
                for feature in self.features:
                    columns[feature.name][part] = block.compute(feature)

    @property
    def _width(self) -> int:
        return max(1, _CELLS // max(self._depth.values()))

    def _same_window(self, columns: dict[str, F64], rows: I64, code: I32, window: int) -> None:
        low, high = int(code.min()), int(code.max()) + 1
        if high - low <= 2 * len(code):
            # Most series of the range have this bar: slices of all cost less than picking some.
            dense = {feature.name: np.empty(high - low) for feature in self.features}
            for begin in range(low, high, self._width):
                part = slice(begin, min(begin + self._width, high))
                block = Block(LookBack(self.history, self._depth, part, window))
                for feature in self.features:
                    dense[feature.name][part.start - low : part.stop - low] = block.compute(feature)
            for name, values in dense.items():
                columns[name][rows] = values[code - low]
            return
        for begin in range(0, len(rows), self._width):
            some = slice(begin, begin + self._width)
            block = Block(LookBack(self.history, self._depth, code[some], window))
            for feature in self.features:
                columns[feature.name][rows[some]] = block.compute(feature)
