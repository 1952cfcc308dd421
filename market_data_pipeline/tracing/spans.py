"""The spans of one process.

One trace from publish to signals::

    publish mdp.events                   the producer; every sampled publish is a trace
    └── process mdp.events               the micro-batcher, from the first look at the record until it is stored
        ├── window                       until the last window that the record is in has closed
        ├── commit bars_ohlcv
        └── publish mdp.bars
            └── process mdp.bars         inference, until the signals are stored
                ├── infer
                ├── commit signals
                └── publish mdp.signals

A flush stores the windows of many records. Its spans are in the trace of the first traced one of them, and link to
those of the others, which link back.
"""

from __future__ import annotations

from opentelemetry.trace import TracerProvider

from market_data_core.protocols import BarSink, Claim
from market_data_pipeline.consumers.partition_logic import PartitionLogic
from market_data_pipeline.streaming.bus import Bus
from market_data_pipeline.tracing.traced_bus import TracedBus
from market_data_pipeline.tracing.traced_logic import TracedLogic
from market_data_pipeline.tracing.traced_sink import TracedSink
from market_data_pipeline.tracing.traces import Stage


class Spans:
    """See :class:`Traces`. The provider samples, and says where spans go."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("mdp")

    def producing(self, bus: Bus) -> Bus:
        return TracedBus(bus, self._tracer, begins=True)

    def consuming(self, bus: Bus) -> Bus:
        return TracedBus(bus, self._tracer, begins=False)

    def logic(self, logic: PartitionLogic, claim: Claim, stage: Stage) -> PartitionLogic:
        return TracedLogic(logic, claim, stage, self._tracer)

    def sink(self, store: BarSink, stage: Stage) -> BarSink:
        return TracedSink(store, stage, self._tracer)
