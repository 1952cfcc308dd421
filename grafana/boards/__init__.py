"""The six dashboards: what each panel shows, in PromQL. ``@`` stands for the chosen instances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from grafana_foundation_sdk.builders.dashboard import Dashboard

from grafana.boards.errors import error_monitoring
from grafana.boards.results import feature_computation, inference_engine, store_operations
from grafana.boards.streaming import micro_batch, streaming_overview

BOARDS: Final[dict[str, Callable[[], Dashboard]]] = {
    "streaming-overview": streaming_overview,
    "micro-batch-performance": micro_batch,
    "store-operations": store_operations,
    "feature-computation": feature_computation,
    "inference-engine": inference_engine,
    "error-monitoring": error_monitoring,
}
