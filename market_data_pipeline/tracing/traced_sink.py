"""A store whose commits are spans, when what they store is traced."""

from __future__ import annotations

from opentelemetry.trace import Span, SpanKind, Tracer

from market_data_core.errors import MdpError
from market_data_core.protocols import BarSink, Claim, Committed, Flush
from market_data_pipeline.tracing import followed as following
from market_data_pipeline.tracing.followed import Followed
from market_data_pipeline.tracing.traces import Stage


class TracedSink:
    """See :class:`BarSink`. A commit that is tried again is a span each time."""

    def __init__(self, store: BarSink, stage: Stage, tracer: Tracer) -> None:
        self._store = store
        self._stage = stage
        self._tracer = tracer

    async def claim(self, topic: str, group: str, partition: int, owner: str, *, topic_id: str = "") -> Claim:
        return await self._store.claim(topic, group, partition, owner, topic_id=topic_id)

    async def commit(self, flush: Flush) -> Committed:
        followed = following.flush()
        if followed is None:
            return await self._store.commit(flush)
        try:
            committed = await self._traced(flush, followed)
        except BaseException as error:
            if not (isinstance(error, MdpError) and error.retriable):
                followed.end(error)
            raise
        followed.end()
        return committed

    async def _traced(self, flush: Flush, followed: Followed) -> Committed:
        with self._tracer.start_as_current_span(
            f"commit {self._stage.table}",
            followed.context,
            kind=SpanKind.CLIENT,
            links=followed.links,
            attributes={
                "db.system.name": "postgresql",
                "db.collection.name": self._stage.table,
                "mdp.partition": flush.claim.partition,
                "mdp.flush": flush.number,
            },
        ) as span:
            followed.went_on_in(span)
            committed = await self._store.commit(flush)
            _say(span, committed)
            return committed


def _say(span: Span, committed: Committed) -> None:
    span.set_attributes(
        {
            "mdp.bars": len(committed.bars),
            "mdp.signals": len(committed.signals),
            "mdp.rejected": len(committed.rejected),
        }
    )
