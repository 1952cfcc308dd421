"""From what the consumer of bars and its engine report to metrics."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Sequence
from typing import Final

from market_data_core.batch import I32
from market_data_core.protocols import Committed
from market_data_pipeline.consumers.partition_logic import Plan
from market_data_pipeline.telemetry.bounded import HasSymbol, SymbolSlots
from market_data_pipeline.telemetry.metrics import Metrics
from market_data_pipeline.telemetry.observers import ConsumerMetrics

STATES: Final = ("closed", "open", "half-open")
_TABLE: Final = "signals"


class InferenceMetrics(ConsumerMetrics):
    """Both observers of inference: of its consumer (``Observer``) and of its engine (``EngineObserver``)."""

    def __init__(self, metrics: Metrics, topic: str) -> None:
        super().__init__(metrics, topic, _TABLE, ("poison", "rejected"))
        self._slots: dict[str, SymbolSlots] = {}
        self._written, self._withdrawn = (
            metrics.rows.labels(_TABLE, result) for result in ("written", "withdrawn")
        )

    def features(self, interval: str, seconds: float, series: Sequence[HasSymbol], code: I32) -> None:
        """The features of one batch of bars of ``interval`` were brought up to date in ``seconds``.

        ``series`` and ``code`` are those of the batch: row ``i`` is a bar of ``series[code[i]]``. Each bar counts as
        an update of ``seconds / len(code)``, since the batch is worked on as a whole.
        """
        if not len(code):
            return
        slots = self._slots.setdefault(interval, SymbolSlots(self._m.symbols)).of(series)
        self._m.feature_seconds.observe(interval, seconds / len(code), slots[code])

    def evaluated(self, adapter: str, seconds: float, rows: int) -> None:
        self._m.evaluation_seconds.labels(adapter).observe(seconds)
        self._m.evaluated_rows.labels(adapter).inc(rows)

    def failed(self, adapter: str, reason: str) -> None:
        self._m.errors.labels("inference", reason).inc()

    def state(self, adapter: str, state: str) -> None:
        for each in STATES:
            self._m.breaker.labels(adapter, each).set(each == state)

    def flushed(self, partition: int, plan: Plan, committed: Committed, seconds: float, at: int) -> None:
        super().flushed(partition, plan, committed, seconds, at)
        self._written.inc(len(committed.signals) - committed.withdrawn)
        self._withdrawn.inc(committed.withdrawn)
        made = Tally(
            (s.name, str(s.meta.get("adapter", ""))) for s in committed.signals if "withdrawn" not in s.meta
        )
        for (name, adapter), number in made.items():
            self._m.signals.labels(self._m.signal_names.name(name), adapter).inc(number)
