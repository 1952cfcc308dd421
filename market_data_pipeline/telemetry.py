"""Prometheus metrics: the names and labels that dashboards rely on, and the exporter.

Observers translate what the consumers and producers report; nothing else in mdp touches a metric.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from market_data_core.errors import ConfigError
from market_data_core.protocols import Committed
from market_data_pipeline.consumers.exactly_once import Plan
from market_data_pipeline.producers.counts import Counts, ProducerObserver
from market_data_pipeline.windows.tumbling import FOREVER, NEVER

log = structlog.get_logger(__name__)
_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 60_000)


class Metrics:
    """Every metric of mdp, in a registry of its own so that tests do not share one."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.ingested = Counter(
            "stream_events_ingested_total", "Total events ingested", ["bus", "topic", "provider"], registry=r
        )
        self.lag = Gauge(
            "stream_consumer_lag_ms",
            "Consumer lag in milliseconds",
            ["topic", "group", "consumer"],
            registry=r,
        )
        self.flushes = Counter(
            "microbatch_flush_total", "Total micro-batch flushes", ["window_ms", "symbol"], registry=r
        )
        self.flush_rows = Counter("microbatch_flush_rows", "Total rows flushed", ["window_ms"], registry=r)
        self.window_latency = Histogram(
            "microbatch_window_latency_ms", "Window processing latency", buckets=_MS, registry=r
        )
        self.write_seconds = Histogram(
            "store_write_duration_seconds", "Store write duration", ["table"], registry=r
        )
        self.errors = Counter("errors_total", "Total errors", ["component", "reason"], registry=r)
        self.events = Counter(
            "microbatch_events_total", "Events by what became of them", ["result"], registry=r
        )
        self.amended = Counter("microbatch_amended_total", "Bars amended by late events", registry=r)
        self.dead_letters = Counter("dead_letters_total", "Records put aside", ["topic"], registry=r)
        self.fenced = Counter(
            "stream_fenced_writes_total", "Writes refused to a worker that was replaced", registry=r
        )
        self.spool = Gauge("producer_spool_events", "Events in the spool on disk", ["provider"], registry=r)
        self.partitions = Gauge("stream_owned_partitions", "Partitions owned by this worker", registry=r)
        self.open_windows = Gauge(
            "microbatch_open_windows", "Open (symbol, window) rows", ["partition"], registry=r
        )
        self.watermark = Gauge(
            "microbatch_watermark_seconds",
            "Watermark of a lane, Unix time",
            ["partition", "lane"],
            registry=r,
        )


class MetricsObserver:
    """Turns what a micro-batcher reports into metrics."""

    def __init__(self, metrics: Metrics, topic: str, window_ms: int) -> None:
        self._m = metrics
        self._topic = topic
        self._window = str(window_ms)
        self._owned: set[int] = set()

    def assigned(self, partition: int, epoch: int) -> None:
        self._owned.add(partition)
        self._m.partitions.set(len(self._owned))

    def released(self, partition: int, reason: str) -> None:
        self._owned.discard(partition)
        self._m.partitions.set(len(self._owned))

    def fenced(self, partition: int) -> None:
        self._m.fenced.inc()

    def retrying(self, what: str, error: BaseException) -> None:
        self._m.errors.labels(what, type(error).__name__).inc()
        log.warning("retrying", what=what, error=str(error))

    def flushed(self, partition: int, plan: Plan, committed: Committed, seconds: float, at: int) -> None:
        m = self._m
        m.write_seconds.labels("bars_ohlcv").observe(seconds)
        for result in ("accepted", "duplicate", "late", "handled", "skipped", "expired"):
            count = getattr(plan.counts, result)
            if count:
                m.events.labels(result).inc(count)
        if plan.dead_letters or committed.stale:
            m.dead_letters.labels(self._topic).inc(len(plan.dead_letters) + committed.stale)
        m.amended.inc(committed.amended)
        m.open_windows.labels(partition).set(plan.open_rows)
        for lane, watermark in plan.watermarks.items():
            if lane.startswith("live/") and watermark not in (NEVER, FOREVER):
                m.watermark.labels(partition, lane).set(watermark / 1e9)
        bars = committed.bars
        if len(bars):
            m.flush_rows.labels(self._window).inc(len(bars))
            for code in np.unique(bars.code).tolist():
                m.flushes.labels(self._window, bars.series[code].symbol).inc()
        for closable in plan.closable_at:
            m.window_latency.observe((at - closable) / 1e6)


class ProducerMetrics(ProducerObserver):
    """Turns what a producer reports into metrics."""

    def __init__(self, metrics: Metrics, bus: str) -> None:
        self._m = metrics
        self._bus = bus

    def published(self, counts: Counts, events: int) -> None:
        self._m.ingested.labels(self._bus, counts.topic, counts.provider).inc(events)

    def changed(self, counts: Counts) -> None:
        self._m.spool.labels(counts.provider).set(counts.spool_events)


@contextmanager
def exporter(metrics: Metrics, port: int) -> Iterator[None]:
    """Serve ``/metrics`` on 127.0.0.1 while the block runs; nothing when ``port`` is 0.

    Raises:
        ConfigError: the port is taken.
    """
    if port == 0:
        yield
        return
    try:
        server, thread = start_http_server(port, addr="127.0.0.1", registry=metrics.registry)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise ConfigError(
            f"telemetry.metrics_port: port {port} on 127.0.0.1 cannot be used ({error.strerror}); "
            "set another one, or 0 to switch the exporter off"
        ) from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
