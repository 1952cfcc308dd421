"""Batches as columns: the nouns of the hot path.

Every array of a batch is one-dimensional and of the same length ``n``. Names are dictionary-encoded:
``series[code[i]]`` is what row ``i`` belongs to. Batches are immutable by convention: nobody writes into
the arrays of a batch it did not make.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from market_data_core.events import Bar, BarSeries, Series, StreamEvent

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]


def extends(series: tuple[Any, ...], old: tuple[Any, ...]) -> bool:
    """Whether ``series`` is ``old`` with more behind, so that what was worked out for ``old`` still holds."""
    return series[: len(old)] == old


class _Columns:
    """Row operations that every batch shares; ``series`` is carried over, columns are indexed."""

    series: tuple[Any, ...]
    code: I32

    def __len__(self) -> int:
        return len(self.code)

    def take(self, rows: NDArray[Any] | slice) -> Self:
        """The given rows (an index array, a mask or a slice), in that order.

        Columns that were one array (the prices of ticks) stay one.
        """
        taken: dict[int, NDArray[Any]] = {}
        columns = {}
        for f in fields(self):  # type: ignore[arg-type]
            if f.name != "series":
                column = getattr(self, f.name)
                if id(column) not in taken:
                    taken[id(column)] = column[rows]
                columns[f.name] = taken[id(column)]
        return cast(Any, type(self))(series=self.series, **columns)  # type: ignore[no-any-return]

    def with_series(self, series: tuple[Any, ...]) -> Self:
        """The same rows under another series table in which every code means the same."""
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "series"}  # type: ignore[arg-type]
        return cast(Any, type(self))(series=series, **columns)  # type: ignore[no-any-return]

    @classmethod
    def concat(cls, batches: Sequence[Self]) -> Self:
        """All rows in order; series tables are merged when they differ. Columns that were one array in every
        batch stay one."""
        if len(batches) == 1:
            return batches[0]
        table: dict[Any, int] = {}
        codes: list[I32] = []
        shared = all(b.series is batches[0].series for b in batches)
        for batch in batches:
            if shared:
                codes.append(batch.code)
            else:
                lookup = [table.setdefault(s, len(table)) for s in batch.series]
                codes.append(np.array(lookup, np.int32)[batch.code] if lookup else batch.code)
        joined: dict[tuple[int, ...], NDArray[Any]] = {}
        columns = {}
        for f in fields(cls):  # type: ignore[arg-type]
            if f.name not in ("series", "code"):
                pieces = [getattr(b, f.name) for b in batches]
                same = tuple(map(id, pieces))
                if same not in joined:
                    joined[same] = np.concatenate(pieces)
                columns[f.name] = joined[same]
        series = batches[0].series if shared else tuple(table)
        return cast(Any, cls)(series=series, code=np.concatenate(codes), **columns)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True, eq=False)
class EventBatch(_Columns):
    """Events as columns. Times in int64 nanoseconds UTC, prices and sizes in float64.

    ``o h l`` may be the very array of ``c`` (ticks), which codecs use to send it once.
    """

    series: tuple[Series, ...]
    code: I32
    src_ts: I64
    ingest_ts: I64
    o: F64
    h: F64
    l: F64
    c: F64
    v: F64
    seq: I64

    __len__ = _Columns.__len__

    @classmethod
    def empty(cls) -> EventBatch:
        i, f = np.empty(0, np.int64), np.empty(0, np.float64)
        return cls((), np.empty(0, np.int32), i, i, f, f, f, f, f, i)

    @classmethod
    def from_events(cls, events: Iterable[StreamEvent]) -> EventBatch:
        """Columns of the given events, in order."""
        rows = list(events)
        table: dict[Series, int] = {}
        code = [table.setdefault(Series(e.provider, e.symbol, e.kind, e.interval), len(table)) for e in rows]

        def ints(name: str) -> I64:
            return np.array([getattr(e, name) for e in rows], np.int64)

        def floats(name: str) -> F64:
            return np.array([getattr(e, name) for e in rows], np.float64)

        return cls(
            series=tuple(table),
            code=np.array(code, np.int32),
            src_ts=ints("src_ts"),
            ingest_ts=ints("ingest_ts"),
            o=floats("o"),
            h=floats("h"),
            l=floats("l"),
            c=floats("c"),
            v=floats("v"),
            seq=ints("seq"),
        )

    def events(self) -> list[StreamEvent]:
        """The rows, one object each: for people and tests, not for the hot path."""
        columns = (self.src_ts, self.ingest_ts, self.o, self.h, self.l, self.c, self.v, self.seq)
        rows = zip(self.code.tolist(), *(c.tolist() for c in columns), strict=True)
        return [StreamEvent(*self.series[code], *rest) for code, *rest in rows]


@dataclass(frozen=True, slots=True, eq=False)
class BarBatch(_Columns):
    """Bars, or partial bars, as columns.

    ``volume + volume_lo`` and ``notional + notional_lo`` are the exact sums of size and of price times
    size as pairs of float64 (the second is the rounding error of the first), so that a bar amended or
    merged in any order ends equal to the last bit. ``notional`` is NaN where it is not known: a vendor's
    bar stored as it came. ``first_*`` and ``last_*`` are the positions ``(src_ts, seq)`` of open and close.
    """

    series: tuple[BarSeries, ...]
    code: I32
    ts: I64
    open: F64
    high: F64
    low: F64
    close: F64
    volume: F64
    volume_lo: F64
    notional: F64
    notional_lo: F64
    n_events: I64
    first_ts: I64
    first_seq: I64
    last_ts: I64
    last_seq: I64
    revision: I32

    __len__ = _Columns.__len__

    @classmethod
    def empty(cls) -> BarBatch:
        i, f = np.empty(0, np.int64), np.empty(0, np.float64)
        j = np.empty(0, np.int32)
        return cls((), j, i, f, f, f, f, f, f, f, f, i, i, i, i, i, j)

    @property
    def vwap(self) -> F64:
        """Volume-weighted average price, sum(price * size) / sum(size); NaN where nothing was traded."""
        out = np.full(len(self), np.nan)
        np.divide(self.notional, self.volume, out=out, where=self.volume > 0)
        return out

    def bars(self) -> list[Bar]:
        """The rows, one object each: for people and tests, not for the hot path."""
        first = ("ts", "open", "high", "low", "close", "volume")
        rest = ("n_events", "first_ts", "last_ts", "revision")
        columns: list[list[Any]] = [getattr(self, name).tolist() for name in (*first, *rest)]
        vwaps = [None if math.isnan(v) else v for v in self.vwap.tolist()]
        out = []
        for code, vwap, row in zip(self.code.tolist(), vwaps, zip(*columns, strict=True), strict=True):
            provider, symbol, interval = self.series[code]
            ts, o, h, low, c, v, n, first_ts, last_ts, revision = row
            out.append(
                Bar(provider, symbol, interval, ts, o, h, low, c, v, vwap, n, first_ts, last_ts, revision)
            )
        return out
