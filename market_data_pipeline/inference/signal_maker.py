"""SignalMaker: bars in, signals out.

A signal is a function of the stored bars up to the one that it is for, of the features' definitions and of the adapter:
not of when or how often bars came, which worker had them, or what was in memory. So whenever a bar is new or amended,
every bar whose features look at it is decided on again, with the newest state of all others.

What is in memory is a cache of the store: the newest bars of each series. What it does not reach, history replayed
beside live bars for one, is read from the store and worked on apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from market_data_core.batch import I32, I64, BarBatch, Mask
from market_data_core.clock import Clock, SystemClock
from market_data_core.events import BarSeries, Signal, parse_interval
from market_data_pipeline.features.history import BarHistory
from market_data_pipeline.features.rolling import RollingFeatures, history_for, reach_of
from market_data_pipeline.features.table import FeatureTable
from market_data_pipeline.inference.adapter import Decisions
from market_data_pipeline.inference.cooldowns import Cooldowns
from market_data_pipeline.inference.decider import Decider
from market_data_pipeline.inference.observer import FeatureObserver, Unobserved

BarKey = tuple[str, str, int]
"""Provider, symbol, and when the bar ended (ns UTC)."""
NOTHING_YET: Final = -(2**63)
_ROWS: Final = 2048
"""Bars decided on before others get their turn on the event loop: 9 to 11 ms with a signal for each. Twice as many held
it up for as long as 28 ms."""


class StoredHistory(Protocol):
    """What is read from the store: StoreClient, or a fake of a test."""

    def bar_pages(
        self,
        symbols: Sequence[str] | None = None,
        *,
        interval: str,
        provider: str | None = None,
        start: int | None = None,
        end: int | None = None,
        page: int = ...,
    ) -> AsyncIterator[BarBatch]: ...

    async def signals(
        self,
        *,
        symbols: Sequence[str] | None = None,
        provider: str | None = None,
        name: str | None = None,
        start: int | None = None,
        end: int | None = None,
        limit: int | None = None,
    ) -> list[Signal]: ...


@dataclass(slots=True)
class Made:
    """``decided``: the signals of each bar that has some, and of each that is ``revised``: it may have had others
    before, and those that it has no longer are to be withdrawn. ``watermark``: when the newest bar decided on began."""

    decided: dict[BarKey, list[Signal]] = field(default_factory=dict)
    revised: set[BarKey] = field(default_factory=set)
    watermark: int = NOTHING_YET


@dataclass(frozen=True, slots=True)
class _Memory:
    history: BarHistory
    rolling: RollingFeatures


class SignalMaker:
    """Makes the signals of the bars of one interval in one partition.

    ``watermark``: when the newest bar began that was decided on by the owner before (ns). ``told`` of how long the
    features of each batch took: interval, seconds, series, and the code of each row.
    """

    def __init__(
        self,
        interval: str,
        decider: Decider,
        stored: StoredHistory,
        watermark: int = NOTHING_YET,
        *,
        observer: FeatureObserver | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.interval = interval
        self._interval_ns = parse_interval(interval)
        self._decider = decider
        self._stored = stored
        self._watermark = watermark
        self._observer = observer or Unobserved()
        self._clock = clock or SystemClock()
        self._cooldowns = Cooldowns(self._given_before)
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Other rules may need other features, further back: what is held is read from the store again."""
        self._generation = self._decider.generation
        self._features = self._decider.features(self._interval_ns)
        self._memory = self._new_memory()
        self._reach = self._memory.history.reach
        needs_previous = self._decider.engine.needs_previous
        self._affected = self._reach if needs_previous else reach_of(self._features)

    def _new_memory(self, ahead: int = 0) -> _Memory:
        with_previous = self._decider.engine.needs_previous
        history = history_for(self._features, self._interval_ns, with_previous=with_previous, ahead=ahead)
        return _Memory(history, RollingFeatures(self._features, history))

    async def make(self, bars: BarBatch) -> Made:
        """Decide on ``bars``, in the order in which they came, and on those that they change.

        May be called again with the same bars after an error.

        Raises:
            StoreUnavailable: what is needed of the past cannot be read now.
        """
        self._decider.refresh()
        if self._decider.generation != self._generation:
            self._begin_anew()
        made = Made()
        history = self._memory.history
        code = history.codes_of(bars)
        for rows in history.chunks(code, bars.ts):
            some, of = bars.take(rows), code[rows]
            near = await self._load(of, some.ts)
            if near.any():
                await self._follow(self._memory, some.take(near), made)
            if not near.all():
                far = some.take(~near)
                await self._apart(far, int(bars.ts.max()), made)
                # Bars that come later look back at those that memory can hold all the same.
                inside = history.within(of[~near], far.ts)
                history.put(far.take(inside))
        self._watermark = made.watermark = max(self._watermark, int(bars.ts.max()))
        return made

    async def _load(self, code: I32, ts: I64) -> Mask:
        """Read what features of the given bars need and memory does not hold; which of the bars it can hold then."""
        history = self._memory.history
        missing = ~history.covered(code, ts)
        if not missing.any():
            return ~missing
        room = (history.width - history.reach - 1) * self._interval_ns
        for asked, since, until in self._ranges(history, code[missing], ts[missing]):
            # One that is loaded and yet not covered is too old to be held beside the newest of its series.
            codes = asked[~history.loaded(asked)]
            ahead = until + room
            if len(codes) == 0 or (
                ahead < self._watermark and await self._any(history.series, codes, ahead, self._watermark)
            ):
                continue
            await self._read(history, codes, since, max(until, min(self._watermark, ahead)))
            history.mark_loaded(codes, since)
        return history.covered(code, ts)

    async def _apart(self, bars: BarBatch, newest: int, made: Made) -> None:
        """Decide on bars of which memory does not hold all that they look back to, with all around them read from the
        store, up to the ``newest`` bar of those that came with them."""
        apart = self._new_memory(self._affected)
        history = apart.history
        code = history.codes_of(bars)
        for rows in history.chunks(code, bars.ts):
            some, of = bars.take(rows), code[rows]
            for codes, since, until in self._ranges(history, of, some.ts):
                ahead = until + self._affected * self._interval_ns
                await self._read(history, codes, since, min(ahead, max(newest, self._watermark)))
            await self._follow(apart, some, made)

    def _ranges(self, history: BarHistory, code: I32, ts: I64) -> list[tuple[I32, int, int]]:
        """What to read for the bars of one chunk of ``history``: the codes of one provider, when the oldest bar began
        that their features look at, and when the newest of the given did. Series far apart in time are kept apart."""
        length = (history.width - history.reach) * self._interval_ns
        of: dict[tuple[str, int], list[int]] = {}
        for row in range(len(code)):
            place = (history.series[int(code[row])].provider, int(ts[row]) // length)
            of.setdefault(place, []).append(row)
        ranges = []
        for rows in of.values():
            times = ts[rows]
            since = int(times.min()) - self._reach * self._interval_ns
            ranges.append((np.unique(code[rows]), since, int(times.max())))
        return ranges

    async def _read(self, history: BarHistory, codes: I32, since: int, until: int) -> None:
        """Put the stored bars that began in ``[since, until]``."""
        series = history.series
        pages = self._stored.bar_pages(
            [series[c].symbol for c in codes.tolist()],
            interval=self.interval,
            provider=series[int(codes[0])].provider,
            start=since,
            end=until + 1,
        )
        async for page in pages:
            of = history.codes_of(page)
            for rows in history.chunks(of, page.ts):
                history.put(page.take(rows))

    async def _any(self, series: tuple[BarSeries, ...], codes: I32, after: int, until: int) -> bool:
        """Whether the store has a bar of these series that began in ``(after, until]``."""
        symbols = [series[c].symbol for c in codes.tolist()]
        provider = series[int(codes[0])].provider
        pages = self._stored.bar_pages(
            symbols, interval=self.interval, provider=provider, start=after + 1, end=until + 1, page=1
        )
        async for page in pages:
            return len(page) > 0
        return False

    async def _follow(self, memory: _Memory, bars: BarBatch, made: Made) -> None:
        """Put ``bars`` and decide on them and on the bars that they change."""
        history = memory.history
        code = history.codes_of(bars)
        history.put(bars)
        after_code, after_ts = history.after(code, bars.ts, self._affected)
        amended = bars.revision > 1
        revised = _keys(
            np.concatenate((code[amended], after_code)), np.concatenate((bars.ts[amended], after_ts))
        )
        all_code, all_ts = _keys(np.concatenate((code, after_code)), np.concatenate((bars.ts, after_ts)))
        for c, ts in zip(revised[0].tolist(), revised[1].tolist(), strict=True):
            key = self._key(history.series[c], ts + self._interval_ns)
            made.revised.add(key)
            made.decided[key] = []
            self._cooldowns.forget(key[:2], key[2])
        # In the order of time, which cooldowns go by.
        order = np.argsort(all_ts, kind="stable")
        for start in range(0, len(order), _ROWS):
            rows = order[start : start + _ROWS]
            await self._decide(memory.rolling, all_code[rows], all_ts[rows], made)
            await asyncio.sleep(0)

    async def _decide(self, rolling: RollingFeatures, code: I32, ts: I64, made: Made) -> None:
        engine = self._decider.engine
        begun = self._clock.monotonic()
        table = rolling.table(code, ts, with_previous=engine.needs_previous)
        seconds = (self._clock.monotonic() - begun) / 1e9
        self._observer.features(self.interval, seconds, table.series, code)
        decisions = await engine.decide(table, np.arange(len(code), dtype=np.int64))
        if len(decisions) == 0:
            return
        if decisions.cooldown_ns is not None:
            cooling = self._cooling(table, decisions, decisions.cooldown_ns)
            await self._cooldowns.learn(cooling, made.revised)
        # A table of signals by name: of two with one name the later counts.
        given: dict[BarKey, dict[str, Signal]] = {}
        order = np.argsort(table.at[decisions.row], kind="stable")
        cooldowns = decisions.cooldown_ns
        for i in order.tolist():
            row = int(decisions.row[i])
            key = self._key(table.series[int(table.code[row])], int(table.at[row]))
            name = decisions.name[i]
            cooldown = 0 if cooldowns is None else int(cooldowns[i])
            if cooldown and not self._cooldowns.allows(key[:2], name, key[2], cooldown):
                continue
            signal = Signal(
                *key, name, float(decisions.value[i]), float(decisions.score[i]), decisions.meta[i]
            )
            given.setdefault(key, {})[name] = signal
        for key, signals in given.items():
            made.decided[key] = list(signals.values())

    def _cooling(
        self, table: FeatureTable, decisions: Decisions, cooldowns: I64
    ) -> list[tuple[tuple[str, str], int, int]]:
        """(Provider and symbol, ts, cooldown) of the decisions that have a cooldown."""
        rows = decisions.row
        return [
            (table.series[int(table.code[rows[i]])][:2], int(table.at[rows[i]]), int(cooldowns[i]))
            for i in np.flatnonzero(cooldowns > 0).tolist()
        ]

    @staticmethod
    def _key(series: BarSeries, at: int) -> BarKey:
        return series.provider, series.symbol, at

    async def _given_before(
        self, provider: str, symbols: Sequence[str], start: int, end: int
    ) -> list[Signal]:
        return await self._stored.signals(symbols=symbols, provider=provider, start=start, end=end)


def _keys(code: I32, ts: I64) -> tuple[I32, I64]:
    """The distinct (code, ts)."""
    order = np.lexsort((ts, code))
    code, ts = code[order], ts[order]
    new = np.ones(len(code), np.bool_)
    new[1:] = (code[1:] != code[:-1]) | (ts[1:] != ts[:-1])
    return code[new], ts[new]
