"""BarHistory: the newest bars of many series, as columns on a grid of time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from market_data_core.batch import F64, I32, I64, BarBatch, Mask, extends
from market_data_core.events import BarSeries, format_interval

NO_BAR: Final = -(1 << 62)
"""In place of a time or a window: there is none. Far from the ends of int64, so that it can be reckoned with."""
FAR: Final = int(np.iinfo(np.int16).max)
"""In place of a distance: there is no bar before, or it is further away than anything looks."""
SLACK: Final = 64
"""Fewest windows held beyond the reach, unless told."""

EMPTY: Final[dict[str, Any]] = {
    "open": 0.0,
    "high": -np.inf,
    "low": np.inf,
    "close": np.nan,
    "volume": 0.0,
    "notional": 0.0,
    "n_events": 0.0,
    "change": 0.0,
    "log_return": 0.0,
    "distance": np.int16(FAR),
    "present": np.int16(0),
    "began": np.int64(NO_BAR),
    "revision": np.int32(0),
}
"""What a cell without a bar holds: what changes nothing where the column is added up, or its extreme is taken.

``change`` and ``log_return`` are of the close since that of the bar before, ``distance`` windows earlier.
"""
ALWAYS: Final = frozenset({"close", "distance", "present", "began", "revision"})


class BarHistory:
    """The newest windows of every series, of one interval, up to ``reach`` windows behind any bar that is put.

    Each column is an array ``[W, S]``: time first, so that one window of all series is one row and a horizon is a
    few rows. ``W``, a power of two, is at least ``reach + 1 + slack``. The bar of window ``w = ts // interval`` of the
    series with code ``s`` is in the cell ``(w mod W, s)``. A series holds the windows ``(newest - W, newest]``, where
    ``newest`` is that of its newest bar, and each series moves on by itself. Where two bars of a series began within
    one window, which only a vendor's can, the later one is held.

    Memory is :attr:`bytes_a_series`, ``W`` times the bytes of its columns, and never more: 80 a window with all of
    them, so 40 KiB where ``W`` is 512. A page of a column is taken when a series of it comes.
    """

    def __init__(
        self, interval_ns: int, reach: int, columns: Iterable[str] = EMPTY, *, slack: int = SLACK
    ) -> None:
        """``columns``: what to hold of each bar, of :data:`EMPTY`; those of :data:`ALWAYS` are always held. ``slack``:
        how many windows at least can be put, and their features computed, at once."""
        self.interval_ns = interval_ns
        self.reach = reach
        self.width = 1 << (reach + slack).bit_length()
        self._interval = format_interval(interval_ns)
        names = ALWAYS.union(columns)
        self._columns: dict[str, NDArray[Any]] = {
            name: np.zeros((self.width, 0), np.asarray(value).dtype)
            for name, value in EMPTY.items()
            if name in names
        }
        self._series: list[BarSeries] = []
        self._code: dict[BarSeries, int] = {}
        self._free: list[int] = []
        self._newest: I64 = np.empty(0, np.int64)
        self._since: I64 = np.empty(0, np.int64)
        self._table: tuple[BarSeries, ...] = ()
        self._lookup: I32 = np.empty(0, np.int32)
        self._names: tuple[BarSeries, ...] = ()

    @property
    def series(self) -> tuple[BarSeries, ...]:
        """The series by their codes; a code that was forgotten and not given again has its old one."""
        if len(self._names) != len(self._series):
            self._names = tuple(self._series)
        return self._names

    @property
    def bytes_a_series(self) -> int:
        """What holding one series takes."""
        return self.width * sum(cells.itemsize for cells in self._columns.values())

    def codes(self, series: Iterable[BarSeries]) -> I32:
        """The code of each series; one not known yet is given a code.

        Raises:
            ValueError: a series of another interval.
        """
        return np.array([self._register(s) for s in series], np.int32)

    def covered(self, code: I32, ts: I64) -> Mask:
        """For which bars (n) everything within ``reach`` is in memory, so that they can be put and their features
        are right: the series is loaded, and ``[ts - reach windows, ts]`` is inside of what is held."""
        window = ts // self.interval_ns
        return (window - self.reach >= self._since[code]) & (
            window > self._newest[code] - (self.width - self.reach)
        )

    def within(self, code: I32, ts: I64) -> Mask:
        """Which bars began inside of what is held of their series, though not all that they look back to may be: a
        bar that comes there must be put, or those after it would miss it."""
        window = ts // self.interval_ns
        return (window >= self._since[code]) & (window > self._newest[code] - self.width)

    def mark_loaded(self, code: I32, since_ts: int | I64) -> None:
        """Every bar of these series that began at or after ``since_ts`` has been put, or will be before it is asked
        for. ``since_ts`` is one time or one for each code."""
        since = np.asarray(-(-np.asarray(since_ts, np.int64) // self.interval_ns))
        np.minimum.at(self._since, code, since)

    def loaded(self, code: I32) -> Mask:
        """Which of these series were loaded, from whenever on."""
        known: Mask = self._since[code] != np.iinfo(np.int64).max
        return known

    def forget(self, code: I32) -> None:
        """Drop these series; their codes go to others that come."""
        for s in np.unique(code).tolist():
            if self._code.get(self._series[s]) == s:
                del self._code[self._series[s]]
                self._free.append(s)
                self._newest[s], self._since[s] = NO_BAR, np.iinfo(np.int64).max
        self._table, self._lookup = (), self._lookup[:0]

    def chunks(self, code: I32, ts: I64) -> Iterator[I64]:
        """The rows of keys (n) in pieces to be put and evaluated one after the other, older ones first.

        No put of a piece drops what another row of the same piece needs.
        """
        block = ts // self.interval_ns // (self.width - self.reach)
        first = np.full(len(self._series), np.iinfo(np.int64).max)
        np.minimum.at(first, code, block)
        block = block - first[code]
        if not block.any():
            yield np.arange(len(code))
            return
        order = np.argsort(block, kind="stable")
        cuts = np.flatnonzero(np.diff(block[order])) + 1
        yield from np.split(order, cuts)

    def put(self, bars: BarBatch) -> None:
        """Hold ``bars``, whatever their order. Of several of one window the newest revision is held, of equal ones the
        last; a revision older than the one held changes nothing.

        Raises:
            ValueError: a bar of another interval, or one too old to be held beside the newest of its series: ask
                :meth:`covered` first and go by :meth:`chunks`. Nothing was put then.
        """
        if len(bars) == 0:
            return
        code = self.codes_of(bars)
        window = bars.ts // self.interval_ns
        rows = _latest(code, window, bars.ts, bars.revision)
        if rows is not None:
            code, window, bars = code[rows], window[rows], bars.take(rows)
        newest = self._newest[code]
        fresh = self._not_older(code, window, newest, bars)
        if fresh is not None:
            code, window, newest, bars = code[fresh], window[fresh], newest[fresh], bars.take(fresh)
            if len(bars) == 0:
                return
        self._move_on(code, window, newest)
        place = self._place(code, window)
        for name, values in self._values(bars).items():
            self._columns[name].reshape(-1)[place] = values
        same = np.append(False, code[1:] == code[:-1])
        before = np.where(same, np.append(NO_BAR, window[:-1]), NO_BAR)
        before = np.maximum(before, newest)
        back = np.flatnonzero(window <= newest)
        if len(back):
            before[back] = self._nearest(code[back], window[back], -1)
        self._link(code, window, before)
        if len(back):
            after = self._nearest(code[back], window[back], 1)
            some = after != NO_BAR
            self._link(code[back][some], after[some], window[back][some])

    def after(self, code: I32, ts: I64, windows: int) -> tuple[I32, I64]:
        """Keys (code, ts), each once and in order, of the bars held that began in ``(ts, ts + windows * interval]`` of
        one of the given: those whose features look at it."""
        window = ts // self.interval_ns
        start = np.maximum(window, self._newest[code] - self.width)
        end = np.minimum(self._newest[code], window + windows)
        keys, at = _spans(code, start, end)
        present = self._columns["present"].reshape(-1)[self._place(keys, at)] != 0
        keys, at = keys[present], at[present]
        rows = _latest(keys, at, at, np.zeros(len(at), np.int32))
        if rows is not None:
            keys, at = keys[rows], at[rows]
        return keys, self._columns["began"].reshape(-1)[self._place(keys, at)]

    def previous(self, code: I32, ts: I64, windows: int | None = None) -> I64:
        """When the newest bar held before each of the given (n) began, at most ``windows`` (default: ``reach``) before;
        :data:`NO_BAR` where there is none."""
        window = ts // self.interval_ns
        distance = self._columns["distance"].reshape(-1)[self._place(code, window)].astype(np.int64)
        before = np.where(distance == FAR, NO_BAR, window - distance)
        unknown = np.flatnonzero(~self.held(code, window))
        if len(unknown):
            before[unknown] = self._nearest(code[unknown], window[unknown], -1)
        limit = np.maximum(
            window - (self.reach if windows is None else windows), self._newest[code] - self.width + 1
        )
        found = before >= limit
        began = self._columns["began"].reshape(-1)[self._place(code, np.where(found, before, window))]
        return np.where(found, began, NO_BAR)

    def held(self, code: I32, window: I64) -> Mask:
        """For which of the keys (n) a bar is held."""
        newest = self._newest[code]
        present: Mask = self._columns["present"].reshape(-1)[self._place(code, window)] != 0
        return present & (window <= newest) & (window > newest - self.width)

    def column(self, name: str) -> NDArray[Any]:
        """The cells ``[W, S]`` of a column, for whoever reads them within this package; not to be written."""
        return self._columns[name]

    def _register(self, series: BarSeries) -> int:
        code = self._code.get(series)
        if code is not None:
            return code
        if series.interval != self._interval:
            raise ValueError(
                f"{series.symbol} has bars of {series.interval}, and this history holds {self._interval}"
            )
        if self._free:
            code = self._free.pop()
            self._series[code] = series
            self._names = ()
        else:
            code = len(self._series)
            self._series.append(series)
            if code == len(self._newest):
                # Never to a power of two: all rows of a column would share a few lines of the cache.
                self._grow(2 * code + 36)
        self._code[series] = code
        self._newest[code], self._since[code] = NO_BAR, np.iinfo(np.int64).max
        for name, cells in self._columns.items():
            cells[:, code] = EMPTY[name]
        return code

    def _grow(self, size: int) -> None:
        more = size - len(self._newest)
        self._newest = np.append(self._newest, np.zeros(more, np.int64))
        self._since = np.append(self._since, np.zeros(more, np.int64))
        for name, cells in self._columns.items():
            grown = np.zeros((self.width, size), cells.dtype)
            grown[:, : cells.shape[1]] = cells
            self._columns[name] = grown

    def codes_of(self, bars: BarBatch) -> I32:
        """The code of each row (n); a series is given one when it has a row, and not for being in the table.

        Raises:
            ValueError: a row of another interval.
        """
        if bars.series is not self._table:
            known = self._lookup if extends(bars.series, self._table) else self._lookup[:0]
            new = np.full(len(bars.series) - len(known), -1, np.int32)
            self._table, self._lookup = bars.series, np.append(known, new)
        code = self._lookup[bars.code]
        if code.min() < 0:
            for used in np.unique(bars.code[code < 0]).tolist():
                self._lookup[used] = self._register(bars.series[used])
            code = self._lookup[bars.code]
        return code

    def _place(self, code: NDArray[Any], window: NDArray[Any]) -> I64:
        """The cell of each key in a column laid flat."""
        place: I64 = (window & (self.width - 1)) * len(self._newest) + code
        return place

    def _values(self, bars: BarBatch) -> dict[str, NDArray[Any]]:
        names = [
            name for name in self._columns if name in ("open", "high", "low", "close", "volume", "revision")
        ]
        values: dict[str, NDArray[Any]] = {name: getattr(bars, name) for name in names}
        values |= {"present": np.ones(len(bars), np.int16), "began": bars.ts}
        if "n_events" in self._columns:
            values["n_events"] = bars.n_events.astype(np.float64)
        if "notional" in self._columns:
            typical = (bars.high + bars.low + bars.close) / 3.0 * bars.volume
            values["notional"] = np.where(np.isnan(bars.notional), typical, bars.notional)
        return values

    def _not_older(self, code: I32, window: I64, newest: I64, bars: BarBatch) -> I64 | None:
        """The rows to be put, None for all: not those of which a newer revision is held."""
        back = np.flatnonzero(window <= newest)
        if len(back) == 0:
            return None
        place = self._place(code[back], window[back])
        began = self._columns["began"].reshape(-1)[place]
        revision = self._columns["revision"].reshape(-1)[place]
        inside = window[back] > newest[back] - self.width
        newer = (began > bars.ts[back]) | ((began == bars.ts[back]) & (revision > bars.revision[back]))
        keep = np.ones(len(bars), np.bool_)
        keep[back[inside & newer]] = False
        return None if keep.all() else np.flatnonzero(keep)

    def _move_on(self, code: I32, window: I64, newest: I64) -> None:
        """Make room for rows in the order of :func:`_latest`."""
        last = np.flatnonzero(np.append(code[1:] != code[:-1], True))
        heads = np.maximum(window[last], newest[last])
        length = np.diff(last, prepend=-1)
        old = np.flatnonzero(window <= np.repeat(heads, length) - self.width)
        if len(old):
            series = self._series[code[old[0]]]
            raise ValueError(
                f"a bar of {series.symbol} is {self.width} or more windows older than the newest; "
                "put it in order by chunks(), or into a history of its own"
            )
        came, moved = code[last], heads - newest[last]
        # A series that goes on window by window fills every cell by itself.
        ahead = np.add.reduceat((window > newest).astype(np.int64), np.append(0, last[:-1] + 1))
        jumps = np.flatnonzero((newest[last] != NO_BAR) & (moved > ahead))
        if len(jumps):
            start = np.maximum(newest[last][jumps], heads[jumps] - self.width)
            place = self._place(*_spans(came[jumps], start, heads[jumps]))
            for name, cells in self._columns.items():
                cells.reshape(-1)[place] = EMPTY[name]
        self._newest[came] = heads

    def _link(self, code: I32, window: I64, before: I64) -> None:
        """Tell each bar which window the bar before it is in, and so its change."""
        place = self._place(code, window)
        near = before > self._newest[code] - self.width
        close = self._columns["close"].reshape(-1)
        now = close[place]
        then = np.where(near, close[self._place(code, np.where(near, before, window))], now)
        # Where there is no bar before, window - before may overflow; its value is not used.
        distance = np.where(near, np.minimum(window - np.where(near, before, window), FAR), FAR)
        self._columns["distance"].reshape(-1)[place] = distance
        if "change" in self._columns:
            self._columns["change"].reshape(-1)[place] = now - then
        if "log_return" in self._columns:
            self._columns["log_return"].reshape(-1)[place] = np.where(near, log_ratio(now, then), 0.0)

    def _nearest(self, code: I32, window: I64, step: int) -> I64:
        """The window of the next bar held before (-1) or after (1) each key, without a bound."""
        found = np.full(len(code), NO_BAR)
        todo = np.arange(len(code))
        newest = self._newest[code]
        for begin in range(1, self.width, SLACK):
            offsets = np.arange(begin, min(begin + SLACK, self.width))[:, None] * step
            at = window[todo] + offsets
            inside = (at <= newest[todo]) & (at > newest[todo] - self.width)
            hit = inside & (self._columns["present"].reshape(-1)[self._place(code[todo], at)] != 0)
            some = hit.any(axis=0)
            found[todo[some]] = window[todo[some]] + offsets[hit.argmax(axis=0)[some], 0]
            todo = (
                todo[~some & inside[-1]] if step > 0 else todo[~some & (at[-1] > newest[todo] - self.width)]
            )
            if len(todo) == 0:
                break
        return found


def log_ratio(now: F64, then: F64) -> F64:
    """``ln(now / then)`` (n), NaN where one is not positive; exact for small changes, where the difference of two
    logarithms is not."""
    with np.errstate(all="ignore"):
        change = (now - then) / then
        ratio = np.where(np.abs(change) < 0.5, np.log1p(change), np.log(now / then))
        return np.where((now > 0) & (then > 0), ratio, np.nan)


def _latest(code: I32, window: I64, ts: I64, revision: I32) -> I64 | None:
    """Rows in the order of (code, window), of each window the latest; None when all are so already."""
    rising = (code[1:] > code[:-1]) | ((code[1:] == code[:-1]) & (window[1:] > window[:-1]))
    if rising.all():
        return None
    order = np.lexsort((revision, ts, window, code))
    code, window = code[order], window[order]
    last = np.append((code[1:] != code[:-1]) | (window[1:] != window[:-1]), True)
    latest: I64 = order[last]
    return latest


def _spans(code: I32, start: I64, end: I64) -> tuple[I32, I64]:
    """All keys (code, window) with the window in ``(start, end]`` of each row."""
    length = np.maximum(end - start, 0)
    total = int(length.sum())
    first = np.cumsum(length) - length
    return np.repeat(code, length), np.arange(total) - np.repeat(first, length) + np.repeat(start, length) + 1
