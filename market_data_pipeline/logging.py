"""Logs: structured, on stderr, without secrets."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from market_data_core.redact import redact


def configure(level: str = "INFO", *, json: bool | None = None) -> None:
    """Send structlog's and the libraries' records of at least ``level`` to stderr.

    One JSON object a line with ``json``, ``key=value`` for people without; None chooses for people on a terminal
    and JSON for a file or a pipe. Libraries are heard from WARNING on, unless ``level`` is DEBUG.
    """
    as_json = not sys.stderr.isatty() if json is None else json
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    # A traceback becomes text before secrets are hidden, and shows no local variables.
    render: list[Any] = [
        structlog.processors.format_exc_info,
        _hide_secrets,
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(pad_event_to=0),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel("DEBUG" if level == "DEBUG" else "WARNING")
    if level != "DEBUG":
        # It logs each attempt to reach a broker that is away; what comes of it is told by the driver.
        logging.getLogger("aiokafka").setLevel("CRITICAL")
        # So is each attempt to reach a collector; spans that are given up are an error of its.
        logging.getLogger("opentelemetry").setLevel("ERROR")
    for ours in ("mdp", "market_data_core", "market_data_store", "market_data_pipeline"):
        logging.getLogger(ours).setLevel(level)


def _hide_secrets(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if not isinstance(value, int | float | None):
            event[name] = redact(value if isinstance(value, str) else str(value))
    return event
