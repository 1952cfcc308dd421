"""A partition's logic that notes which of the records it is given are traced, and until when they wait."""

from __future__ import annotations

from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Tracer, set_span_in_context

from market_data_core.protocols import Claim
from market_data_pipeline.consumers.partition_logic import PartitionLogic, Plan
from market_data_pipeline.streaming.bus import Delivery, Offset
from market_data_pipeline.tracing import followed as following
from market_data_pipeline.tracing.followed import Followed
from market_data_pipeline.tracing.traces import Stage


@dataclass(slots=True)
class _Record:
    """A traced record: the span of its processing, and that of its waiting, once it waits."""

    offset: Offset
    processing: Span
    waiting: Span | None = None


class TracedLogic:
    """See :class:`PartitionLogic`.

    A record is stored when the flush is that acknowledges it: then all windows that it is in are. One whose partition
    goes to another worker before that leaves no span here, since that worker reads it again, in the same trace.
    """

    def __init__(self, logic: PartitionLogic, claim: Claim, stage: Stage, tracer: Tracer) -> None:
        self._logic = logic
        self._claim = claim
        self._stage = stage
        self._tracer = tracer
        self._arrived: tuple[Delivery, list[_Record]] | None = None
        self._waiting: list[_Record] = []

    @property
    def start(self) -> Offset | None:
        return self._logic.start

    @property
    def committed(self) -> Offset | None:
        return self._logic.committed

    @property
    def backlog(self) -> int:
        return self._logic.backlog

    async def prepare(self, delivery: Delivery) -> None:
        records = self._records(delivery) if delivery.traces and self._stage.preparing else []
        if not records:
            await self._logic.prepare(delivery)
            return
        followed = Followed([record.processing for record in records])
        with self._tracer.start_as_current_span(
            self._stage.preparing, followed.context, links=followed.links
        ):
            await self._logic.prepare(delivery)

    def process(self, delivery: Delivery) -> None:
        if not delivery.traces:
            self._logic.process(delivery)
            return
        records = self._records(delivery)
        self._arrived = None
        self._logic.process(delivery)
        for record in records:
            if self._stage.waiting:
                record.waiting = self._tracer.start_span(
                    self._stage.waiting, set_span_in_context(record.processing)
                )
        self._waiting += records

    def caught_up(self, at: int) -> None:
        self._logic.caught_up(at)

    def finish(self) -> None:
        self._logic.finish()

    def due(self) -> bool:
        return self._logic.due()

    def take(self) -> Plan:
        plan = self._logic.take()
        if self._waiting:
            stored = [record for record in self._waiting if record.offset <= plan.through]
            self._waiting = self._waiting[len(stored) :]
            for record in stored:
                if record.waiting is not None:
                    record.waiting.end()
            if stored:
                following.begin_flush(Followed([record.processing for record in stored]))
        return plan

    def _records(self, delivery: Delivery) -> list[_Record]:
        """The traced records of ``delivery``, with their spans, which begin when it is first looked at. Those that the
        owner before had stored are read again for their ids alone."""
        if self._arrived is None or self._arrived[0] is not delivery:
            room = following.LIMIT - len(self._waiting)
            before = -1 if self.committed is None else self.committed
            self._arrived = (
                delivery,
                [
                    _Record(delivery.offsets[place], self._begun(delivery, place, context))
                    for place, traceparent in delivery.traces[:room]
                    if delivery.offsets[place] > before
                    and (context := following.read(traceparent)) is not None
                ],
            )
        return self._arrived[1]

    def _begun(self, delivery: Delivery, place: int, context: Context) -> Span:
        claim = self._claim
        return self._tracer.start_span(
            f"process {claim.topic}",
            context,
            kind=SpanKind.CONSUMER,
            attributes={
                "messaging.operation.type": "process",
                "messaging.destination.name": claim.topic,
                "messaging.destination.partition.id": str(claim.partition),
                "messaging.consumer.group.name": claim.group,
                "messaging.batch.message_count": len(delivery.values),
                "mdp.offset": str(delivery.offsets[place]),
                "mdp.owner": claim.owner,
            },
        )
