"""Tumbling windows of one lane: events in, closed bars and late events out.

Event time only. The watermark is the highest event time seen less the allowed lateness; a window
``[start, end)`` closes when the watermark reaches ``end``. Whether an event is late is decided row by row, as if
events came one at a time, so neither the size of batches nor their boundaries change a result.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from market_data_core.batch import I64, BarBatch, EventBatch, extends
from market_data_core.codecs import MAX_SERIES
from market_data_core.events import BarSeries, Series, format_interval, parse_interval
from market_data_core.ohlcv import merge_bars, reduce_events
from market_data_pipeline.windows.seen_ids import SeenIds, event_hashes, series_hashes

NEVER: Final = -(2**63)
"""The watermark before the first event."""
FOREVER: Final = 2**63 - 1
"""The watermark of a lane that has ended."""
SILENCE_NS: Final = 600 * 10**9
"""How long a lane may be silent before the clock ages its ids. Most silences are a producer's that cannot reach the
bus: what it sends afterwards is as old as the silence is long, and part of it may be copies of what came before."""
_RAW_ROWS: Final = 32_768
_RAW_ROWS_A_BAR: Final = 16
_MOST_RAW_ROWS: Final = 262_144
_COMPACT_ROWS: Final = 65_536
_NO_SERIES: Final = ()


@dataclass(frozen=True, slots=True)
class WindowSettings:
    """Lengths in nanoseconds; ``kinds`` are the kinds of events that make bars.

    An event that is late by more than the dedupe horizon cannot be told from a copy of one that was counted and
    forgotten. It is *expired*, unless ``amend_beyond_horizon`` takes it for a new one.
    """

    window_ns: int
    allow_late_ns: int
    dedupe_horizon_ns: int
    kinds: tuple[str, ...] = ("tick", "bar")
    amend_beyond_horizon: bool = False

    def __post_init__(self) -> None:
        if self.window_ns <= 0 or self.allow_late_ns < 0 or self.dedupe_horizon_ns < 0:
            raise ValueError("a window must be longer than 0, lateness and horizon at least 0")


@dataclass(slots=True)
class Counts:
    """What became of events."""

    accepted: int = 0
    duplicate: int = 0
    late: int = 0
    handled: int = 0
    skipped: int = 0
    expired: int = 0

    def minus(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def add(self, other: Counts) -> None:
        self.accepted += other.accepted
        self.duplicate += other.duplicate
        self.late += other.late
        self.handled += other.handled
        self.skipped += other.skipped
        self.expired += other.expired


class _Routes:
    """What to do with each series of a decoder's table, by its code there."""

    def __init__(self, settings: WindowSettings) -> None:
        self._settings = settings
        self._interval = format_interval(settings.window_ns)
        self._table: dict[BarSeries, int] = {}
        self.bar_series: tuple[BarSeries, ...] = ()
        self._restart(())

    def _restart(self, series: tuple[Series, ...]) -> None:
        self.series = series
        self.hashes = series_hashes(series)
        self.code = np.empty(0, np.int32)
        self.skip = self.whole = np.empty(0, np.bool_)
        self.plain = True

    def follow(self, series: tuple[Series, ...], *, drop_names: bool) -> None:
        """Take over ``series``: what is known of it already stays. ``drop_names``: no open bar needs a name."""
        if series is self.series:
            return
        if not extends(series, self.series):
            if drop_names and len(self._table) > MAX_SERIES:
                self._table, self.bar_series = {}, ()
            self._restart(())
        new = series[len(self.series) :]
        window = self._settings.window_ns
        skip = np.array([s.kind not in self._settings.kinds for s in new], np.bool_)
        whole = np.array([s.kind == "bar" and parse_interval(s.interval) >= window for s in new], np.bool_)
        names = [
            BarSeries(s.provider, s.symbol, s.interval if as_it_is else self._interval)
            for s, as_it_is in zip(new, whole.tolist(), strict=True)
        ]
        code = np.array([self._table.setdefault(name, len(self._table)) for name in names], np.int32)
        self.code = np.concatenate((self.code, code))
        self.skip = np.concatenate((self.skip, skip))
        self.whole = np.concatenate((self.whole, whole))
        self.hashes = np.concatenate((self.hashes, series_hashes(new)))
        self.plain = self.plain and not (skip.any() or whole.any())
        self.series = series
        if len(self._table) > len(self.bar_series):
            self.bar_series = tuple(self._table)


