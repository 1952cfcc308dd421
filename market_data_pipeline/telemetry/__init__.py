"""What operators see of a running process: Prometheus metrics, and whether it is alive and ready.

Observers translate what consumers, producers and the inference engine report, probes ask the bus and the event loop;
nothing else in mdp touches a metric.
"""

from market_data_pipeline.telemetry.exporter import exporter
from market_data_pipeline.telemetry.health import Health
from market_data_pipeline.telemetry.inference import InferenceMetrics
from market_data_pipeline.telemetry.metrics import Metrics
from market_data_pipeline.telemetry.observers import MetricsObserver, ProducerMetrics, trimmed
from market_data_pipeline.telemetry.probes import Membership, watching

__all__ = [
    "Health",
    "InferenceMetrics",
    "Membership",
    "Metrics",
    "MetricsObserver",
    "ProducerMetrics",
    "exporter",
    "trimmed",
    "watching",
]
