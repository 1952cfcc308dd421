"""Puts the producer of ``stream run`` and ``mdp demo`` together: live synthetic events, noted for the recount."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from market_data_core.batch import EventBatch
from market_data_core.config import Settings
from market_data_pipeline.audit import Audit
from market_data_pipeline.producers.counts import ProducerObserver
from market_data_pipeline.producers.pacing import EventTimePace, Pace, Unpaced
from market_data_pipeline.producers.provider import BadRow, Provider, ProviderRequest, load_provider
from market_data_pipeline.producers.runner import ProducerRunner, RunnerOptions
from market_data_pipeline.streaming.bus import Bus


class Noted:
    """A provider whose events an audit takes note of, before anything else of mdp sees them."""

    def __init__(self, provider: Provider, audit: Audit) -> None:
        self._provider = provider
        self._audit = audit
        self.name = provider.name
        self.can_wait = provider.can_wait

    def batches(self) -> Iterator[EventBatch | BadRow]:
        for batch in cast("Iterator[EventBatch | BadRow]", self._provider.batches()):
            if isinstance(batch, EventBatch):
                self._audit.observe(batch)
            yield batch


def live_runner(
    settings: Settings, bus: Bus, audit: Audit, duration: float | None, observer: ProducerObserver
) -> ProducerRunner:
    """A runner of the synthetic provider as the settings ask for it."""
    request = ProviderRequest(settings)
    provider = Noted(load_provider("synthetic")(request), audit)
    paced = settings.producers.synthetic.tick_rate > 0
    pace: Pace = EventTimePace(1.0, "ingest_ts", request.clock) if paced else Unpaced()
    options = RunnerOptions(
        partitions=settings.bus.redis.partitions, codec=settings.bus.codec, duration_s=duration
    )
    return ProducerRunner(bus, provider, settings.bus.redis.stream, options, pace=pace, observer=observer)