class TumblingWindows:
    """The open windows of one lane, its watermark, and the ids it remembers.

    ``watermark`` is where the owner before stopped: what it had handled is read again only to be remembered (see
    :meth:`add`).
    """

    def __init__(self, settings: WindowSettings, watermark: int = NEVER) -> None:
        self.settings = settings
        self.watermark = watermark
        self.max_ts: int | None = (
            None if watermark in (NEVER, FOREVER) else watermark + settings.allow_late_ns
        )
        self.counts = Counts()
        self._handled_watermark = watermark
        self._seen = SeenIds(settings.dedupe_horizon_ns, None if watermark in (NEVER, FOREVER) else watermark)
        self._routes = _Routes(settings)
        self._raw: list[EventBatch] = []
        self._raw_rows = 0
        self._open: list[BarBatch] = []
        self._open_rows = 0
        self._compacted_rows = 0
        self._first_end = FOREVER
        self._last_end = NEVER
        self._first_offsets: deque[tuple[int, int]] = deque()
        self._whole: list[BarBatch] = []
        self._late: list[EventBatch] = []
        self._expired: list[EventBatch] = []
        # What ages ids is the time of events; unlike the watermark, it does not move with every silence.
        self._age = watermark
        self._progress: tuple[I64, I64] | None = None

    def forgotten(self, batch: EventBatch, handled_rows: int) -> int:
        """How many leading rows of ``batch`` need not even be remembered, of the ``handled_rows`` that the owner before
        had read: they are in the store, and beyond the horizon no copy of them would count."""
        horizon = self.settings.dedupe_horizon_ns - self.settings.allow_late_ns
        src_ts = batch.src_ts[:handled_rows]
        window = self.settings.window_ns
        if self._handled_watermark == NEVER:
            return 0
        old = (src_ts - src_ts % window + window <= self._handled_watermark) & (
            src_ts <= self._handled_watermark - horizon
        )
        return int(np.argmin(old)) if not old.all() else handled_rows

    def add(self, batch: EventBatch, offset: int, handled_rows: int = 0) -> None:
        """Take ``batch``, read at or after ``offset``, in bus order.

        The first ``handled_rows`` rows are at or before the read offset of the owner before: of these, events whose
        window had ended by its watermark are in the store already and only their ids are remembered.
        """
        n = len(batch)
        if n == 0:
            return
        routes = self._routes
        routes.follow(batch.series, drop_names=not self.has_open)
        fresh = self._seen.add(event_hashes(batch, routes.hashes), offset)
        counts = Counts(duplicate=n - int(np.count_nonzero(fresh)))
        window = self.settings.window_ns
        ends = batch.src_ts - batch.src_ts % window + window
        whole: NDArray[np.bool_] | None = None
        if not routes.plain:
            whole = routes.whole[batch.code] & fresh
            skipped = routes.skip[batch.code] & fresh
            counts.skipped = int(np.count_nonzero(skipped))
            fresh &= ~skipped
            whole &= fresh
            fresh &= ~whole
            if handled_rows:
                counts.handled += int(np.count_nonzero(whole[:handled_rows]))
                whole[:handled_rows] = False
        if handled_rows:
            handled = fresh[:handled_rows] & (ends[:handled_rows] <= self._handled_watermark)
            counts.handled += int(np.count_nonzero(handled))
            fresh[:handled_rows] &= ~handled
        late, expired = self._advance_by(batch, ends, fresh)
        if whole is not None and whole.any():
            self._whole.append(self._as_bars(batch.take(whole)))
            counts.accepted += int(np.count_nonzero(whole))
        if late is not None:
            fresh &= ~late
            if expired is not None:
                counts.expired = int(np.count_nonzero(expired))
                self._expired.append(batch.take(expired))
                late &= ~expired
            counts.late = int(np.count_nonzero(late))
            self._late.append(batch.take(late))
        accepted = int(np.count_nonzero(fresh))
        if accepted:
            rows = batch if accepted == n else batch.take(fresh)
            if accepted < n:
                ends = ends[fresh]
            last_end = int(ends.max())
            self._first_end = min(self._first_end, int(ends.min()))
            self._last_end = max(self._last_end, last_end)
            self._keep(rows, routes.code[rows.code])
            self._first_offsets.append((offset, last_end))
        counts.accepted += accepted
        self.counts.add(counts)
        self._seen.advance(self._age)

    def _advance_by(
        self, batch: EventBatch, ends: I64, fresh: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | None]:
        """Move the watermark through the batch, row by row; masks of the fresh rows that came late, and of those
        among them that are expired; None for none."""
        highest = np.maximum.accumulate(batch.src_ts)
        progress = np.maximum(highest - self.settings.allow_late_ns, self.watermark)
        before = np.concatenate(([self.watermark], progress[:-1]))
        late = fresh & (ends <= before)
        self.watermark = int(progress[-1])
        top, age = int(highest[-1]), self._age
        self._age = max(age, top - self.settings.allow_late_ns)
        self.max_ts = top if self.max_ts is None else max(self.max_ts, top)
        self._progress = (progress, batch.ingest_ts)
        if not late.any():
            return None, None
        horizon = self.settings.dedupe_horizon_ns
        if horizon == 0 or self.settings.amend_beyond_horizon:
            return late, None
        # An id is remembered until time has moved by the horizon since it was added, which was not before its own
        # time less the lateness.
        ages = np.concatenate(([age], np.maximum(highest[:-1] - self.settings.allow_late_ns, age)))
        oldest = ages - (horizon - self.settings.allow_late_ns)
        expired = late & (batch.src_ts <= oldest)
        return late, expired if expired.any() else None

    def advance(self, event_time: int) -> None:
        """The clock says that event time has reached ``event_time``, lateness included.

        The watermark moves no further than the end of the last open window, so that when events come again those
        after it are not late.
        """
        if event_time - SILENCE_NS > self._age:
            self._age = event_time - SILENCE_NS
            self._seen.advance(self._age)
        if self.has_open:
            self.watermark = max(self.watermark, min(event_time, self._last_end))

    def finish(self) -> None:
        """Close every window, since the lane has nothing more for now."""
        if self.has_open:
            self.watermark = max(self.watermark, self._last_end)

    def end(self) -> None:
        """The lane has ended: close every window; whatever still comes is late."""
        self.watermark = self._age = FOREVER

    @property
    def has_open(self) -> bool:
        return bool(self._raw or self._open)

    @property
    def held_rows(self) -> int:
        """Rows held for open windows: events not yet added up, and partial bars."""
        return self._raw_rows + self._open_rows

    def open_bars(self) -> int:
        """How many (symbol, window) are open. Not free: it adds up what is held."""
        if self.has_open:
            self._compact()
        return self._open_rows

    @property
    def remembered(self) -> int:
        """How many event ids are remembered."""
        return len(self._seen)

    def close(self, now: int) -> tuple[BarBatch, I64]:
        """The bars whose windows the watermark has passed, and when each could first be closed.

        That is the ``ingest_ts`` of the event that moved the watermark past the window's end, or ``now`` (ns UTC)
        where the clock or the end of the lane did. Bars that came whole are among them, with ``now``.
        """
        closed = self._take_closed()
        at = np.full(len(closed), now, np.int64)
        if len(closed) and self._progress is not None:
            progress, ingest = self._progress
            row = np.searchsorted(progress, closed.ts + self.settings.window_ns)
            moved = row < len(progress)
            at[moved] = ingest[row[moved]]
        self._progress = None
        if self._whole:
            whole, self._whole = BarBatch.concat(self._whole), []
            closed = BarBatch.concat([closed, whole]) if len(closed) else whole
            at = np.concatenate((at, np.full(len(whole), now, np.int64)))
        return closed, at

    def take_expired(self) -> EventBatch:
        """The late events since the last call that may be copies of forgotten ones, in arrival order."""
        if not self._expired:
            return EventBatch.empty()
        expired, self._expired = EventBatch.concat(self._expired), []
        return expired

    def take_late(self) -> EventBatch:
        """The late events since the last call, in arrival order."""
        if not self._late:
            return EventBatch.empty()
        late, self._late = EventBatch.concat(self._late), []
        return late

    def restart_offset(self, following: int) -> int:
        """The first offset of any open window; ``following`` when none is open."""
        while self._first_offsets and self._first_offsets[0][1] <= self.watermark:
            self._first_offsets.popleft()
        return self._first_offsets[0][0] if self._first_offsets else following

    def dedupe_offset(self, following: int) -> int:
        """Where to read from to have the open windows and to remember all ids again."""
        first = self._seen.first_offset
        return min(following if first is None else first, self.restart_offset(following))

    def _keep(self, rows: EventBatch, code: NDArray[np.int32]) -> None:
        """Hold events of open windows. They are added up many batches at a time, the more the more symbols there
        are: of thousands one batch has hardly two events of the same bar."""
        self._raw.append(replace(rows, series=_NO_SERIES, code=code))
        self._raw_rows += len(rows)
        enough = max(_RAW_ROWS, _RAW_ROWS_A_BAR * len(self._routes.bar_series))
        if self._raw_rows >= min(enough, _MOST_RAW_ROWS):
            self._add_up()
            if self._open_rows > max(_COMPACT_ROWS, 2 * self._compacted_rows):
                self._compact()

    def _compact(self) -> None:
        self._add_up()
        self._open = [merge_bars(self._concat(self._open))]
        self._open_rows = self._compacted_rows = len(self._open[0])

    def _add_up(self) -> None:
        if self._raw:
            raw = EventBatch.concat(self._raw)
            part = reduce_events(raw, raw.code, self._routes.bar_series, self.settings.window_ns)
            self._raw, self._raw_rows = [], 0
            self._open.append(part)
            self._open_rows += len(part)

    def _take_closed(self) -> BarBatch:
        if not self.has_open or self._first_end > self.watermark:
            return BarBatch.empty()
        self._add_up()
        parts = self._concat(self._open)
        done = parts.ts + self.settings.window_ns <= self.watermark
        rest = parts.take(~done)
        self._open = [rest] if len(rest) else []
        self._open_rows = self._compacted_rows = len(rest)
        self._first_end = int(rest.ts.min()) + self.settings.window_ns if len(rest) else FOREVER
        return merge_bars(parts.take(done))

    def _concat(self, parts: list[BarBatch]) -> BarBatch:
        """Rows of all parts. Their series are prefixes of the lane's table, so codes need no translation."""
        series = self._routes.bar_series
        return BarBatch.concat([p if p.series is series else p.with_series(series) for p in parts])

    def _as_bars(self, batch: EventBatch) -> BarBatch:
        """Bar events of the window's length or longer, as they came; of equal (series, ts) the last."""
        code = self._routes.code[batch.code]
        order = np.lexsort((batch.seq, batch.src_ts, code))
        rows, code = batch.take(order), code[order]
        same = (code[1:] == code[:-1]) & (rows.src_ts[1:] == rows.src_ts[:-1])
        keep = np.append(~same, True)
        rows, code = rows.take(keep), code[keep]
        n = len(rows)
        zero, unknown = np.zeros(n), np.full(n, np.nan)
        return BarBatch(
            series=self._routes.bar_series,
            code=code,
            ts=rows.src_ts,
            open=rows.o + 0.0,
            high=rows.h + 0.0,
            low=rows.l + 0.0,
            close=rows.c + 0.0,
            volume=rows.v + 0.0,
            volume_lo=zero,
            notional=unknown,
            notional_lo=zero,
            n_events=np.ones(n, np.int64),
            first_ts=rows.src_ts,
            first_seq=rows.seq,
            last_ts=rows.src_ts,
            last_seq=rows.seq,
            revision=np.ones(n, np.int32),
        )
