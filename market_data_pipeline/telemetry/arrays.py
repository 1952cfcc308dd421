"""Counters and histograms kept as arrays: one update for all rows of a batch, under one lock.

``prometheus_client`` takes a lock and searches a bucket for each value, which is right for a request a millisecond and
too much for each bar of ten thousand symbols. These are collectors for its registry.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from market_data_core.batch import F64
from market_data_pipeline.telemetry.bounded import Bounded


class SymbolCounter(Collector):
    """A counter with the labels ``labels`` and ``symbol``."""

    def __init__(
        self, name: str, about: str, labels: Sequence[str], symbols: Bounded, registry: CollectorRegistry
    ) -> None:
        self._name, self._about, self._labels = name.removesuffix("_total"), about, tuple(labels)
        self._symbols = symbols
        self._lock = threading.Lock()
        self._columns: dict[tuple[str, ...], F64] = {}
        registry.register(self)

    def mark(self, labels: tuple[str, ...], slots: NDArray[np.intp]) -> None:
        """Count 1 for each symbol that is among ``slots``, however often."""
        present = np.bincount(slots, minlength=len(self._symbols.names)) > 0
        with self._lock:
            column = self._columns.get(labels, np.zeros(0))
            if len(column) < len(present):
                column = np.concatenate((column, np.zeros(len(present) - len(column))))
            self._columns[labels] = column + present

    def collect(self) -> Iterator[Metric]:
        family = Metric(self._name, self._about, "counter")
        with self._lock:
            columns = dict(self._columns)
        for labels, column in columns.items():
            fixed = dict(zip(self._labels, labels, strict=True))
            for slot, value in enumerate(column.tolist()):
                if value or slot:
                    family.add_sample(
                        f"{self._name}_total", {**fixed, "symbol": self._symbols.names[slot]}, value
                    )
        yield family

    def describe(self) -> Iterator[Metric]:
        yield Metric(self._name, self._about, "counter")


class ArrayHistogram(Collector):
    """A histogram without labels that takes many values at once."""

    def __init__(self, name: str, about: str, buckets: Sequence[float], registry: CollectorRegistry) -> None:
        self._name, self._about = name, about
        self._bounds = np.array(sorted(buckets), np.float64)
        self._lock = threading.Lock()
        self._counts = np.zeros(len(self._bounds) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, values: F64) -> None:
        """Add all of ``values``. A bucket takes what is at most its bound."""
        found = np.bincount(np.searchsorted(self._bounds, values), minlength=len(self._counts))
        total = float(values.sum())
        with self._lock:
            self._counts = self._counts + found
            self._sum += total

    def collect(self) -> Iterator[Metric]:
        family = Metric(self._name, self._about, "histogram")
        with self._lock:
            counts, total = self._counts, self._sum
        _add_buckets(family, self._name, {}, self._bounds, counts, total)
        yield family

    def describe(self) -> Iterator[Metric]:
        yield Metric(self._name, self._about, "histogram")


class SymbolHistogram(Collector):
    """A histogram with the labels ``symbol`` and ``label``, of values that all rows of a batch share."""

    def __init__(
        self,
        name: str,
        about: str,
        label: str,
        buckets: Sequence[float],
        symbols: Bounded,
        registry: CollectorRegistry,
    ) -> None:
        self._name, self._about, self._label = name, about, label
        self._symbols = symbols
        self._bounds = np.array(sorted(buckets), np.float64)
        self._lock = threading.Lock()
        self._tables: dict[str, tuple[F64, F64]] = {}
        registry.register(self)

    def observe(self, label: str, value: float, slots: NDArray[np.intp]) -> None:
        """``value``, once for each row; ``slots`` are the rows' symbols."""
        rows = np.bincount(slots, minlength=len(self._symbols.names)).astype(np.float64)
        bucket = int(np.searchsorted(self._bounds, value))
        with self._lock:
            counts, sums = self._tables.get(label) or (np.zeros((0, len(self._bounds) + 1)), np.zeros(0))
            if len(sums) < len(rows):
                more = len(rows) - len(sums)
                counts = np.concatenate((counts, np.zeros((more, len(self._bounds) + 1))))
                sums = np.concatenate((sums, np.zeros(more)))
            else:
                counts = counts.copy()
            counts[:, bucket] += rows
            self._tables[label] = (counts, sums + rows * value)

    def collect(self) -> Iterator[Metric]:
        family = Metric(self._name, self._about, "histogram")
        with self._lock:
            tables = dict(self._tables)
        for label, (counts, sums) in tables.items():
            for slot in np.flatnonzero(counts.sum(axis=1)).tolist():
                labels = {"symbol": self._symbols.names[slot], self._label: label}
                _add_buckets(family, self._name, labels, self._bounds, counts[slot], float(sums[slot]))
        yield family

    def describe(self) -> Iterator[Metric]:
        yield Metric(self._name, self._about, "histogram")


class Snapshot(Collector):
    """A gauge of which all values are replaced at once, so that what is gone leaves no series behind."""

    def __init__(self, name: str, about: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name, self._about, self._labels = name, about, tuple(labels)
        self._values: dict[str, dict[tuple[str, ...], float]] = {}
        registry.register(self)

    def replace(self, source: str, values: dict[tuple[str, ...], float]) -> None:
        """Everything that ``source`` tells."""
        self._values = {**self._values, source: values}

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(self._name, self._about, labels=self._labels)
        for values in self._values.values():
            for labels, value in values.items():
                family.add_metric(labels, value)
        yield family

    def describe(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(self._name, self._about, labels=self._labels)


def _add_buckets(
    family: Metric, name: str, labels: dict[str, str], bounds: F64, counts: F64, total: float
) -> None:
    running = np.cumsum(counts).tolist()
    for bound, count in zip([*bounds.tolist(), np.inf], running, strict=True):
        family.add_sample(
            f"{name}_bucket", {**labels, "le": "+Inf" if bound == np.inf else repr(bound)}, count
        )
    family.add_sample(f"{name}_count", labels, running[-1])
    family.add_sample(f"{name}_sum", labels, total)
