"""Bars of a topic to signals: what is loaded, the measured process, and a recount of part of it."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from benchmarks.measure import Measured, Stopwatch
from benchmarks.ticks import PROVIDER, START, WINDOW_NS
from market_data_core.batch import BarBatch
from market_data_core.codecs import encode_bars
from market_data_core.events import BarSeries, format_interval
from market_data_pipeline.streaming.bus import Record

MEMBER: Final = "bench"
_MOMENTUM: Final = 10


@dataclass(frozen=True, slots=True)
class BarTopic:
    """Bars on the bus, one frame a window, and how many of them the seed's rules of momentum fire on."""

    name: str
    bars: int
    momentum: int


def bars_of(symbols: int, windows: int, seed: int = 7) -> tuple[list[Record], int]:
    """Records of ``windows`` frames, each with a bar of every symbol, and the count of momentum signals.

    Prices are random walks of 0.4 % a bar: one bar in five has moved by more than 1 % over ten.
    """
    random = np.random.default_rng(seed)
    steps = random.standard_normal((windows, symbols)) * 0.004
    close = 100 * np.exp(np.cumsum(steps, axis=0))
    series = tuple(BarSeries(PROVIDER, f"SYM{i:05d}", format_interval(WINDOW_NS)) for i in range(symbols))
    records = []
    for w in range(windows):
        ts = np.full(symbols, START + w * WINDOW_NS, np.int64)
        price, size = close[w], random.integers(1, 500, symbols).astype(np.float64)
        zero, one = np.zeros(symbols), np.ones(symbols, np.int64)
        frame = BarBatch(
            series=series,
            code=np.arange(symbols, dtype=np.int32),
            ts=ts,
            open=price,
            high=price + 0.05,
            low=price - 0.05,
            close=price,
            volume=size,
            volume_lo=zero,
            notional=price * size,
            notional_lo=zero,
            n_events=one,
            first_ts=ts,
            first_seq=one,
            last_ts=ts,
            last_seq=one,
            revision=one.astype(np.int32),
        )
        records.append(Record("", encode_bars(frame)))
    fired = 0
    for w in range(1, windows):
        moved = close[w] / close[max(0, w - _MOMENTUM + 1)] - 1
        fired += int(np.count_nonzero(np.abs(moved) > 0.01))
    return records, fired


async def rules(given: dict[str, Any]) -> Measured:
    """From the first bar read to the last commit of signals, with the rules and the settings of the product."""
    from market_data_core.config import Settings
    from market_data_core.protocols import Committed
    from market_data_pipeline import telemetry
    from market_data_pipeline.cli.inferring import deciding, inference
    from market_data_pipeline.consumers.partition_logic import Plan
    from market_data_pipeline.consumers.signal_stats import SignalStats
    from market_data_pipeline.streaming.redis_bus import RedisBus
    from market_data_store import StoreClient

    watch, stop = Stopwatch(given["pids"]), asyncio.Event()

    class Watched(SignalStats):
        def assigned(self, partition: int, epoch: int) -> None:
            super().assigned(partition, epoch)
            watch.start()

        def flushed(self, partition: int, plan: Plan, committed: Committed, seconds: float, at: int) -> None:
            super().flushed(partition, plan, committed, seconds, at)
            watch.lap()
            if self.bars >= given["bars"]:
                stop.set()

    stats = Watched()
    settings = Settings.model_validate(
        {"bus": {"redis": {"bars_stream": given["topic"]}}, "inference": {"group": uuid.uuid4().hex}}
    )
    told = telemetry.InferenceMetrics(telemetry.Metrics(), given["topic"])
    async with (
        deciding(settings, "rules", told) as decider,
        RedisBus(given["redis"]) as bus,
        await StoreClient.connect(given["database"]) as store,
    ):
        await inference(settings, decider, bus, store, stats, told, MEMBER).run(stop)
    momentum = sum(n for name, n in stats.by_name.items() if name.startswith("price_momentum"))
    return watch.result(given["bars"], signals=stats.stored, momentum=momentum, flushes=stats.flushes)
