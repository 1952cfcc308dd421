"""Traces: one sampled publish, followed through the micro-batcher, the store and inference to its signals.

Tracing is put around what does the work, which knows nothing of it: around the bus that is published to, around the
logic of a partition, around the store. Without traces nothing is put around anything. OpenTelemetry is imported when
they are switched on, and not before.
"""

from market_data_pipeline.tracing.opening import traces
from market_data_pipeline.tracing.traces import UNTRACED, Stage, Traces

__all__ = ["UNTRACED", "Stage", "Traces", "traces"]
