"""One flush of a consumer as one transaction: all of it, or nothing.

The order inside: lock the claim (or be fenced), bars lane by lane, late events, signals, outbox, positions. A row that
the server refuses aborts a transaction; :func:`apply` is then run again with ``isolate``, where every
statement has a savepoint and a batch that fails is halved until the bad rows stand alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import numpy as np
import psycopg
from psycopg import AsyncConnection

from market_data_core.batch import BarBatch, EventBatch
from market_data_core.codecs import (
    DeadLetter,
    decode_bars,
    encode_bars,
    encode_dead_letter,
    encode_events,
    format_time,
)
from market_data_core.events import BarSeries, Signal
from market_data_core.protocols import Committed, Flush, LaneFlush, SignalFlush
from market_data_core.signal_codec import decode_signal, encode_parcel, encode_signal, parcel_of
from market_data_store import bars as bars_table
from market_data_store import late_events, positions
from market_data_store import signals as signals_table
from market_data_store.bars_sql import VALUES
from market_data_store.late_events import Amended
from market_data_store.positions import Outgoing, Summary, printable

ROW_ERRORS: Final = (psycopg.DataError, psycopg.IntegrityError)
"""What the server says of a row it does not take."""

_R = TypeVar("_R")


async def apply(
    connection: AsyncConnection[Any], flush: Flush, now: int, *, isolate: bool = False
) -> Committed:
    """Do ``flush`` within the transaction of ``connection``; ``now`` (ns UTC) stamps dead letters.

    Raises:
        Fenced: a newer epoch exists.
        psycopg.DataError, psycopg.IntegrityError: a row was refused, and not ``isolate``.
    """
    done = await positions.lock_claim(connection, flush)
    if done is not None:
        return await _again(connection, flush, done)
    work = _Work(connection, flush, now, isolate)
    for lane in flush.lanes:
        await work.close_bars(lane)
        await work.amend_bars(lane)
    if flush.signals is not None:
        await work.store_signals(flush.signals)
    return await work.finish()


def writer_of(flush: Flush, lane: str) -> str:
    """Who a bar says has written it last."""
    return f"{flush.claim.topic}/{flush.claim.group}/{lane}"


async def _again(connection: AsyncConnection[Any], flush: Flush, done: Summary) -> Committed:
    """The answer that the first try of ``flush`` gave, or would have given: its outbox rows are still there,
    since only the next flush removes them."""
    claim = flush.claim
    rows = {r.id: r for r in await positions.outbox(connection, (claim.topic, claim.group, claim.partition))}
    bars = BarBatch.empty() if done.bars is None else decode_bars(rows[done.bars].value)
    parcel = None if done.signals is None else parcel_of(rows[done.signals].value)
    return Committed(
        bars,
        [rows[i] for i in done.outbox],
        done.refused,
        done.unchanged,
        done.amended,
        done.stale,
        done.rejected,
        [decode_signal(value) for _, value in parcel or ()],
        done.withdrawn,
        done.created,
    )


class _Work:
    """What a flush has come to so far."""

    def __init__(self, connection: AsyncConnection[Any], flush: Flush, now: int, isolate: bool) -> None:
        self._connection = connection
        self._flush = flush
        self._now = now
        self._isolate = isolate
        self._changed: list[BarBatch] = []
        self._letters: list[Outgoing] = []
        self._refused = self._unchanged = self._amended = self._stale = 0
        self._rejected: list[tuple[str, str]] = []
        self._signals: list[Signal] = []
        self._withdrawn = 0

    async def close_bars(self, lane: LaneFlush) -> None:
        """Upsert the bars that ``lane`` closed."""
        bars = lane.closed
        whole = bars.ts % 1000 == 0
        if not whole.all():
            self._reject(lane, bars.take(~whole), "ts is not a whole number of microseconds")
            bars = bars.take(whole)
        if not len(bars):
            return
        writer = writer_of(self._flush, lane.lane)

        async def store(rows: np.ndarray[Any, Any]) -> None:
            done = await bars_table.upsert(self._connection, bars.take(rows), writer, force=lane.force)
            self._changed.append(done.changed)
            self._refused += done.refused
            self._unchanged += done.unchanged

        def reject(rows: np.ndarray[Any, Any], reason: str) -> None:
            self._reject(lane, bars.take(rows), reason)

        await self._each(np.arange(len(bars)), store, reject)

    async def amend_bars(self, lane: LaneFlush) -> None:
        """Merge the late events of ``lane`` into the bars of their windows."""
        late = lane.late
        if not len(late):
            return
        writer = writer_of(self._flush, lane.lane)
        # Halves are cut between bars, not through one: a refused bar takes all of its late events along.
        starts = late.src_ts - late.src_ts % lane.window_ns
        windows = np.unique(starts)
        names: dict[tuple[str, str], int] = {}
        lookup = [names.setdefault((s.provider, s.symbol), len(names)) for s in late.series]
        group = np.searchsorted(windows, starts) * len(names) + np.array(lookup, np.int64)[late.code]

        async def store(groups: np.ndarray[Any, Any]) -> None:
            events = late.take(np.isin(group, groups))
            self._amend(
                lane, events, await late_events.amend(self._connection, events, lane.window_ns, writer)
            )

        def reject(groups: np.ndarray[Any, Any], reason: str) -> None:
            events = late.take(np.isin(group, groups))
            self._dead_events(lane, events, f"late: the database refuses the amended bar: {reason}")
            series = events.series[events.code[0]]
            what = f"{series.provider}/{series.symbol} late at {format_time(int(events.src_ts[0]))}"
            self._rejected.append((printable(reason), printable(what)))

        await self._each(np.unique(group), store, reject)

    def _amend(self, lane: LaneFlush, late: EventBatch, done: Amended) -> None:
        self._changed += [b for b in (done.created, done.merged) if len(b)]
        self._amended += len(done.merged)
        for key, writer in done.stale.items():
            events = late.take(late_events.rows_of(late, lane.window_ns, {key}))
            self._dead_events(lane, events, f"late: bar was rewritten by {writer}; replay the range")
            self._stale += len(events)

    async def store_signals(self, decided: SignalFlush) -> None:
        """Upsert what was decided, and withdraw what no longer is."""
        claim = self._flush.claim
        writer = f"{claim.topic}/{claim.group}"
        signals = list(decided.signals)

        async def store(rows: np.ndarray[Any, Any]) -> None:
            some = [signals[row] for row in rows.tolist()]
            self._signals += await signals_table.upsert(self._connection, some, writer)

        def reject(rows: np.ndarray[Any, Any], reason: str) -> None:
            for row in rows.tolist():
                self._dead_signal(signals[row], reason)

        await self._each(np.arange(len(signals)), store, reject)
        if decided.revised:
            gone = await signals_table.withdraw(self._connection, decided.revised, signals, writer)
            self._withdrawn = len(gone)
            self._signals += gone

    async def finish(self) -> Committed:
        """Outbox, positions and the flush's number."""
        flush = self._flush
        changed = [b for b in self._changed if len(b)]
        bars = _newest(BarBatch.concat(changed)) if changed else BarBatch.empty()
        created = sum(int(np.count_nonzero(b.revision == 1)) for b in changed)
        told = len(bars) and flush.bars_topic
        frame = [Outgoing(flush.bars_topic, "", encode_bars(bars))] if told else []
        parcel: list[Outgoing] = []
        if flush.signals is not None and self._signals:
            parcel = [Outgoing(flush.signals.topic, "", encode_parcel(self._signals))]
        letters = self._letters if flush.dead_letter_topic else []
        outbox = await positions.put(self._connection, flush.claim, frame + parcel + letters)
        summary = Summary(
            outbox=[r.id for r in outbox],
            bars=outbox[0].id if frame else None,
            refused=self._refused,
            unchanged=self._unchanged,
            amended=self._amended,
            stale=self._stale,
            rejected=self._rejected,
            signals=outbox[len(frame)].id if parcel else None,
            withdrawn=self._withdrawn,
            created=created,
        )
        await positions.save(self._connection, flush, summary)
        counts = (self._refused, self._unchanged, self._amended, self._stale)
        return Committed(bars, outbox, *counts, self._rejected, self._signals, self._withdrawn, created)

    async def _each(
        self,
        items: np.ndarray[Any, Any],
        store: Callable[[np.ndarray[Any, Any]], Awaitable[None]],
        reject: Callable[[np.ndarray[Any, Any], str], None],
    ) -> None:
        """``store(items)``; when isolating, halves of what fails, and ``reject`` of what fails alone."""
        if not self._isolate:
            await store(items)
            return
        try:
            async with self._connection.transaction():
                await store(items)
        except ROW_ERRORS as error:
            if len(items) == 1:
                reject(items, _reason(error))
                return
            middle = len(items) // 2
            await self._each(items[:middle], store, reject)
            await self._each(items[middle:], store, reject)

    def _reject(self, lane: LaneFlush, bars: BarBatch, reason: str) -> None:
        """Keep ``bars`` as dead letters, one frame each."""
        for row in range(len(bars)):
            one = bars.take(slice(row, row + 1))
            series = BarSeries(*map(printable, one.series[one.code[0]]))
            named = BarBatch.concat([_renamed(one, series)])
            self._letter(
                lane.lane, series.symbol, encode_bars(named), f"the database refuses the bar: {reason}"
            )
            what = f"{series.provider}/{series.symbol} {series.interval} {format_time(int(one.ts[0]))}"
            self._rejected.append((printable(reason), what))

    def _dead_events(self, lane: LaneFlush, events: EventBatch, reason: str) -> None:
        """Keep ``events`` as dead letters, one JSON record each."""
        for code, value in zip(events.code.tolist(), encode_events(events, "json"), strict=True):
            self._letter(lane.lane, events.series[code].symbol, value, reason)

    def _dead_signal(self, signal: Signal, reason: str) -> None:
        """Keep ``signal`` as a dead letter."""
        self._letter(None, signal.symbol, encode_signal(signal), f"the database refuses the signal: {reason}")
        self._rejected.append((printable(reason), printable(signal.signal_id)))

    def _letter(self, lane: str | None, key: str, value: bytes, reason: str) -> None:
        claim = self._flush.claim
        letter = DeadLetter(
            reason=printable(reason),
            topic=claim.topic,
            partition=claim.partition,
            offset="",
            key=key,
            lane=lane,
            value=value,
            at=self._now,
        )
        self._letters.append(Outgoing(self._flush.dead_letter_topic, key, encode_dead_letter(letter)))


def _reason(error: psycopg.Error) -> str:
    """What the server said, with the constraint's name in it."""
    return error.diag.message_primary or str(error).splitlines()[0]


def _newest(bars: BarBatch) -> BarBatch:
    """``bars`` without those that a later row of the same flush has changed again."""
    last: dict[tuple[int, int], int] = {}
    if len(bars) > 1:
        order = np.lexsort((bars.revision, bars.ts, bars.code))
        code, ts = bars.code[order], bars.ts[order]
        if not ((code[1:] == code[:-1]) & (ts[1:] == ts[:-1])).any():
            return bars
        for row in range(len(bars)):
            last[int(bars.code[row]), int(bars.ts[row])] = row
        return bars.take(np.array(sorted(last.values()), np.int64))
    return bars


def _renamed(bars: BarBatch, series: BarSeries) -> BarBatch:
    """One row under another name."""
    values = {name: getattr(bars, name) for name in ("ts", *VALUES, "revision")}
    return BarBatch(series=(series,), code=np.zeros(len(bars), np.int32), **values)
