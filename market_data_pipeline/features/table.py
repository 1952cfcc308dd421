"""FeatureTable: features of many bars as columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from market_data_core.batch import F64, I32, I64
from market_data_core.events import BarSeries


@dataclass(frozen=True, slots=True, eq=False)
class FeatureTable:
    """Features of ``n`` bars. Every array has the length ``n``.

    Row ``i`` is the bar of ``series[code[i]]`` that began at ``ts[i]`` and ended at ``at[i]`` (ns UTC): what is known
    at ``at[i]`` and not a moment later. ``columns`` holds a float64 array for each feature asked for; a feature of too
    little history is NaN. ``previous[i]`` is the row of the bar before of the same series, -1 where there is none in
    the table.
    """

    series: tuple[BarSeries, ...]
    code: I32
    ts: I64
    at: I64
    columns: Mapping[str, F64]
    previous: I64

    def __len__(self) -> int:
        return len(self.code)

    def take(self, rows: I64) -> FeatureTable:
        """The given rows, in that order. ``previous`` is followed where that row is among them."""
        place = np.full(len(self) + 1, -1, np.int64)
        place[rows] = np.arange(len(rows))
        columns = {name: column[rows] for name, column in self.columns.items()}
        previous = place[self.previous[rows]]
        return FeatureTable(self.series, self.code[rows], self.ts[rows], self.at[rows], columns, previous)
