"""Stored bars as tables of features to train on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from market_data_core.batch import BarBatch
from market_data_core.events import format_interval
from market_data_pipeline.features.definitions import Feature
from market_data_pipeline.features.offline import OfflineFeatures
from market_data_pipeline.features.table import FeatureTable
from market_data_pipeline.inference.training import close_feature


class BarPages(Protocol):
    """What of the store is needed."""

    def bar_pages(
        self,
        symbols: Sequence[str] | None = None,
        *,
        interval: str,
        provider: str | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> AsyncIterator[BarBatch]:
        """Bars of ``[start, end)``, ordered by symbol and time."""
        ...


@dataclass(frozen=True, slots=True)
class Range:
    """Which bars: those of ``symbols`` that begin in ``[start, end)`` (ns UTC), of one provider or of all."""

    symbols: tuple[str, ...]
    provider: str | None
    interval_ns: int
    start: int
    end: int


async def read_tables(store: BarPages, bars: Range, features: Sequence[Feature]) -> list[FeatureTable]:
    """The features of the bars, and their closes. Bars before ``start`` are read for what looks back at them."""
    step = bars.interval_ns
    offline = OfflineFeatures((*features, close_feature(step)), step, by_symbol=True)
    found: list[FeatureTable] = []
    async for page in store.bar_pages(
        bars.symbols,
        interval=format_interval(step),
        provider=bars.provider,
        start=bars.start - offline.reach * step,
        end=bars.end,
    ):
        found += [table.take(np.flatnonzero(table.ts >= bars.start)) for table in offline.tables(page)]
    return found
