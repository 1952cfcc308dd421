"""How events a second, and the CPU time of an event, go with the number of workers."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import polars as pl
from rich.console import Console

from benchmarks import ticks
from benchmarks.fleet import PARTITIONS, BusServer, Fleet, buses
from benchmarks.measure import Measured
from benchmarks.report import Contender, Report
from benchmarks.servers import Servers
from market_data_core.batch import EventBatch
from market_data_core.partitioner import partition_of
from market_data_pipeline.producers.framing import Framer, Parcel

if TYPE_CHECKING:
    from benchmarks.suites import Size

WORKERS: Final = (1, 2, 4)
SYMBOLS: Final = 1000
"""So many that the partitions are about even."""
TIMES: Final = 4
"""What others measure with is too little: a run of half a second says what it costs to wake a worker up."""
_ROWS: Final = 4096
_DONE: Final = "SELECT count(*) >= %s FROM bars_ohlcv WHERE ts <= to_timestamp(%s)"


@dataclass(frozen=True, slots=True)
class Load:
    """Records for eight partitions, the ticks in them, and the bars that they make."""

    parcels: list[Parcel]
    events: int
    bars: pl.DataFrame

    @property
    def records(self) -> int:
        return sum(len(parcel.records) for parcel in self.parcels)


def by_workers(servers: Servers, size: Size, console: Console) -> Report:
    """The same records for one, two and four workers, on Redis and on Kafka."""
    report = Report(
        "scaling",
        f"Workers on {PARTITIONS} partitions, {SYMBOLS:,} symbols, 2 s windows; CPU of all together",
    )
    loads = {"JSON": load("json", size.singles * TIMES), "frames": load("frame", size.framed * TIMES)}
    with buses(servers) as both:
        contenders: dict[str, Contender] = {
            _label(bus, codec, workers): partial(_measured, servers, bus, loads[codec], workers)
            for bus in both
            for codec in loads
            for workers in WORKERS
        }
        report.measure(contenders, size.less_rounds, console)
        for bus in both:
            for codec in loads:
                one, *more = (_label(bus, codec, workers) for workers in WORKERS)
                for label in more:
                    report.compare(f"{label} by one", label, one)
                    report.compare("the same by CPU time of the workers", label, one, cpu=True)
    return report


def load(codec: Literal["json", "frame"], count: int) -> Load:
    """``count`` ticks, and one more in each partition, a minute later, that closes its windows."""
    batch = ticks.ticks(count, SYMBOLS)
    partitions = [partition_of(series.symbol, PARTITIONS) for series in batch.series]
    codes = np.array([partitions.index(p) for p in range(PARTITIONS)], np.int32)
    last = batch.take(np.full(PARTITIONS, count))
    price = last.c
    closing = EventBatch(
        batch.series, codes, last.src_ts, last.ingest_ts, price, price, price, price, last.v, last.seq
    )
    framer = Framer(PARTITIONS, codec, max_rows=_ROWS)
    parts = [batch.take(slice(i, min(i + 32_768, count))) for i in range(0, count, 32_768)]
    parcels = [parcel for part in (*parts, closing) for parcel in framer.parcels(part)]
    return Load(parcels, count, ticks.recount(batch))


def _label(bus: BusServer, codec: str, workers: int) -> str:
    return f"{bus.title}, {codec}, {workers} worker{'s' * (workers > 1)}"


def _measured(servers: Servers, bus: BusServer, load: Load, workers: int) -> Measured:
    """Workers stand still while the topic is filled; from when they go on until the last bar is stored."""
    topic = f"scaling-{uuid.uuid4().hex}"
    servers.rest()
    latest = int(load.bars["ts"].max()) / 1e9  # type: ignore[arg-type]

    async def run() -> Measured:
        async with Fleet(servers, bus, topic, workers, "2s") as fleet:
            fleet.stand()
            async with bus.open() as connection:
                for parcel in load.parcels:
                    await connection.publish(topic, parcel.records, partition=parcel.partition)
            servers.settle(load.records)
            before, began = fleet.cpu(), time.perf_counter()
            fleet.go_on()
            await fleet.stored("every bar is stored", _DONE, len(load.bars), latest)
            seconds, after = time.perf_counter() - began, fleet.cpu()
            cpu = {name: round(after[name] - before[name], 4) for name in after}
            return Measured(load.events, seconds, cpu, peak_bytes=fleet.peak_bytes())

    done = asyncio.run(run())
    ticks.check(servers.bars(), load.bars, f"{workers} workers on {bus.title}")
    if bus.name == "redis":
        servers.drop(topic, PARTITIONS)
    return done
