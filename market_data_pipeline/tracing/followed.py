"""Traced records on their way through a consumer, and the context that a flush of theirs goes by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context, attach, create_key, get_value, set_value
from opentelemetry.trace import Link, Span, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from structlog.contextvars import bind_contextvars

from market_data_pipeline.streaming.bus import TRACEPARENT

LIMIT: Final = 128
"""Traced records of one partition that are followed to the store at once: as many as a span has links by default."""
_PROPAGATOR: Final = TraceContextTextMapPropagator()
_FLUSH: Final = create_key("mdp-flush")


class Followed:
    """The traced records that one delivery brought, or that one flush stores: their spans, at least one.

    What is done for all of them at once is in the trace of the first, with links to the others.
    """

    def __init__(self, spans: Sequence[Span]) -> None:
        self._first, *self._others = spans

    @property
    def context(self) -> Context:
        return trace.set_span_in_context(self._first)

    @property
    def links(self) -> list[Link]:
        return [Link(span.get_span_context()) for span in self._others]

    def went_on_in(self, span: Span) -> None:
        """Have the others say where they are dealt with."""
        for other in self._others:
            other.add_link(span.get_span_context())

    def end(self, error: BaseException | None = None) -> None:
        for span in (self._first, *self._others):
            if error is not None:
                span.set_status(Status(StatusCode.ERROR, str(error)))
            span.end()


def begin_flush(followed: Followed) -> None:
    """From now on what this task does is done for ``followed``; its logs say the trace."""
    context = followed.context
    attach(set_value(_FLUSH, followed, context))
    identity = trace.get_current_span(context).get_span_context().trace_id
    bind_contextvars(trace=trace.format_trace_id(identity))


def flush() -> Followed | None:
    """For which records this task flushes; None when none of them is traced."""
    found = get_value(_FLUSH)
    return found if isinstance(found, Followed) else None


def written(span: Span) -> str:
    """The traceparent of ``span``."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
    return carrier[TRACEPARENT]


def read(traceparent: str) -> Context | None:
    """The context of a traceparent; None when it is none, or says that its trace was not sampled."""
    context = _PROPAGATOR.extract({TRACEPARENT: traceparent}, Context())
    found = trace.get_current_span(context).get_span_context()
    return context if found.is_valid and found.trace_flags.sampled else None
