"""Tables of features for tests, without bars behind them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from market_data_core.batch import F64
from market_data_core.events import BarSeries
from market_data_pipeline.features.table import FeatureTable

INTERVAL_NS = 2 * 10**9
T0 = 1_700_000_000 * 10**9


def feature_table(columns: Mapping[str, F64], symbols: int = 1) -> FeatureTable:
    """Bars of 2 s, one of each of ``symbols`` symbols in turn, with the given columns."""
    n = len(next(iter(columns.values())))
    row = np.arange(n)
    ts = T0 + row // symbols * INTERVAL_NS
    return FeatureTable(
        series=tuple(BarSeries("sim", f"S{i}", "2s") for i in range(symbols)),
        code=(row % symbols).astype(np.int32),
        ts=ts,
        at=ts + INTERVAL_NS,
        columns=columns,
        previous=np.maximum(row - symbols, -1),
    )
