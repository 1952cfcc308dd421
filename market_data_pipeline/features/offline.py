"""Features of bars that are read from somewhere in order: the same code and the same numbers as in live use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np

from market_data_core.batch import I32, I64, BarBatch
from market_data_pipeline.features.definitions import Feature
from market_data_pipeline.features.history import SLACK
from market_data_pipeline.features.rolling import RollingFeatures, history_for
from market_data_pipeline.features.table import FeatureTable

SYMBOLS: Final = 64
"""Symbols that are held at once of a stream that comes symbol by symbol."""
_SLACK: Final = 2048
"""Windows of one symbol that are computed at once."""


class OfflineFeatures:
    """Tables of features from batches of bars of one interval, which come in order of time within each series.

    A bar's features are right once ``reach`` windows before it were in the stream, or nothing was stored there.

    Memory is that of a :class:`BarHistory` of all series, or, with ``by_symbol``, of :data:`SYMBOLS` at a time: for
    streams that finish with one symbol before the next begins, as those of the store do.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        interval_ns: int,
        *,
        by_symbol: bool = False,
        with_previous: bool = False,
    ) -> None:
        """``with_previous``: the bar before each is in its table too; see :meth:`RollingFeatures.table`."""
        slack = _SLACK if by_symbol else SLACK
        self._history = history_for(features, interval_ns, with_previous=with_previous, slack=slack)
        self._with_previous = with_previous
        self._rolling = RollingFeatures(features, self._history)
        self._by_symbol = by_symbol
        # glibc hands memory of a block's size back to the system each time, and taking it anew costs more than what is
        # computed in it, until a larger piece was freed once.
        np.empty(30 << 20, np.uint8)

    @property
    def names(self) -> tuple[str, ...]:
        """The features, in the order of the columns."""
        return tuple(feature.name for feature in self._rolling.features)

    @property
    def reach(self) -> int:
        """How many windows before the first bar wanted the stream must begin."""
        return self._history.reach

    def tables(self, bars: BarBatch) -> Iterator[FeatureTable]:
        """The features of ``bars``, in their order.

        Raises:
            ValueError: the stream is not in order, or a bar is of another interval.
        """
        for some in self._by_symbols(bars) if self._by_symbol else [bars]:
            code = self._history.codes_of(some)
            for piece in self._pieces(code, some.ts):
                self._history.put(some.take(piece))
                yield self._rolling.table(code[piece], some.ts[piece], with_previous=self._with_previous)
            if self._by_symbol:
                self._forget_all_but(code[-1:])

    def _by_symbols(self, bars: BarBatch) -> Iterator[BarBatch]:
        """``bars`` cut where :data:`SYMBOLS` symbols are done."""
        if len(bars) == 0:
            return
        table: dict[str, int] = {}
        symbol = np.array([table.setdefault(s.symbol, len(table)) for s in bars.series])[bars.code]
        cuts = (np.flatnonzero(symbol[1:] != symbol[:-1]) + 1)[SYMBOLS - 1 :: SYMBOLS]
        for begin, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(bars)], strict=True):
            yield bars.take(slice(begin, end))

    def _pieces(self, code: I32, ts: I64) -> Iterator[slice]:
        """Runs of rows that can be held at once; see :meth:`BarHistory.chunks`, which does not keep their order."""
        block = ts // self._history.interval_ns // (self._history.width - self._history.reach)
        order = np.argsort(code, kind="stable")
        ends = (code[order][1:] == code[order][:-1]) & (block[order][1:] != block[order][:-1])
        cuts = np.sort(order[1:][ends]).tolist()
        for begin, end in zip([0, *cuts], [*cuts, len(code)], strict=True):
            yield slice(begin, end)

    def _forget_all_but(self, last: I32) -> None:
        series = self._history.series
        done = [i for i, s in enumerate(series) if s.symbol != series[last[0]].symbol]
        self._history.forget(np.array(done, np.int32))


def feature_tables(
    batches: Iterable[BarBatch],
    features: Sequence[Feature],
    interval_ns: int,
    *,
    by_symbol: bool = False,
    with_previous: bool = False,
) -> Iterator[FeatureTable]:
    """:class:`OfflineFeatures` over all ``batches``."""
    offline = OfflineFeatures(features, interval_ns, by_symbol=by_symbol, with_previous=with_previous)
    for bars in batches:
        yield from offline.tables(bars)
