"""What one symbol with most of the events does to the bars of the others."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import ticks
from benchmarks.fleet import PARTITIONS, BusServer, Fleet, buses
from benchmarks.measure import Measured
from benchmarks.report import Contender, Ratio, Report
from benchmarks.servers import Servers
from market_data_core.batch import EventBatch
from market_data_core.codecs import encode_events
from market_data_core.events import Series
from market_data_core.frames import decode_bars
from market_data_core.partitioner import partition_of
from market_data_pipeline.streaming.bus import Bus, Record

if TYPE_CHECKING:
    from benchmarks.suites import Size

How = Literal["no hot symbol", "hot, even load", "hot, burst"]
HOWS: Final[tuple[How, ...]] = ("no hot symbol", "hot, even load", "hot, burst")
WORKERS: Final = 2
OTHERS: Final = 200
RATE: Final = 4000
"""Events a second of all others together; the hot symbol has four times as many."""
_HOT: Final = tuple(Series(ticks.PROVIDER, f"SYM{i:05d}", "tick", "1s") for i in range(OTHERS + 1))
"""The first one is the hot one."""
_WINDOW_NS: Final = 10**9
_LATE_NS: Final = 500_000_000
_EVERY_S: Final = 0.02
_CHUNK: Final = 4000
_DONE: Final = "SELECT coalesce(sum(n_events), 0) >= %s FROM bars_ohlcv"


@dataclass(frozen=True, slots=True)
class Delays:
    """Seconds of the others' bars: of all, and of those in the hot symbol's partition."""

    everywhere: NDArray[np.float64]
    beside: NDArray[np.float64]


def hot_symbol(servers: Servers, size: Size, console: Console) -> Report:
    """The others' delay without a hot symbol, beside one that has 80 % of all events evenly, and one that has them at
    once. A bar's delay is from when its window could close first (its end and the allowed lateness) until it lies on
    the topic of bars, which is after its commit."""
    report = Report(
        "hot", f"One symbol with 80 % of all events, {WORKERS} workers, {PARTITIONS} partitions, 1 s windows"
    )
    with buses(servers) as both:
        contenders: dict[str, Contender] = {
            f"{bus.title}, {how}": partial(_measured, servers, bus, how, size.hot_seconds)
            for bus in both
            for how in HOWS
        }
        report.measure(contenders, size.less_rounds, console)
        for bus in both:
            alone, *hot = (f"{bus.title}, {how}" for how in HOWS)
            for label in hot:
                pairs = zip(report.runs[alone], report.runs[label], strict=True)
                values = [a.more["p95"] / b.more["p95"] for a, b in pairs]
                report.ratios.append(Ratio(f"{label}: p95 of the others without it, by with it", values, 0.5))
    for label, runs in report.runs.items():
        figures = {name: median(run.more[name] for run in runs) for name in ("p50", "p95", "p99", "beside")}
        report.notes.append(
            f"{label}: delay of the others {figures['p50']:.3f} s in the middle, p95 {figures['p95']:.3f} s, "
            f"p99 {figures['p99']:.3f} s; of those in the partition of the hot one p95 {figures['beside']:.3f} s"
        )
    return report


def _measured(servers: Servers, bus: BusServer, how: How, seconds: float) -> Measured:
    topic = f"hot-{uuid.uuid4().hex}"
    events = int(seconds * RATE) * (1 if how == "no hot symbol" else 5)
    servers.rest(events)

    async def run() -> Measured:
        async with Fleet(servers, bus, topic, WORKERS, "1s") as fleet, bus.open() as connection:
            begin = time.time_ns() // _WINDOW_NS * _WINDOW_NS + 2 * _WINDOW_NS
            end = begin + int(seconds * 1e9)
            before, began = fleet.cpu(), time.perf_counter()
            async with asyncio.TaskGroup() as flows:
                flows.create_task(_even(connection, topic, begin, end, with_hot=how == "hot, even load"))
                if how == "hot, burst":
                    flows.create_task(_burst(connection, topic, begin, end))
            await fleet.stored("every event is in a bar", _DONE, events)
            after, took = fleet.cpu(), time.perf_counter() - began
            delays = await _delays(connection, fleet.bars_topic, begin, end)
            cpu = {name: round(after[name] - before[name], 4) for name in after}
            p50, p95, p99 = np.percentile(delays.everywhere, (50, 95, 99)).tolist()
            more = {"p50": p50, "p95": p95, "p99": p99, "beside": float(np.percentile(delays.beside, 95))}
            return Measured(events, took, cpu, peak_bytes=fleet.peak_bytes(), more=more)

    done = asyncio.run(run())
    if bus.name == "redis":
        servers.drop(topic, PARTITIONS)
    return done


async def _even(bus: Bus, topic: str, begin: int, end: int, *, with_hot: bool) -> None:
    """Events as they are due, every 20 ms."""
    done = begin
    while done < end:
        now = min(max(time.time_ns(), begin), end)
        parts = [_events(begin, done, now, RATE, hot=False)]
        parts += [_events(begin, done, now, 4 * RATE, hot=True)] if with_hot else []
        await bus.publish(topic, [record for part in parts for record in _records(part)])
        done = now
        await asyncio.sleep(_EVERY_S)


async def _burst(bus: Bus, topic: str, begin: int, end: int) -> None:
    """All events of the hot symbol that it has in this time, at once and as fast as they can be published; each is of
    the half second before."""
    at = begin + (end - begin) // 3
    count = (end - begin) // 10**9 * 4 * RATE
    src_ts = at - 500_000_000 + np.arange(count, dtype=np.int64) * (500_000_000 // count)
    # Beside the loop, which the others' events go through.
    batch = _batch(np.zeros(count, np.int32), src_ts, np.arange(count))
    records = await asyncio.to_thread(_records, batch)
    await asyncio.sleep(max(0.0, (at - time.time_ns()) / 1e9))
    for start in range(0, count, _CHUNK):
        await bus.publish(topic, records[start : start + _CHUNK])


def _events(begin: int, since: int, until: int, rate: int, *, hot: bool) -> EventBatch:
    """The events due from ``since`` until before ``until`` of a load that began at ``begin``."""
    step = 10**9 // rate
    numbers = np.arange(-(-(since - begin) // step), -(-(until - begin) // step), dtype=np.int64)
    code = np.zeros(len(numbers), np.int32) if hot else (numbers % OTHERS + 1).astype(np.int32)
    return _batch(code, begin + numbers * step, numbers)


def _batch(code: NDArray[np.int32], src_ts: NDArray[np.int64], seq: NDArray[np.int64]) -> EventBatch:
    price = 100.0 + (seq % 100) / 100
    size = np.ones(len(code))
    return EventBatch(_HOT, code, src_ts, src_ts, price, price, price, price, size, seq)


def _records(batch: EventBatch) -> list[Record]:
    symbols = [series.symbol for series in batch.series]
    values = encode_events(batch, "json")
    return [Record(symbols[code], value) for code, value in zip(batch.code.tolist(), values, strict=True)]


async def _delays(bus: Bus, topic: str, begin: int, end: int) -> Delays:
    """Of bars whose window was closed by events: not the first ones, of the start, nor the last, which the clock
    closes."""
    home = partition_of(_HOT[0].symbol, PARTITIONS)
    everywhere: list[float] = []
    beside: list[float] = []
    for partition in range(await bus.partitions(topic)):
        start = None
        while found := await bus.read(topic, partition, start, 1000):
            start = found[-1].offset + 1
            for record in found:
                for bar in decode_bars(record.value).bars():
                    closes = bar.ts + _WINDOW_NS + _LATE_NS
                    if bar.symbol == _HOT[0].symbol or bar.revision > 1:
                        continue
                    if begin + _WINDOW_NS <= bar.ts and closes < end:
                        delay = record.timestamp_ms / 1e3 - closes / 1e9
                        everywhere.append(delay)
                        if partition_of(bar.symbol, PARTITIONS) == home:
                            beside.append(delay)
    return Delays(np.array(everywhere), np.array(beside))
