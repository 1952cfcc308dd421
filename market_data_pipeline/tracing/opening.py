"""Switches traces on for a process, if the settings ask for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from market_data_core.config import Settings
from market_data_core.errors import ConfigError
from market_data_pipeline.tracing.traces import UNTRACED, Traces


@contextmanager
def traces(settings: Settings, process: str) -> Iterator[Traces]:
    """The traces of ``process`` (``produce``, ``micro-batch``, ...) while the block runs; then what is left is sent,
    for a few seconds at most.

    Raises:
        ConfigError: they are switched on, and OpenTelemetry is not installed.
    """
    wanted = settings.telemetry.traces
    if not wanted.enabled:
        yield UNTRACED
        return
    try:
        from market_data_pipeline.tracing.otlp import sending
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "opentelemetry":
            raise
        raise ConfigError(
            "telemetry.traces.enabled is true, and OpenTelemetry is not installed: pip install 'mdp[otel]'"
        ) from None
    with sending(wanted, process) as switched_on:
        yield switched_on
