"""Every metric of mdp, by the names and labels that dashboards and alerts rely on."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from market_data_core import __version__
from market_data_core.clock import Clock, SystemClock
from market_data_pipeline.telemetry.arrays import ArrayHistogram, Snapshot, SymbolCounter, SymbolHistogram
from market_data_pipeline.telemetry.bounded import Bounded
from market_data_pipeline.telemetry.partition_state import PartitionState

MAX_SYMBOLS: Final = 200
MAX_PROVIDERS: Final = 50
MAX_LANES: Final = 50
MAX_SIGNALS: Final = 200
_MS: Final = (
    *(1, 2, 5, 10, 20, 50, 100, 200, 300, 500, 750, 1000, 1500, 2000, 3000, 4000, 5000, 7500),
    *(10_000, 15_000, 30_000, 60_000, 90_000, 120_000, 300_000),
)
_WRITE_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_FEATURE_S: Final = (1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 1e-2, 0.1, 1)
_EVALUATION_S: Final = (1e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)
_LOOP_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """The metrics of one process, in a registry of its own so that tests do not share one.

    ``max_symbols``: symbols with a series of their own, first come, first kept; all others are ``other``. Providers,
    lanes and names of signals are bounded too.
    """

    def __init__(self, max_symbols: int = MAX_SYMBOLS, clock: Clock | None = None) -> None:
        self.registry = r = CollectorRegistry()
        self.symbols = Bounded(max_symbols)
        self.providers = Bounded(MAX_PROVIDERS)
        self.signal_names = Bounded(MAX_SIGNALS)
        ProcessCollector(registry=r)
        build = Gauge("mdp_build_info", "1, with the version of mdp", ["version"], registry=r)
        build.labels(__version__).set(1)

        self.ingested = Counter(
            "stream_events_ingested_total", "Total events ingested", ["bus", "topic", "provider"], registry=r
        )
        self.dropped = Counter(
            "producer_dropped_events_total",
            "Events of a live feed dropped for want of room",
            ["provider"],
            registry=r,
        )
        self.spool = Gauge("producer_spool_events", "Events in the spool on disk", ["provider"], registry=r)
        self.spool_bytes = Gauge(
            "producer_spool_bytes", "Bytes of the spool on disk", ["provider"], registry=r
        )

        self.lag = Snapshot(
            "stream_consumer_lag_ms", "Consumer lag in milliseconds", ["topic", "group", "consumer"], r
        )
        self.lag_records = Snapshot(
            "stream_consumer_lag_records",
            "Records of the bus not handed to the consumer yet; a frame is one record of many events",
            ["topic", "group", "consumer"],
            r,
        )
        self.partitions = Gauge(
            "stream_owned_partitions", "Partitions owned by this worker", ["topic"], registry=r
        )
        self.fenced = Counter(
            "stream_fenced_writes_total",
            "Writes refused to a worker that was replaced",
            ["topic"],
            registry=r,
        )
        self.trimmed = Counter(
            "stream_trimmed_records_total",
            "Records removed: expired and done with, or forced by the hard cap",
            ["topic", "kind"],
            registry=r,
        )
        self.dead_letters = Counter(
            "dead_letters_total", "Records put aside", ["topic", "reason"], registry=r
        )

        self.flushes = SymbolCounter(
            "microbatch_flush_total", "Total micro-batch flushes", ["window_ms"], self.symbols, r
        )
        # The exporter takes away the suffix that the library adds to every counter.
        self.flush_rows = Counter("microbatch_flush_rows", "Total rows flushed", ["window_ms"], registry=r)
        self.window_latency = ArrayHistogram(
            "microbatch_window_latency_ms", "Window processing latency", _MS, r
        )
        self.window_length = Gauge(
            "microbatch_window_length_ms", "Length of a window (micro_batch.window_ms)", registry=r
        )
        self.allowed_lateness = Gauge(
            "microbatch_allowed_lateness_ms",
            "How far a watermark stays behind the newest event (micro_batch.allow_late_ms)",
            registry=r,
        )
        self.events = Counter(
            "microbatch_events_total", "Events by what became of them", ["result"], registry=r
        )
        self.amended = Counter("microbatch_amended_total", "Bars amended by late events", registry=r)
        self.partition_state = PartitionState(clock or SystemClock(), Bounded(MAX_LANES), r)

        self.write_seconds = Histogram(
            "store_write_duration_seconds", "Store write duration", ["table"], buckets=_WRITE_S, registry=r
        )
        self.rows = Counter(
            "store_rows_total", "Rows by what the store did with them", ["table", "result"], registry=r
        )

        self.feature_seconds = SymbolHistogram(
            "features_update_duration_seconds",
            "Feature update duration, of one bar",
            "window",
            _FEATURE_S,
            self.symbols,
            r,
        )
        self.evaluation_seconds = Histogram(
            "inference_eval_duration_seconds",
            "Inference evaluation duration",
            ["adapter"],
            buckets=_EVALUATION_S,
            registry=r,
        )
        self.evaluated_rows = Counter(
            "inference_evaluated_rows_total", "Bars evaluated", ["adapter"], registry=r
        )
        self.breaker = Gauge(
            "inference_breaker_state",
            "1 for what the breaker of an adapter is, 0 for what it is not",
            ["adapter", "state"],
            registry=r,
        )
        self.signals = Counter(
            "signals_emitted_total", "Total signals emitted", ["name", "adapter"], registry=r
        )

        self.errors = Counter("errors_total", "Total errors", ["component", "reason"], registry=r)
        self.retries = Counter(
            "retries_total", "Calls that failed and are made again", ["component"], registry=r
        )
        self.loop_delay = Histogram(
            "event_loop_delay_seconds", "How late the event loop wakes a task", buckets=_LOOP_S, registry=r
        )
