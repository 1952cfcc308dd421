"""RollingFeatures: the features of many bars at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from market_data_core.batch import F64, I32, I64
from market_data_pipeline.features.definitions import Feature
from market_data_pipeline.features.history import NO_BAR, BarHistory
from market_data_pipeline.features.table import FeatureTable


def history_for(features: Sequence[Feature], interval_ns: int) -> BarHistory:
    """An empty history that holds what ``features`` need, of the bars and of the bars before them."""
    return BarHistory(interval_ns, reach_of(features) + look_back(features))


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
        self._look_back = look_back(features)

    def table(self, code: I32, ts: I64, *, with_previous: bool) -> FeatureTable:
        """The features of the bars ``(code, ts)`` (n), which the history holds, in that order.

        ``with_previous``: the bar before each, at most :func:`look_back` windows earlier, is a row too, behind those
        asked for, unless it is among them; and ``previous`` tells which.
        """
        raise NotImplementedError
