"""Tables of features with gaps, as rules see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import yaml

from market_data_core.batch import F64
from market_data_core.events import BarSeries
from market_data_pipeline.features.table import FeatureTable
from market_data_pipeline.inference.adapters.rules import Rules
from market_data_pipeline.inference.rules_file import rules_of

MINUTE: Final = 60 * 10**9
FEATURES: Final = ("price", "rsi", "momentum", "volatility", "volume")
"""The names that stand in the tests' rules."""
SERIES: Final = (
    BarSeries("p1", "SPY", "1m"),
    BarSeries("p1", "BRK.A", "1m"),
    BarSeries("p2", "SPY", "5m"),
)


def table(code: Sequence[int], columns: Mapping[str, Sequence[float] | F64]) -> FeatureTable:
    """Bars of :data:`SERIES` by ``code``, one after the other; columns that are not given are 1."""
    n = len(code)
    last: dict[int, int] = {}
    previous = []
    for row, c in enumerate(code):
        previous.append(last.get(c, -1))
        last[c] = row
    ts = np.arange(n, dtype=np.int64) * MINUTE
    full = {name: np.array(columns.get(name, np.ones(n)), np.float64) for name in FEATURES}
    return FeatureTable(
        SERIES, np.array(code, np.int32), ts, ts + MINUTE, full, np.array(previous, np.int64).reshape(n)
    )


def rules(*written: dict[str, object]) -> Rules:
    """An adapter of rules; a name, a signal and a score are added where they are left out."""
    filled = [{"name": f"r{i}", "signal": 1.0, "score": 0.5} | rule for i, rule in enumerate(written)]
    return Rules(rules_of(yaml.safe_dump(filled).encode(), Path("rules.yaml"), FEATURES))


def every(of: FeatureTable) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """All rows."""
    return np.arange(len(of), dtype=np.int64)
