"""The benchmarks: what is measured beside what, and how much of it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

import polars as pl
from rich.console import Console

from benchmarks import hot_symbol, inferring, publishing, scaling, ticks
from benchmarks.measure import Measured, measure
from benchmarks.report import Contender, Ratio, Report
from benchmarks.servers import Servers
from market_data_core.codecs import encode_events
from market_data_pipeline.producers.framing import Framer
from market_data_pipeline.streaming.bus import Record
from market_data_pipeline.streaming.kafka_bus import KafkaBus
from tests.servers.kafka import KafkaServer

SYMBOLS: Final = 50
SPREAD: Final = (1, 10, 100, 1000, 10_000)


@dataclass(frozen=True, slots=True)
class Size:
    """``singles``: events of a topic of single events; ``framed``: of one of frames; ``rows``: of a file;
    ``spread_singles``, ``spread_framed``: of each topic of the sweep over ``spread`` numbers of symbols;
    ``flushes``: of 10,000 rows into the store; ``symbols``: with a new bar each; ``bars``: to make signals of;
    ``hot_seconds``: of load beside a hot symbol."""

    singles: int
    framed: int
    rows: int
    spread_singles: int
    spread_framed: int
    spread: tuple[int, ...]
    flushes: int
    symbols: int
    rounds: int
    less_rounds: int
    bars: int
    hot_seconds: int


FULL: Final = Size(300_000, 1_200_000, 1_000_000, 200_000, 1_200_000, SPREAD, 10, 10_000, 5, 3, 200_000, 24)
QUICK: Final = Size(50_000, 300_000, 200_000, 50_000, 300_000, (1, 1000), 2, 2000, 1, 1, 40_000, 12)


@dataclass(frozen=True, slots=True)
class Topic:
    """Ticks on the bus, and the bars they make. ``records``: entries of the stream; ``events``: ticks in them."""

    name: str
    records: int
    events: int
    bars: pl.DataFrame


def load(
    servers: Servers,
    codec: Literal["json", "msgpack", "frame"],
    count: int,
    symbols: int,
    publish: Callable[[str, list[Record]], None] | None = None,
) -> Topic:
    """A new topic as a producer writes it, by ``publish`` or on Redis."""
    batch = ticks.ticks(count, symbols)
    records: list[Record]
    if codec == "frame":
        # In slices as a producer's runner hands them over; the framer cuts them into frames.
        parts = (batch.take(slice(i, i + 32_768)) for i in range(0, len(batch), 32_768))
        framer = Framer(1)
        records = [record for part in parts for parcel in framer.parcels(part) for record in parcel.records]
    else:
        names = [s.symbol for s in batch.series]
        keys = [names[code] for code in batch.code.tolist()]
        records = [Record(k, v) for k, v in zip(keys, encode_events(batch, codec), strict=True)]
    name = f"{codec}-{symbols}"
    (publish or servers.load)(name, records)
    return Topic(name, len(records), len(batch), ticks.recount(batch))


def reading(servers: Servers, topic: Topic, task: str, **more: Any) -> Measured:
    """A process that reads all of ``topic``; what the micro-batcher stored is compared with the recount."""
    servers.rest(topic.records)
    given = {"topic": topic.name, "records": topic.records, "events": topic.events, "bars": len(topic.bars)}
    done = measure(task if ":" in task else f"reading:{task}", **given, **servers.given, **more)
    if task.endswith("micro_batcher"):
        ticks.check(servers.bars(), topic.bars, topic.name)
    return done


def from_redis(servers: Servers, size: Size, console: Console) -> Report:
    """Redis to bars to PostgreSQL, beside loops that only read."""
    report = Report("redis", f"Redis to bars to PostgreSQL, {SYMBOLS} symbols, 2 s windows, one process")
    json = load(servers, "json", size.singles, SYMBOLS)
    msgpack = load(servers, "msgpack", size.singles, SYMBOLS)
    frames = load(servers, "frame", size.framed, SYMBOLS)
    contenders: dict[str, Contender] = {
        "raw XREADGROUP + XACK": partial(reading, servers, json, "raw"),
        "raw, without redis-py's dicts": partial(reading, servers, json, "bare"),
        "micro-batcher, JSON": partial(reading, servers, json, "micro_batcher"),
        "micro-batcher, msgpack": partial(reading, servers, msgpack, "micro_batcher"),
        "micro-batcher, frames": partial(reading, servers, frames, "micro_batcher"),
    }
    report.measure(contenders, size.rounds, console)
    raw, bare, of_json, of_msgpack, of_frames = contenders
    report.compare("micro-batcher by raw loop, JSON", of_json, raw, 0.6)
    report.compare("the same by CPU time of the client", of_json, raw, cpu=True)
    report.compare("micro-batcher by raw loop without dicts, JSON", of_json, bare)
    report.compare("micro-batcher by raw loop of JSON, msgpack", of_msgpack, raw)
    report.compare("frames by JSON", of_frames, of_json, 5.0)
    report.compare("the same by CPU time of the client", of_frames, of_json, cpu=True)
    for label, topic in (("JSON", json), ("frames", frames)):
        report.shares[label] = reading(servers, topic, "micro_batcher", profile=True).more["shares"]
    for topic in (json, msgpack, frames):
        servers.drop(topic.name)
    return report


def from_kafka(servers: Servers, size: Size, console: Console) -> Report:
    """Kafka to bars to PostgreSQL, beside loops that only read."""
    report = Report("kafka", f"Kafka to bars to PostgreSQL, {SYMBOLS} symbols, 2 s windows, one process")
    with KafkaServer() as kafka:

        def publish(topic: str, records: list[Record]) -> None:
            async def run() -> None:
                async with KafkaBus(kafka.bootstrap) as bus:
                    await bus.ensure_topic(topic, 1)
                    await bus.publish(topic, records, partition=0)

            asyncio.run(run())

        def read(topic: Topic, task: str) -> Measured:
            servers.rest()
            given = {"topic": topic.name, "records": topic.records, "events": topic.events}
            given |= {"bars": len(topic.bars), "kafka": kafka.bootstrap}
            done = measure(f"kafka:{task}", **given, **servers.given)
            if task == "micro_batcher":
                ticks.check(servers.bars(), topic.bars, topic.name)
            return done

        json = load(servers, "json", size.singles, SYMBOLS, publish)
        frames = load(servers, "frame", size.framed, SYMBOLS, publish)
        contenders: dict[str, Contender] = {
            "aiokafka getmany, nothing else": partial(read, json, "getmany"),
            "the driver's poll, nothing else": partial(read, json, "driver"),
            "micro-batcher, JSON": partial(read, json, "micro_batcher"),
            "micro-batcher, frames": partial(read, frames, "micro_batcher"),
        }
        report.measure(contenders, size.rounds, console)
    getmany, driver, of_json, of_frames = contenders
    report.compare("driver by getmany, JSON", driver, getmany, 1.0)
    report.compare("the same by CPU time of the client", driver, getmany, cpu=True)
    report.compare("micro-batcher by getmany, JSON", of_json, getmany)
    report.compare("the same by CPU time of the client", of_json, getmany, cpu=True)
    report.compare("frames by JSON", of_frames, of_json)
    return report


def to_bus(servers: Servers, size: Size, console: Console) -> Report:
    """Events to the bus, beside what its client does by itself."""
    report = Report(
        "publish", f"Events to {publishing.PARTITIONS} partitions, {SYMBOLS} symbols, one process"
    )
    with KafkaServer() as kafka:

        def publish(bus: str, task: str, codec: str = "json") -> Measured:
            events, topic = size.framed if codec == "frame" else size.singles, f"publish-{uuid.uuid4().hex}"
            servers.rest(events)
            pids = {"bus": servers.given["pids"]["redis"] if bus == "redis" else kafka.pid}
            given = {
                "topic": topic,
                "events": events,
                "symbols": SYMBOLS,
                "codec": codec,
                "bus": bus,
                "pids": pids,
            }
            if bus == "kafka":
                asyncio.run(_new_topic(kafka.bootstrap, topic, publishing.PARTITIONS))
            done = measure(f"publishing:{task}", **given, redis=servers.redis_url, kafka=kafka.bootstrap)
            if bus == "redis":
                servers.drop(topic, publishing.PARTITIONS)
            return done

        contenders: dict[str, Contender] = {
            "redis-py's pipeline, JSON": partial(publish, "redis", "pipeline"),
            "Redis, the driver, JSON": partial(publish, "redis", "driver"),
            "Redis, from columns, JSON": partial(publish, "redis", "producer"),
            "Redis, from columns, frames": partial(publish, "redis", "producer", "frame"),
            "aiokafka's send, JSON": partial(publish, "kafka", "send"),
            "Kafka, the driver, JSON": partial(publish, "kafka", "driver"),
            "Kafka, from columns, JSON": partial(publish, "kafka", "producer"),
            "Kafka, from columns, frames": partial(publish, "kafka", "producer", "frame"),
        }
        report.measure(contenders, size.less_rounds, console)
    raw_redis, of_redis, *_ = labels = list(contenders)
    raw_kafka, of_kafka = labels[4:6]
    report.compare("driver by redis-py's pipeline", of_redis, raw_redis, 1.0)
    report.compare("the same by CPU time of the client", of_redis, raw_redis, cpu=True)
    report.compare("driver by aiokafka's send", of_kafka, raw_kafka, 1.0)
    report.compare("the same by CPU time of the client", of_kafka, raw_kafka, cpu=True)
    return report


async def _new_topic(bootstrap: str, topic: str, partitions: int) -> None:
    async with KafkaBus(bootstrap) as bus:
        await bus.ensure_topic(topic, partitions)


def by_symbols(servers: Servers, size: Size, console: Console) -> Report:
    """From one symbol to ten thousand."""
    report = Report("symbols", "The same with more and more symbols")
    for codec, count, label in (
        ("json", size.spread_singles, "JSON"),
        ("frame", size.spread_framed, "frames"),
    ):
        topics = {f"{label}, {n:,} symbols": load(servers, codec, count, n) for n in size.spread}  # type: ignore[arg-type]
        contenders: dict[str, Contender] = {
            name: partial(reading, servers, topic, "micro_batcher") for name, topic in topics.items()
        }
        report.measure(contenders, size.less_rounds, console)
        report.evenness(f"slowest by fastest, {label}", list(contenders), 0.75)
        report.evenness("the same by CPU time of the client", list(contenders), None, cpu=True)
        for topic in topics.values():
            servers.drop(topic.name)
    return report


def from_file(servers: Servers, size: Size, console: Console) -> Report:
    """CSV file to bars to PostgreSQL."""
    report = Report("file", f"CSV file of {size.rows:,} ticks to bars to PostgreSQL, without a bus")
    batch = ticks.ticks(size.rows, SYMBOLS)
    bars = ticks.recount(batch)
    path = Path(servers.folder) / "ticks.csv"
    ticks.write_csv(batch, path)

    def run(task: str) -> Measured:
        servers.rest()
        done = measure(f"files:{task}", path=str(path), events=len(batch), bars=len(bars), **servers.given)
        if task != "raw":
            ticks.check(servers.bars(), bars, task)
        return done

    contenders: dict[str, Contender] = {
        "pandas.read_csv, nothing else": partial(run, "raw"),
        "memory bus, as `stream run`": partial(run, "over_memory_bus"),
        "provider, windows, store": partial(run, "windows_alone"),
    }
    report.measure(contenders, size.less_rounds, console)
    raw, bus, alone = contenders
    report.compare("over the memory bus by read_csv", bus, raw)
    report.compare("provider, windows, store by read_csv", alone, raw)
    return report


def into_store(servers: Servers, size: Size, console: Console) -> Report:
    """Rows into the table of bars."""
    report = Report("store", "Bars into PostgreSQL, 10,000 rows a transaction", unit="rows")

    def run(task: str, kind: str = "") -> Measured:
        servers.rest()
        return measure(f"storing:{task}", flushes=size.flushes, kind=kind, **servers.given)

    contenders: dict[str, Contender] = {
        "raw binary COPY, encoded before": partial(run, "raw_copy"),
        "commit, new bars": partial(run, "commits", "new"),
        "commit, unchanged bars": partial(run, "commits", "unchanged"),
        "commit, bars replaced": partial(run, "commits", "replaced"),
        "commit, bars amended by a late event": partial(run, "commits", "late"),
    }
    report.measure(contenders, size.less_rounds, console)
    raw, *others = contenders
    for label in others:
        report.compare(f"{label} by COPY", label, raw, 0.3 if label == "commit, new bars" else None)
    return report


def with_telemetry(servers: Servers, size: Size, console: Console) -> Report:
    """The micro-batcher with everything of telemetry, and without."""
    report = Report("telemetry", "Telemetry on and off, frames, 2 s windows")
    for symbols in (SYMBOLS, 10_000):
        topic = load(servers, "frame", size.framed, symbols)
        off, on = f"{symbols:,} symbols, off", f"{symbols:,} symbols, on"
        contenders: dict[str, Contender] = {
            off: partial(reading, servers, topic, "telemetry:micro_batcher", telemetry=False),
            on: partial(reading, servers, topic, "telemetry:micro_batcher", telemetry=True),
        }
        report.measure(contenders, size.rounds, console)
        report.compare(f"on by off, {symbols:,} symbols", on, off, 0.97)
        report.compare("the same by CPU time of the client", on, off, cpu=True)
        left = [1 - run.more["observing"] / run.cpu["client"] for run in report.runs[on]]
        report.ratios.append(Ratio("CPU time of the client that is not for telemetry", left, 0.97))
        servers.drop(topic.name)
    return report


def into_signals(servers: Servers, size: Size, console: Console) -> Report:
    """Bars of Redis to signals in PostgreSQL."""
    report = Report(
        "infer", "Bars of Redis to signals in PostgreSQL, the seed's five rules, one process", unit="bars"
    )
    contenders: dict[str, Contender] = {}

    def run(topic: inferring.BarTopic) -> Measured:
        servers.rest()
        done = measure("inferring:rules", topic=topic.name, bars=topic.bars, **servers.given)
        if done.more["momentum"] != topic.momentum:
            raise ticks.WrongBars(
                f"{topic.name}: {done.more['momentum']} signals of momentum, the recount has {topic.momentum}"
            )
        return done

    for symbols in (50, 1000, 10_000):
        records, momentum = inferring.bars_of(symbols, size.bars // symbols)
        topic = inferring.BarTopic(f"bars-{symbols}", len(records) * symbols, momentum)
        servers.load(topic.name, records)
        contenders[f"{symbols:,} symbols"] = partial(run, topic)
    report.measure(contenders, size.less_rounds, console)
    report.evenness("slowest by fastest", list(contenders), None)
    return report


def rolling_features(servers: Servers, size: Size, console: Console) -> Report:
    """Features of one new bar of each symbol."""
    report = Report("features", "Six features of one new bar of each symbol", unit="bars")
    many, some = size.symbols, size.symbols // 10

    def run(task: str, symbols: int, windows: int = 20, **more: Any) -> Measured:
        return measure(f"features:{task}", symbols=symbols, windows=windows, **more)

    contenders: dict[str, Contender] = {
        f"{many:,} symbols": partial(run, "ours", many),
        f"{some:,} symbols": partial(run, "ours", some, 200),
        "one bar in ten missing": partial(run, "ours", many, missing=0.1),
        "the same, and the bar before": partial(run, "ours", many, missing=0.1, previous=True),
        "horizons twice as long": partial(run, "ours", many, stretch=2),
        "pandas, groupby().rolling()": partial(run, "by_pandas", some),
    }
    if find_spec("river") is None:
        console.print("river is not installed, so it is not measured: pip install 'mdp[bench]'", markup=False)
    else:
        contenders["river"] = partial(run, "by_river", some, 2)
    report.measure(contenders, size.less_rounds, console)
    all_of_them, fewer, gaps, before, longer, *others = contenders
    for label in (all_of_them, gaps, before):
        rates = [10 / r.cpu_per_million for r in report.runs[label]]
        report.ratios.append(Ratio(f"{label}: bars in 10 microseconds of CPU time", rates, 1.0))
    report.evenness("slowest by fastest number of symbols, by CPU time", [all_of_them, fewer], 0.5, cpu=True)
    report.compare("horizons twice as long by once, by CPU time", longer, all_of_them, 0.45, cpu=True)
    for label in others:
        goal = None if label == "river" else 10.0
        report.compare(f"{fewer} by {label}, by CPU time", fewer, label, goal, cpu=True)
    for label in others:
        _agree(report, fewer, label)
    return report


def _agree(report: Report, one: str, other: str) -> None:
    """Both found the same features of the first bars they measured, but for what is lost by rounding.

    Raises:
        WrongBars: they did not.
    """
    ours, theirs = (report.runs[label][0].more["means"] for label in (one, other))
    if any(abs(theirs[name] / value - 1) > 1e-6 for name, value in ours.items()):
        raise ticks.WrongBars(f"{one} and {other} differ: {ours} and {theirs}")


SUITES: Final[dict[str, Callable[[Servers, Size, Console], Report]]] = {
    "redis": from_redis,
    "kafka": from_kafka,
    "publish": to_bus,
    "symbols": by_symbols,
    "file": from_file,
    "store": into_store,
    "telemetry": with_telemetry,
    "infer": into_signals,
    "features": rolling_features,
    "scaling": scaling.by_workers,
    "hot": hot_symbol.hot_symbol,
}
