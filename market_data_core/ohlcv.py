"""Aggregation of events and partial bars into OHLCV bars, as pure functions on columns.

Sums are exact, so that the order in which events arrive, and how they are cut into batches, cannot change a
bit of the result. A float64 is split on a fixed grid into whole numbers ("limbs") that int64 adds without
rounding; the total goes back to a pair ``(hi, lo)`` with ``hi = fl(sum)`` and ``lo`` the rest (double-double,
T. J. Dekker, "A floating-point technique for extending the available precision", 1971). The grid reaches
down to 2**-96, below a unit in the last place of any price times size of 1e-13 or more; what is smaller is
rounded to it, each number by itself.

A pair holds 107 bits. So a bar is the same to the last bit however its events were cut as long as its total is
less than 2**53 times its smallest term; beyond that ``hi`` is still right to a unit in its last place.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from market_data_core.batch import F64, I64, BarBatch, EventBatch
from market_data_core.events import BarSeries, format_interval

_LIMB = 32
_BASE = float(1 << _LIMB)
_DIRECT = float(1 << 62)


def typical_price(batch: EventBatch) -> F64:
    """The price that VWAP weighs: ``c`` of a tick, ``(h + l + c) / 3`` of an event with a range.

    The typical price is the usual stand-in where the trades inside of a bar are not known.
    """
    if batch.h is batch.c and batch.l is batch.c:
        return batch.c
    flat = (batch.h == batch.c) & (batch.l == batch.c)
    return np.where(flat, batch.c, (batch.h + batch.l + batch.c) / 3.0)


def partial_bars(batch: EventBatch, window_ns: int) -> BarBatch:
    """The bars that ``batch`` alone makes in tumbling windows of ``window_ns``, one row a (symbol, window).

    Windows are ``[start, start + window_ns)``, aligned to the Unix epoch. ``open`` and ``close`` are by
    ``(src_ts, seq)``. Kinds and intervals of one provider's symbol fall together.
    """
    if len(batch) == 0:
        return BarBatch.empty()
    interval = format_interval(window_ns)
    table: dict[BarSeries, int] = {}
    lookup = [table.setdefault(BarSeries(s.provider, s.symbol, interval), len(table)) for s in batch.series]
    code = np.array(lookup, np.int32)[batch.code]
    return reduce_events(batch, code, tuple(table), window_ns)


def reduce_events(
    batch: EventBatch, code: NDArray[np.int32], series: tuple[BarSeries, ...], window_ns: int
) -> BarBatch:
    """:func:`partial_bars` with the bar series of each row already known: ``series[code[i]]``."""
    order = _time_order(code, batch.src_ts, batch.seq)
    code, src_ts, seq = code[order], batch.src_ts[order], batch.seq[order]
    ts = src_ts - src_ts % window_ns
    starts = _group_starts(code, ts)
    ends = np.append(starts[1:], len(code)) - 1
    # Adding zero makes -0.0 into 0.0: the two are equal, and which one is met first is chance.
    close, size = batch.c[order] + 0.0, batch.v[order]
    flat = batch.o is batch.c and batch.h is batch.c and batch.l is batch.c
    high = close if flat else batch.h[order] + 0.0
    low = close if flat else batch.l[order] + 0.0
    open_ = close if flat else batch.o[order] + 0.0
    price = close if flat else typical_price(batch)[order]
    volume, volume_lo = exact_sums(size, None, starts)
    notional, notional_lo = exact_sums(price * size, None, starts)
    return BarBatch(
        series=series,
        code=code[starts],
        ts=ts[starts],
        open=open_[starts],
        high=np.maximum.reduceat(high, starts),
        low=np.minimum.reduceat(low, starts),
        close=close[ends],
        volume=volume,
        volume_lo=volume_lo,
        notional=notional,
        notional_lo=notional_lo,
        n_events=ends - starts + 1,
        first_ts=src_ts[starts],
        first_seq=seq[starts],
        last_ts=src_ts[ends],
        last_seq=seq[ends],
        revision=np.ones(len(starts), np.int32),
    )


def merge_bars(bars: BarBatch) -> BarBatch:
    """Rows of equal (series, ts) merged into one, ordered by series code and ts.

    Merging is associative and commutative to the last bit. ``revision`` is the largest of the merged rows;
    ``notional`` is unknown (NaN) if one of them is.
    """
    if len(bars) == 0:
        return bars
    order = _series_order(bars.code, bars.ts)
    code, ts = bars.code[order], bars.ts[order]
    starts = _group_starts(code, ts)
    rows = bars.take(order)
    if len(starts) == len(bars):
        return rows
    first = _extreme(np.minimum, rows.first_ts, rows.first_seq, starts)
    last = _extreme(np.maximum, rows.last_ts, rows.last_seq, starts)
    volume, volume_lo = exact_sums(rows.volume, rows.volume_lo, starts)
    unknown = np.isnan(rows.notional)
    if unknown.any():
        known = np.where(unknown, 0.0, rows.notional), np.where(unknown, 0.0, rows.notional_lo)
        notional, notional_lo = exact_sums(*known, starts)
        notional[np.logical_or.reduceat(unknown, starts)] = np.nan
    else:
        notional, notional_lo = exact_sums(rows.notional, rows.notional_lo, starts)
    return BarBatch(
        series=bars.series,
        code=code[starts],
        ts=ts[starts],
        open=rows.open[first],
        high=np.maximum.reduceat(rows.high, starts),
        low=np.minimum.reduceat(rows.low, starts),
        close=rows.close[last],
        volume=volume,
        volume_lo=volume_lo,
        notional=notional,
        notional_lo=notional_lo,
        n_events=np.add.reduceat(rows.n_events, starts),
        first_ts=rows.first_ts[first],
        first_seq=rows.first_seq[first],
        last_ts=rows.last_ts[last],
        last_seq=rows.last_seq[last],
        revision=np.maximum.reduceat(rows.revision, starts),
    )


def exact_sums(hi: F64, lo: F64 | None, starts: NDArray[np.intp]) -> tuple[F64, F64]:
    """Sums of ``hi + lo`` over the groups that begin at ``starts``, each as a pair (sum, rounding error).

    Values must stay within the limits of :mod:`market_data_core.events`; they are finite.
    """
    largest = float(np.abs(hi).max(initial=0.0))
    if largest * len(hi) < float(1 << 53) and (lo is None or not lo.any()) and (hi == np.floor(hi)).all():
        return np.add.reduceat(hi, starts) + 0.0, np.zeros(len(starts))
    limbs = [np.add.reduceat(limb, starts) for limb in _split(hi, largest)]
    if lo is not None and lo.any():
        more = [np.add.reduceat(limb, starts) for limb in _split(lo, float(np.abs(lo).max()))]
        limbs = [a + b for a, b in zip(limbs, more, strict=True)]
    return _join(limbs)


def _split(values: F64, largest: float) -> list[I64]:
    """Signed limbs of weight 2**32, 1, 2**-32, 2**-64, 2**-96: truncated, since floor rounds below zero."""
    whole = np.trunc(values)
    rest = values - whole
    if largest * len(values) < _DIRECT:
        units = whole.astype(np.int64)
        upper = np.zeros(len(values), np.int64)
    else:
        upper_part = np.trunc(whole / _BASE)
        upper = upper_part.astype(np.int64)
        units = (whole - upper_part * _BASE).astype(np.int64)
    limbs = [upper, units]
    for _ in range(2):
        rest = rest * _BASE
        digit = np.trunc(rest)
        limbs.append(digit.astype(np.int64))
        rest = rest - digit
    limbs.append(np.rint(rest * _BASE).astype(np.int64) if rest.any() else np.zeros(len(values), np.int64))
    return limbs


def _join(limbs: list[I64]) -> tuple[F64, F64]:
    """The exact number of the limbs as (nearest float64, rest)."""
    carry = np.zeros_like(limbs[0])
    parts: list[F64] = []
    for index in (4, 3, 2, 1):
        total = limbs[index] + carry
        carry = total >> _LIMB
        parts.append((total & 0xFFFFFFFF).astype(np.float64) * _BASE ** (1 - index))
    parts.append((limbs[0] + carry).astype(np.float64) * _BASE)
    # Two-sum from the smallest part up (D. Knuth, TAOCP 4.2.2, theorem B), then once more to normalise.
    hi, errors = parts[0], np.zeros_like(parts[0])
    for part in parts[1:]:
        total_f = part + hi
        back = total_f - part
        error = (part - (total_f - back)) + (hi - back)
        hi, errors = total_f, errors + error
    total_f = hi + errors
    return total_f, errors - (total_f - hi)


def _time_order(code: NDArray[np.int32], src_ts: I64, seq: I64) -> NDArray[np.intp]:
    """Rows sorted by (code, src_ts, seq)."""
    if _ascending(src_ts, seq):
        return _by_code(code)
    # What comes nearly in order is sorted by time fast; then all it needs is a radix sort by code.
    by_time = np.argsort(src_ts, kind="stable")
    if not _ascending(src_ts[by_time], seq[by_time]):
        by_time = np.lexsort((seq, src_ts))
    return by_time[_by_code(code[by_time])]


def _ascending(src_ts: I64, seq: I64) -> bool:
    later = src_ts[1:] > src_ts[:-1]
    return bool((later | ((src_ts[1:] == src_ts[:-1]) & (seq[1:] >= seq[:-1]))).all())


def _by_code(code: NDArray[np.int32]) -> NDArray[np.intp]:
    """Rows sorted by code, otherwise in their order."""
    top = int(code.max())
    if top == 0:
        return np.arange(len(code))
    # numpy sorts 16 bits by radix.
    return np.argsort(code.astype(np.uint16) if top < 65_536 else code, kind="stable")


def _series_order(code: NDArray[np.int32], ts: I64) -> NDArray[np.intp]:
    """Rows sorted by (code, ts)."""
    if (ts == ts[0]).all():
        return _by_code(code)
    by_ts = np.argsort(ts, kind="stable")
    return by_ts[_by_code(code[by_ts])]


def _group_starts(code: NDArray[np.int32], ts: I64) -> NDArray[np.intp]:
    change = (code[1:] != code[:-1]) | (ts[1:] != ts[:-1])
    return np.concatenate(([0], np.flatnonzero(change) + 1))


def _extreme(reduce: np.ufunc, at: I64, seq: I64, starts: NDArray[np.intp]) -> NDArray[np.intp]:
    """The row with the smallest (``np.minimum``) or largest (``np.maximum``) (at, seq) of each group."""
    counts = np.diff(starts, append=len(at))
    rows = np.flatnonzero(at == np.repeat(reduce.reduceat(at, starts), counts))
    if len(rows) == len(starts):
        return rows
    # Several rows of one time: by seq, and of what is still equal the first.
    group = np.repeat(np.arange(len(starts)), counts)[rows]
    rows = rows[np.lexsort((seq[rows] if reduce is np.minimum else ~seq[rows], group))]
    return rows[np.concatenate(([True], group[1:] != group[:-1]))]
