"""Bars already stored, as a provider of ``bar`` events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from market_data_core.batch import BarBatch, EventBatch
from market_data_core.events import Series, parse_interval

FIRST_SPAN: Final = 64
LARGEST_SPAN: Final = 1 << 20
"""In bars of one symbol."""
ROWS: Final = 50_000
"""About as many bars are read at once."""


class BarReader(Protocol):
    """What of the store is needed."""

    async def bars(
        self,
        symbols: list[str] | None = None,
        *,
        interval: str,
        provider: str | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> BarBatch:
        """Bars of ``[start, end)``."""
        ...


@dataclass(frozen=True, slots=True)
class StoredBars:
    """The bars of ``interval`` in ``[start, end)`` (ns UTC), in time order over all symbols.

    They are read a span of time at once, which grows where bars are few. ``seq`` is 0: a bar is alone at its time.
    ``provider``: only that one's bars; None for all. Their events carry the provider of the bar.
    """

    store: BarReader
    interval: str
    start: int
    end: int
    symbols: tuple[str, ...] = ()
    provider: str | None = None
    can_wait: bool = True

    @property
    def name(self) -> str:
        return self.provider or "store"

    async def batches(self) -> AsyncIterator[EventBatch]:
        step = parse_interval(self.interval)
        bars = FIRST_SPAN
        at = self.start
        while at < self.end:
            until = min(at + bars * step, self.end)
            found = await self.store.bars(
                list(self.symbols) or None,
                interval=self.interval,
                provider=self.provider,
                start=at,
                end=until,
            )
            at = until
            if len(found):
                yield _events(found)
            if len(found) < ROWS // 4:
                bars = min(bars * 4, LARGEST_SPAN)
            elif len(found) > ROWS:
                bars = max(bars // 4, 1)


def _events(bars: BarBatch) -> EventBatch:
    order = np.argsort(bars.ts, kind="stable")
    zeros = np.zeros(len(bars), np.int64)
    return EventBatch(
        series=tuple(Series(s.provider, s.symbol, "bar", s.interval) for s in bars.series),
        code=bars.code[order],
        src_ts=bars.ts[order],
        ingest_ts=zeros,
        o=bars.open[order],
        h=bars.high[order],
        l=bars.low[order],
        c=bars.close[order],
        v=bars.volume[order],
        seq=zeros,
    )
