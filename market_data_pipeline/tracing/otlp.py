"""Sends spans to an OTLP endpoint over HTTP, from a thread of its own.

Spans wait in a bounded queue; at the bound the oldest are dropped. So an endpoint that is slow or away costs spans and
nothing else. What is not set here is OpenTelemetry's: its variables OTEL_EXPORTER_OTLP_*, OTEL_BSP_* and
OTEL_RESOURCE_ATTRIBUTES hold.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_SERVICE_NAME
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

import market_data_core
from market_data_core.config import Traces as Settings
from market_data_pipeline.tracing.spans import Spans

log = structlog.get_logger(__name__)
PATH: Final = "/v1/traces"
LAST_SECONDS: Final = 5.0
"""How long the end of a process waits for its last spans to be sent."""


@contextmanager
def sending(settings: Settings, process: str) -> Iterator[Spans]:
    """Spans of ``process``, sent while the block runs."""
    provider = provider_of(settings, process)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint_of(settings))))
    try:
        yield Spans(provider)
    finally:
        # The provider itself would wait for half a minute.
        last = threading.Thread(target=provider.shutdown, name="mdp-last-spans", daemon=True)
        last.start()
        last.join(LAST_SECONDS)
        if last.is_alive():
            log.warning("the last spans were not sent in time; the endpoint of traces does not answer")


def provider_of(settings: Settings, process: str) -> TracerProvider:
    """A provider that samples as the settings say, and names the service ``mdp-<process>``, unless OTEL_SERVICE_NAME
    does."""
    attributes: dict[str, str | bool | int | float] = {SERVICE_VERSION: market_data_core.__version__}
    if not os.environ.get(OTEL_SERVICE_NAME):
        attributes[SERVICE_NAME] = f"mdp-{process}"
    sampler = ParentBased(TraceIdRatioBased(settings.ratio))
    return TracerProvider(sampler=sampler, resource=Resource.create(attributes), shutdown_on_exit=False)


def endpoint_of(settings: Settings) -> str | None:
    """The full URL, or None: as the variables of OpenTelemetry say."""
    base = settings.endpoint.reveal().rstrip("/")
    if not base or base.endswith(PATH):
        return base or None
    return base + PATH
