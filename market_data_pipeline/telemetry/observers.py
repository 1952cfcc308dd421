"""From what micro-batchers and producers report to metrics; no loop over bars or events."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import structlog

from market_data_core.protocols import Committed
from market_data_pipeline.consumers.micro_batcher import EXPIRED, FUTURE, LATE
from market_data_pipeline.consumers.partition_logic import Plan
from market_data_pipeline.producers.counts import Counts, ProducerObserver
from market_data_pipeline.streaming.bus import TrimResult
from market_data_pipeline.telemetry.bounded import SymbolSlots
from market_data_pipeline.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)
RESULTS: Final = ("accepted", "duplicate", "late", "handled", "skipped", "expired")
REASONS: Final = ("poison", "late", "future", "stale", "rejected")
"""Why records are put aside. ``late``: by policy, or by more than the horizon. ``stale``: late for a bar that another
writer has rewritten. ``rejected``: the database would not take the row."""
_KINDS: Final = {LATE: "late", EXPIRED: "late", FUTURE: "future"}
_BARS: Final = "bars_ohlcv"


class ConsumerMetrics:
    """What every consumer reports: partitions, errors, writes, dead letters. ``table``: where its results go.
    ``reasons``: why it puts records aside."""

    def __init__(self, metrics: Metrics, topic: str, table: str, reasons: Sequence[str]) -> None:
        self._m = metrics
        self._topic = topic
        self._table = table
        self._owned: set[int] = set()
        self._write_seconds = metrics.write_seconds.labels(table)
        self._fenced = metrics.fenced.labels(topic)
        self._partitions = metrics.partitions.labels(topic)
        self._dead_letters = {reason: metrics.dead_letters.labels(topic, reason) for reason in reasons}
        # Series that begin with 0 let an alert see the first increase.
        for component, reason in (("bus", "BusUnavailable"), ("store", "StoreUnavailable")):
            metrics.errors.labels(component, reason)
            metrics.retries.labels(component)

    def assigned(self, partition: int, epoch: int) -> None:
        self._owned.add(partition)
        self._partitions.set(len(self._owned))

    def released(self, partition: int, reason: str) -> None:
        self._owned.discard(partition)
        self._partitions.set(len(self._owned))

    def fenced(self, partition: int) -> None:
        self._fenced.inc()

    def retrying(self, what: str, error: BaseException) -> None:
        self._m.errors.labels(what, type(error).__name__).inc()
        self._m.retries.labels(what).inc()
        log.warning("retrying", what=what, error=str(error))

    def flushed(self, partition: int, plan: Plan, committed: Committed, seconds: float, at: int) -> None:
        self._write_seconds.observe(seconds)
        if plan.dead_letters:
            for kind, number in Tally(kind_of(letter.reason) for letter in plan.dead_letters).items():
                self._dead_letters[kind].inc(number)
        self._dead_letters["rejected"].inc(len(committed.rejected))
        if committed.rejected:
            self._m.errors.labels("store", "rejected").inc(len(committed.rejected))
            self._m.rows.labels(self._table, "rejected").inc(len(committed.rejected))


class MetricsObserver(ConsumerMetrics):
    """Turns what a micro-batcher reports into metrics."""

    def __init__(self, metrics: Metrics, topic: str, window_ms: int, allow_late_ms: int = 0) -> None:
        super().__init__(metrics, topic, _BARS, REASONS)
        self._window = (str(window_ms),)
        self._slots: dict[int, SymbolSlots] = {}
        self._events = {result: metrics.events.labels(result) for result in RESULTS}
        self._rows = {
            result: metrics.rows.labels(_BARS, result)
            for result in ("written", "amended", "unchanged", "refused", "rejected")
        }
        self._flush_rows = metrics.flush_rows.labels(*self._window)
        metrics.window_length.set(window_ms)
        metrics.allowed_lateness.set(allow_late_ms)

    def released(self, partition: int, reason: str) -> None:
        super().released(partition, reason)
        self._m.partition_state.drop(partition)
        self._slots.pop(partition, None)

    def flushed(self, partition: int, plan: Plan, committed: Committed, seconds: float, at: int) -> None:
        super().flushed(partition, plan, committed, seconds, at)
        m, bars = self._m, committed.bars
        for result, events in self._events.items():
            events.inc(getattr(plan.counts, result))
        self._dead_letters["stale"].inc(committed.stale)
        m.amended.inc(committed.amended)
        for result, number in (
            ("written", len(bars) - committed.amended),
            ("amended", committed.amended),
            ("unchanged", committed.unchanged),
            ("refused", committed.refused),
        ):
            self._rows[result].inc(number)
        m.partition_state.set(partition, plan.open_rows, plan.watermarks)
        if len(bars):
            self._flush_rows.inc(len(bars))
            slots = self._slots.setdefault(partition, SymbolSlots(m.symbols)).of(bars.series)
            m.flushes.mark(self._window, slots[bars.code])
        if plan.closable_at:
            m.window_latency.observe((at - np.array(plan.closable_at, np.int64)) / 1e6)


def trimmed(metrics: Metrics) -> Callable[[str, TrimResult], None]:
    """What notes that a topic was trimmed."""

    def note(topic: str, done: TrimResult) -> None:
        metrics.trimmed.labels(topic, "expired").inc(done.expired)
        metrics.trimmed.labels(topic, "forced").inc(done.forced)

    return note


def kind_of(reason: str) -> str:
    """Which of :data:`REASONS` the sentence of a dead letter is."""
    return _KINDS.get(reason, "poison")


class ProducerMetrics(ProducerObserver):
    """Turns what a producer reports into metrics."""

    def __init__(self, metrics: Metrics, bus: str) -> None:
        self._m = metrics
        self._bus = bus
        self._told: dict[tuple[str, str], tuple[int, int, int]] = {}
        metrics.errors.labels("producer", "BusUnavailable")
        metrics.retries.labels("producer")

    def published(self, counts: Counts, events: int) -> None:
        provider = self._m.providers.name(counts.provider)
        self._m.ingested.labels(self._bus, counts.topic, provider).inc(events)
        if (counts.topic, counts.provider) not in self._told:
            self.changed(counts)

    def changed(self, counts: Counts) -> None:
        m, key = self._m, (counts.topic, counts.provider)
        provider = m.providers.name(counts.provider)
        m.spool.labels(provider).set(counts.spool_events)
        m.spool_bytes.labels(provider).set(counts.spool_bytes)
        now = (counts.dropped, counts.bad_rows, counts.retries)
        dropped, bad_rows, retries = (a - b for a, b in zip(now, self._told.get(key, (0, 0, 0)), strict=True))
        self._told[key] = now
        m.dropped.labels(provider).inc(dropped)
        if bad_rows:
            m.errors.labels("producer", "bad_row").inc(bad_rows)
        if retries:
            m.errors.labels("producer", "BusUnavailable").inc(retries)
            m.retries.labels("producer").inc(retries)
