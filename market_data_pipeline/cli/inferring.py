"""Puts an inference consumer together from the settings: for ``infer``, ``run`` and ``demo`` alike."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from market_data_core.clock import SystemClock
from market_data_core.config import Settings
from market_data_core.protocols import Claim
from market_data_pipeline.cli.batching import member_name, spare_collector
from market_data_pipeline.consumers.exactly_once import (
    ConsumerSettings,
    ExactlyOnceConsumer,
    Observer,
)
from market_data_pipeline.consumers.inference_consumer import PartitionSignals
from market_data_pipeline.consumers.partition_logic import PartitionLogic
from market_data_pipeline.inference.decider import Decider, interval_of
from market_data_pipeline.inference.observer import EngineObserver, FeatureObserver
from market_data_pipeline.inference.signal_maker import SignalMaker
from market_data_pipeline.streaming.bus import Bus
from market_data_pipeline.tracing.traces import INFERRING, UNTRACED, Traces

if TYPE_CHECKING:
    from market_data_store.client import StoreClient


class InferenceObserver(EngineObserver, FeatureObserver, Protocol):
    """Told of features and of decisions."""


def adapter_of(settings: Settings) -> str | None:
    """The adapter that the configuration enables: a model before rules, which stand in for it."""
    adapters = settings.inference.adapters
    return "sklearn" if adapters.sklearn.enabled else "rules" if adapters.rules.enabled else None


@asynccontextmanager
async def deciding(
    settings: Settings, adapter: str, told: InferenceObserver | None = None
) -> AsyncIterator[Decider]:
    """What decides, opened before anything is connected to or started: a wrong model or rule is refused first.

    Raises:
        MdpError: the adapter cannot be had as it is configured.
    """
    decider = Decider.from_settings(settings, adapter, SystemClock(), told)
    async with decider.engine:
        yield decider


def inference(
    settings: Settings,
    decider: Decider,
    bus: Bus,
    store: StoreClient,
    observer: Observer,
    told: InferenceObserver | None = None,
    member: str | None = None,
    traces: Traces = UNTRACED,
) -> ExactlyOnceConsumer:
    """A member of the group of inference, not yet running; ``decider`` belongs to whoever made it.

    ``observer`` is told of what it commits, ``told`` of what it computes.
    """
    redis, clock = settings.bus.redis, SystemClock()
    interval = interval_of(settings)

    def logic(claim: Claim) -> PartitionLogic:
        signals = PartitionSignals(
            claim,
            lambda watermark: SignalMaker(interval, decider, store, watermark, observer=told, clock=clock),
            clock,
            bus.format_offset,
            bus.parse_offset,
        )
        return traces.logic(signals, claim, INFERRING)

    consumer = ConsumerSettings(
        topic=redis.bars_stream,
        group=settings.inference.group,
        member=member or member_name(settings),
        bars_topic=redis.bars_stream,
        dead_letter_topic=f"{redis.bars_stream}.dlq",
        signals_topic=redis.signals_stream,
        max_records=settings.micro_batch.max_batch_size,
        lease_ms=redis.lease_ms,
        static=bool(settings.bus.member),
    )
    spare_collector()
    return ExactlyOnceConsumer(
        traces.consuming(bus), traces.sink(store, INFERRING), consumer, logic, clock, observer
    )
