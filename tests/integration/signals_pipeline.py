"""An inference worker in this process on real servers, beside the micro-batcher of ``pipeline.py``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from market_data_core.clock import Clock, SystemClock
from market_data_core.config_signals import Features
from market_data_core.errors import ConfigError
from market_data_core.protocols import Claim
from market_data_pipeline.consumers.exactly_once import ConsumerSettings, ExactlyOnceConsumer
from market_data_pipeline.consumers.inference_consumer import PartitionSignals
from market_data_pipeline.consumers.signal_stats import SignalStats
from market_data_pipeline.features.definitions import feature_names
from market_data_pipeline.inference.adapters.watched_rules import WatchedRules
from market_data_pipeline.inference.decider import Decider
from market_data_pipeline.inference.engine import InferenceEngine
from market_data_pipeline.inference.signal_maker import SignalMaker
from market_data_pipeline.streaming.bus import Bus
from market_data_store import StoreClient

BARS: Final = "t.bars"
SIGNALS: Final = "t.signals"
FEATURES: Final = Features.model_validate({"windows": [{"name": "vwap_6s", "horizon": "6s"}]})


class Decides:
    """Rules of a file, which is looked at when ``clock`` has moved on; ``failures``: why a file was refused."""

    def __init__(self, file: Path, clock: Clock) -> None:
        self.failures: list[ConfigError] = []
        rules = WatchedRules(file, feature_names(FEATURES), on_failure=self.failures.append, clock=clock)
        self.decider = Decider(InferenceEngine(rules), FEATURES, (rules,), clock)


def inferrer(
    bus: Bus, store: StoreClient, decides: Decides, stats: SignalStats, group: str = "i"
) -> ExactlyOnceConsumer:
    """A member of ``group``, which makes signals of bars of two seconds."""
    clock = SystemClock()

    def logic(claim: Claim) -> PartitionSignals:
        return PartitionSignals(
            claim,
            lambda watermark: SignalMaker("2s", decides.decider, store, watermark),
            clock,
            bus.format_offset,
            bus.parse_offset,
        )

    consumer = ConsumerSettings(
        topic=BARS,
        group=group,
        member="m",
        bars_topic=BARS,
        dead_letter_topic=f"{BARS}.dlq",
        signals_topic=SIGNALS,
        lease_ms=2000,
    )
    return ExactlyOnceConsumer(bus, store, consumer, logic, clock, stats)


async def infer(
    bus: Bus, store: StoreClient, decides: Decides, group: str = "i", idle: float = 0.3
) -> SignalStats:
    """Make signals until no bars come."""
    stats = SignalStats()
    await inferrer(bus, store, decides, stats, group).run(asyncio.Event(), idle)
    return stats


@asynccontextmanager
async def inferring(
    bus: Bus, store: StoreClient, decides: Decides, stats: SignalStats
) -> AsyncIterator[None]:
    """A worker at work, cut off in the middle at the end of the block."""
    task = asyncio.create_task(inferrer(bus, store, decides, stats).run(asyncio.Event()))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
