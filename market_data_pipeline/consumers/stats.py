"""What a run did, for its summary and the live view."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from market_data_core.batch import BarBatch, extends
from market_data_core.events import Bar
from market_data_core.protocols import Committed
from market_data_pipeline.consumers.exactly_once import Observer
from market_data_pipeline.consumers.partition_logic import Plan
from market_data_pipeline.windows.tumbling import FOREVER, NEVER, Counts

_DELAYS_KEPT = 200_000


class RunStats:
    """An observer that adds up. Delays are from a window's earliest possible close to its commit, in ms."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.stored = self.unchanged = self.refused = self.amended = self.stale = self.rejected = 0
        self.dead_lettered = self.fenced_writes = self.flushes = self.retries = 0
        self.partitions: set[int] = set()
        self.watermarks: dict[tuple[int, str], int] = {}
        self.last_error = ""
        self._delays = np.empty(_DELAYS_KEPT)
        self._delays_noted = 0
        self._newest = BarBatch.empty()
        self._last_bars: dict[tuple[str, str, str], Bar] | None = {}

    @property
    def events(self) -> int:
        """Distinct events that are in bars or on their way into one."""
        return self.counts.accepted + self.counts.late

    def assigned(self, partition: int, epoch: int) -> None:
        self.partitions.add(partition)

    def released(self, partition: int, reason: str) -> None:
        self.partitions.discard(partition)

    def fenced(self, partition: int) -> None:
        self.fenced_writes += 1

    def retrying(self, what: str, error: BaseException) -> None:
        self.retries += 1
        self.last_error = f"{what}: {error}"

    def flushed(self, partition: int, plan: Plan, committed: Committed, seconds: float, at: int) -> None:
        self.flushes += 1
        self.last_error = ""
        self.counts.add(plan.counts)
        self.stored += committed.created
        self.unchanged += committed.unchanged
        self.refused += committed.refused
        self.amended += committed.amended
        self.stale += committed.stale
        self.rejected += len(committed.rejected)
        self.dead_lettered += len(plan.dead_letters)
        self._note_delays((at - np.array(plan.closable_at[-_DELAYS_KEPT:], np.int64)) / 1e6)
        for lane, watermark in plan.watermarks.items():
            self.watermarks[partition, lane] = watermark
        self._remember(committed)

    def _note_delays(self, delays: NDArray[np.float64]) -> None:
        """In place of the oldest ones."""
        first = self._delays_noted % _DELAYS_KEPT
        self._delays[np.arange(first, first + len(delays)) % _DELAYS_KEPT] = delays
        self._delays_noted += len(delays)

    def _remember(self, committed: Committed) -> None:
        """The newest bar of each series, as columns: with many symbols, most are replaced before anybody looks."""
        if len(committed.bars) == 0:
            return
        old, new = self._newest, committed.bars
        if extends(new.series, old.series):
            old = old.with_series(new.series)
        bars = BarBatch.concat([old, new])
        order = np.lexsort((bars.revision, bars.ts, bars.code))
        code = bars.code[order]
        self._newest = bars.take(order[np.append(code[1:] != code[:-1], True)])
        self._last_bars = None

    @property
    def last_bars(self) -> dict[tuple[str, str, str], Bar]:
        """The newest bar of each (provider, symbol, interval)."""
        if self._last_bars is None:
            self._last_bars = {(b.provider, b.symbol, b.interval): b for b in self._newest.bars()}
        return self._last_bars

    def delay_ms(self) -> dict[str, float | None]:
        """p50, p95 and p99 of the newest delays; None before the first bar."""
        if not self._delays_noted:
            return {"p50": None, "p95": None, "p99": None}
        values = np.percentile(self._delays[: self._delays_noted], [50, 95, 99]).round(3).tolist()
        return dict(zip(("p50", "p95", "p99"), values, strict=True))

    def watermark_delay_ms(self, now: int) -> float | None:
        """How far the slowest live lane is behind the clock."""
        live = [
            w for (_, lane), w in self.watermarks.items() if w not in (NEVER, FOREVER) and lane[:5] == "live/"
        ]
        return None if not live else (now - min(live)) / 1e6

    def summary(self) -> dict[str, Any]:
        """The figures of the run as one flat object."""
        return {
            "events": self.events,
            "duplicates": self.counts.duplicate,
            "late": self.counts.late,
            "expired": self.counts.expired,
            "skipped": self.counts.skipped,
            "dead_lettered": self.dead_lettered + self.stale + self.rejected,
            "bars_stored": self.stored,
            "bars_amended": self.amended,
            "bars_unchanged": self.unchanged,
            "bars_refused": self.refused,
            "fenced": self.fenced_writes,
            "flushes": self.flushes,
            "retries": self.retries,
            "window_delay_ms": self.delay_ms(),
        }


class Observers:
    """Several observers as one."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def assigned(self, partition: int, epoch: int) -> None:
        for o in self._observers:
            o.assigned(partition, epoch)

    def released(self, partition: int, reason: str) -> None:
        for o in self._observers:
            o.released(partition, reason)

    def flushed(self, partition: int, plan: Plan, committed: Committed, seconds: float, at: int) -> None:
        for o in self._observers:
            o.flushed(partition, plan, committed, seconds, at)

    def fenced(self, partition: int) -> None:
        for o in self._observers:
            o.fenced(partition)

    def retrying(self, what: str, error: BaseException) -> None:
        for o in self._observers:
            o.retrying(what, error)
