"""Metrics: the names that dashboards rely on, their bounds, and arrays against the library's own counters."""

from __future__ import annotations

import gzip
import json
import re
import socket
import urllib.error
import urllib.request
from email.message import Message

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from market_data_core.batch import BarBatch
from market_data_core.clock import ManualClock
from market_data_core.codecs import DeadLetter
from market_data_core.errors import BusUnavailable, ConfigError, StoreUnavailable
from market_data_core.events import BarSeries, Signal
from market_data_core.protocols import Committed
from market_data_pipeline.consumers.exactly_once import Observer
from market_data_pipeline.consumers.micro_batcher import EXPIRED, FUTURE, LATE
from market_data_pipeline.consumers.partition_logic import Plan
from market_data_pipeline.producers.counts import Counts as ProducerCounts
from market_data_pipeline.streaming.bus import Bus, GroupPartition, GroupStatus, TopicStatus, TrimResult
from market_data_pipeline.streaming.memory_bus import MemoryBus
from market_data_pipeline.telemetry import (
    Health,
    InferenceMetrics,
    Membership,
    Metrics,
    MetricsObserver,
    ProducerMetrics,
    exporter,
    trimmed,
    watching,
)
from market_data_pipeline.telemetry.arrays import ArrayHistogram
from market_data_pipeline.telemetry.bounded import Bounded, SymbolSlots
from market_data_pipeline.telemetry.exporter import exposition
from market_data_pipeline.windows.tumbling import FOREVER, NEVER, Counts
from tests.integration.pipeline import until
from tests.servers import free_port

SECOND = 10**9
SPECIFIED = {
    "stream_events_ingested_total": ("counter", {"bus", "topic", "provider"}),
    "stream_consumer_lag_ms": ("gauge", {"topic", "group", "consumer"}),
    "microbatch_flush_total": ("counter", {"window_ms", "symbol"}),
    "microbatch_flush_rows": ("counter", {"window_ms"}),
    "microbatch_window_latency_ms": ("histogram", set[str]()),
    "store_write_duration_seconds": ("histogram", {"table"}),
    "features_update_duration_seconds": ("histogram", {"symbol", "window"}),
    "inference_eval_duration_seconds": ("histogram", {"adapter"}),
    "signals_emitted_total": ("counter", {"name", "adapter"}),
    "errors_total": ("counter", {"component", "reason"}),
}
"""Name, type and labels as the specification has them."""
Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def bars(*symbols: str) -> BarBatch:
    """A bar of each, in order; a symbol may come again."""
    table = {symbol: code for code, symbol in enumerate(dict.fromkeys(symbols))}
    code = np.array([table[symbol] for symbol in symbols], np.int32)
    f, i = np.ones(len(code)), np.arange(len(code), dtype=np.int64)
    series = tuple(BarSeries("p", symbol, "1s") for symbol in table)
    return BarBatch(series, code, i, f, f, f, f, f, f, f, f, i, i, i, i, i, np.ones(len(code), np.int32))


def plan(**more: object) -> Plan:
    found = Plan([], [], [], 0, 0)
    for name, value in more.items():
        setattr(found, name, value)
    return found


def samples(metrics: Metrics) -> Samples:
    return parsed(exposition(metrics).decode())


def parsed(text: str) -> Samples:
    """Values by sample name and labels, as a scrape has them. (The library's parser renames counters.)"""
    found: Samples = {}
    for name, labels, number in re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE):
        key = tuple(sorted(re.findall(r'(\w+)="([^"]*)"', labels)))
        found.setdefault(name, {})[key] = float(number)
    return found


def value(metrics: Metrics, sample: str, /, **labels: str) -> float:
    return samples(metrics)[sample][tuple(sorted(labels.items()))]


def everything(metrics: Metrics) -> None:
    """All observers told of something."""
    producer = ProducerMetrics(metrics, "redis")
    producer.published(ProducerCounts("p", "t"), 5)
    observer = MetricsObserver(metrics, "t", 2000, 500)
    observer.assigned(0, 1)
    observer.retrying("store", StoreUnavailable("away"))
    observer.flushed(
        0,
        plan(closable_at=[SECOND], counts=Counts(accepted=3), watermarks={"live/p": SECOND}),
        Committed(bars("A", "B"), []),
        0.01,
        2 * SECOND,
    )
    inference = InferenceMetrics(metrics, "b")
    inference.features("1m", 0.1, (BarSeries("p", "A", "1m"),), np.zeros(2, np.int32))
    inference.evaluated("rules", 0.1, 2)
    inference.failed("rules", "timeout")
    inference.state("rules", "open")
    made = Signal("p", "A", 0, "up", 1.0, 1.0, {"adapter": "rules"})
    inference.flushed(0, plan(), Committed(BarBatch.empty(), [], signals=[made]), 0.01, 0)
    metrics.lag.replace("t", {("t", "g", "c"): 1.0})


def test_the_names_types_and_labels_of_the_specification() -> None:
    metrics = Metrics()
    everything(metrics)
    text = exposition(metrics).decode()
    types = dict(line.split()[2:] for line in text.splitlines() if line.startswith("# TYPE"))
    for name, (kind, labels) in SPECIFIED.items():
        assert types[name] == kind, name
        sample = f"{name}_count" if kind == "histogram" else name
        assert {frozenset(dict(key)) for key in samples(metrics)[sample]} == {frozenset(labels)}, name


def test_observers_fit_the_seams() -> None:
    observers: list[Observer] = [MetricsObserver(Metrics(), "t", 1), InferenceMetrics(Metrics(), "b")]
    assert len(observers) == 2


def test_a_flush_in_numbers() -> None:
    clock = ManualClock(1000 * SECOND)
    metrics = Metrics(clock=clock)
    observer = MetricsObserver(metrics, "t", 2000)
    letters = [
        DeadLetter(reason, "t", 0, "1", "", None, b"", 0) for reason in (LATE, EXPIRED, FUTURE, "no JSON")
    ]
    committed = Committed(
        bars("A", "B", "A"), [], refused=2, unchanged=3, amended=1, stale=4, rejected=[("bad", "row")]
    )
    counts = Counts(accepted=7, duplicate=2, late=1)
    watermarks = {"live/p": clock.now() - SECOND, "live/new": NEVER, "live/over": FOREVER, "replay/1/p": 5}
    observer.assigned(0, 1)
    observer.flushed(
        0,
        plan(
            counts=counts, dead_letters=letters, watermarks=watermarks, open_rows=9, closable_at=[0, SECOND]
        ),
        committed,
        0.5,
        2 * SECOND,
    )
    assert value(metrics, "microbatch_flush_rows", window_ms="2000") == 3
    assert value(metrics, "microbatch_flush_total", window_ms="2000", symbol="A") == 1, "a flush, not a bar"
    assert value(metrics, "microbatch_window_latency_ms_sum") == 3000
    assert value(metrics, "microbatch_window_latency_ms_bucket", le="1000.0") == 1
    assert value(metrics, "microbatch_events_total", result="accepted") == 7
    assert value(metrics, "microbatch_amended_total") == 1
    rows = {dict(k)["result"]: v for k, v in samples(metrics)["store_rows_total"].items()}
    assert rows == {"written": 2, "amended": 1, "unchanged": 3, "refused": 2, "rejected": 1}
    put_aside = {dict(k)["reason"]: v for k, v in samples(metrics)["dead_letters_total"].items()}
    assert put_aside == {"late": 2, "future": 1, "poison": 1, "stale": 4, "rejected": 1}
    assert value(metrics, "microbatch_open_windows", partition="0") == 9
    delays = samples(metrics)["microbatch_watermark_delay_ms"]
    assert {dict(k)["lane"]: v for k, v in delays.items()} == {"live/p": 1000.0}
    assert value(metrics, "stream_owned_partitions", topic="t") == 1
    observer.fenced(0)
    observer.released(0, "fenced")
    assert value(metrics, "stream_fenced_writes_total", topic="t") == 1
    assert value(metrics, "stream_owned_partitions", topic="t") == 0
    assert "microbatch_open_windows" not in samples(metrics), "a partition that went leaves no series"


def test_the_delay_of_a_watermark_grows_with_the_clock() -> None:
    clock = ManualClock(1000 * SECOND)
    metrics = Metrics(clock=clock)
    metrics.partition_state.set(0, 0, {"live/p": clock.now() - SECOND})
    clock.advance(3 * SECOND)
    assert value(metrics, "microbatch_watermark_delay_ms", partition="0", lane="live/p") == 4000


def test_a_producer_in_numbers() -> None:
    metrics = Metrics()
    told, counts = ProducerMetrics(metrics, "redis"), ProducerCounts("p", "t")
    told.published(counts, 10)
    for _ in range(3):
        counts.retries += 1
        counts.dropped += 5
        told.changed(counts)
    counts.bad_rows, counts.spool_events, counts.spool_bytes = 2, 40, 4000
    told.changed(counts)
    told.changed(counts)
    assert value(metrics, "stream_events_ingested_total", bus="redis", topic="t", provider="p") == 10
    assert value(metrics, "producer_dropped_events_total", provider="p") == 15
    assert value(metrics, "retries_total", component="producer") == 3
    assert value(metrics, "errors_total", component="producer", reason="BusUnavailable") == 3
    assert value(metrics, "errors_total", component="producer", reason="bad_row") == 2
    assert value(metrics, "producer_spool_events", provider="p") == 40


def test_inference_in_numbers() -> None:
    metrics = Metrics()
    told = InferenceMetrics(metrics, "b")
    series = (BarSeries("p", "A", "1m"), BarSeries("p", "B", "1m"))
    told.features("1m", 0.006, series, np.array([0, 1, 1], np.int32))
    told.features("1m", 0.0, series, np.empty(0, np.int32))
    name = "features_update_duration_seconds"
    assert value(metrics, f"{name}_count", symbol="B", window="1m") == 2
    assert value(metrics, f"{name}_sum", symbol="B", window="1m") == pytest.approx(0.004)
    assert value(metrics, f"{name}_bucket", symbol="A", window="1m", le="0.001") == 0
    assert value(metrics, f"{name}_bucket", symbol="A", window="1m", le="0.01") == 1
    for state in ("closed", "open", "half-open"):
        told.state("m", state)
        told_states = samples(metrics)["inference_breaker_state"]
        assert {dict(k)["state"] for k, v in told_states.items() if v} == {state}
    told.failed("m", "timeout")
    assert value(metrics, "errors_total", component="inference", reason="timeout") == 1
    made = [Signal("p", "A", 0, n, 1.0, 1.0, {"adapter": a}) for n, a in (("x", "r"), ("x", "r"), ("y", "s"))]
    made.append(Signal("p", "B", 0, "x", 1.0, 1.0, {"adapter": "r", "withdrawn": True}))
    told.flushed(0, plan(), Committed(BarBatch.empty(), [], signals=made, withdrawn=1), 0.1, 0)
    assert value(metrics, "signals_emitted_total", name="x", adapter="r") == 2
    assert value(metrics, "store_rows_total", table="signals", result="written") == 3
    assert value(metrics, "store_rows_total", table="signals", result="withdrawn") == 1


def test_trimming() -> None:
    metrics = Metrics()
    trimmed(metrics)("t", TrimResult(5, 2))
    assert value(metrics, "stream_trimmed_records_total", topic="t", kind="forced") == 2


def test_symbols_beyond_the_bound_are_other() -> None:
    metrics = Metrics(max_symbols=2)
    observer = MetricsObserver(metrics, "t", 1)
    for partition, symbols in ((0, "AB"), (0, "ABCD"), (1, "DCBA"), (0, "E")):
        observer.flushed(partition, plan(), Committed(bars(*symbols), []), 0.1, 0)
    flushes = {dict(k)["symbol"]: v for k, v in samples(metrics)["microbatch_flush_total"].items()}
    assert flushes == {"A": 3, "B": 3, "other": 3}


@given(
    limit=st.integers(0, 4),
    tables=st.lists(st.lists(st.sampled_from("ABCDEFother"), max_size=6), max_size=5),
)
def test_slots_are_first_come_first_kept(limit: int, tables: list[list[str]]) -> None:
    bounded, first = Bounded(limit), list[str]()
    slots = SymbolSlots(bounded)
    for table in tables:
        found = [bounded.names[s] for s in slots.of(tuple(BarSeries("p", s, "1m") for s in table)).tolist()]
        first += [s for s in dict.fromkeys(table) if s not in (*first, "other")]
        kept = first[:limit]
        assert found == [s if s in kept else "other" for s in table]


@given(st.lists(st.lists(st.floats(-10, 1e6), min_size=1, max_size=20), max_size=5))
def test_an_array_histogram_is_the_librarys(batches: list[list[float]]) -> None:
    bounds = (0.0, 1, 2.5, 100, 1e5)
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    array = ArrayHistogram("h", "H", bounds, ours)
    one = Histogram("h", "H", buckets=bounds, registry=theirs)
    for batch in batches:
        array.observe(np.array(batch))
        for each in batch:
            one.observe(each)

    def scraped(registry: CollectorRegistry) -> Samples:
        found = parsed(generate_latest(registry).decode())
        return {name: found[name] for name in ("h_bucket", "h_count", "h_sum") if name in found}

    mine, library = scraped(ours), scraped(theirs)
    assert mine.pop("h_sum", {}) == pytest.approx(library.pop("h_sum", {}))
    assert mine == library


def get(port: int, path: str, **headers: str) -> tuple[int, bytes, Message]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - http only
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def test_the_exporter() -> None:
    metrics, clock, port = Metrics(), ManualClock(), free_port()
    health = Health(clock)
    everything(metrics)
    with exporter(metrics, port, health=health):
        code, body, headers = get(port, "/metrics?x=1")
        assert (code, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert b"\nmicrobatch_flush_rows{" in body
        assert b"_created" not in body
        packed = get(port, "/metrics", **{"Accept-Encoding": "gzip"})[1]
        assert b"\nmicrobatch_flush_rows{" in gzip.decompress(packed)
        assert get(port, "/healthz")[0] == 200, "it starts"
        assert get(port, "/readyz")[0] == 503
        health.expect("bus", "store")
        health.beat()
        health.found("bus", None)
        health.found("store", "away: postgresql://mdp:hunter2@h/mdp")
        code, body, _ = get(port, "/readyz")
        assert (code, json.loads(body)["checks"]) == (
            503,
            {"bus": "ok", "store": "away: postgresql://mdp:***@h/mdp"},
        )
        health.found("store", None)
        assert get(port, "/readyz")[0] == 200
        clock.advance(11 * SECOND)
        assert get(port, "/healthz")[0] == 503, "the loop is stuck"
        assert get(port, "/readyz")[0] == 503
        health.rest()
        assert get(port, "/healthz")[0] == 200, "no beat is due any more"
        assert get(port, "/")[0] == 404
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "it is gone"


def test_a_port_or_host_that_cannot_be_had() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=rf"^--metrics-port: port {port} on 127.0.0.1 cannot be used"),
            exporter(Metrics(), port, option="--metrics-port"),
        ):
            pass
    with (
        pytest.raises(
            ConfigError, match=r"^telemetry\.metrics_host: 192\.0\.2\.1 is no address of this machine"
        ),
        exporter(Metrics(), free_port(), "192.0.2.1"),
    ):
        pass


class Scripted(MemoryBus):
    """A bus that says what the test wants of itself."""

    told: list[GroupPartition]
    members: list[str]
    away = False

    async def ping(self) -> dict[str, str]:
        if self.away:
            raise BusUnavailable("it is away")
        return {}

    async def status(self, topics: object = None) -> list[TopicStatus]:
        if self.away:
            raise BusUnavailable("it is away")
        return [TopicStatus("t", 4, 0, [GroupStatus("g", self.members, self.told), GroupStatus("h", [], [])])]


def partition(number: int, owner: str | None, lag: int, lag_ms: int) -> GroupPartition:
    return GroupPartition(number, owner, lag, lag_ms, 0, 0)


async def looked(metrics: Metrics, health: Health, bus: Bus) -> None:
    """Until the probes have looked once."""
    me = Membership("t", "g", "me")

    async def store() -> str:
        return "18"

    async def all_looked_at() -> bool:
        return not any("not looked" in found for found in health.report().values())

    async with watching(metrics, health, bus, store, [me]):
        await until(all_looked_at)


async def test_probes_tell_lag_and_readiness() -> None:
    metrics, health = Metrics(), Health()
    bus = Scripted("telemetry")
    bus.members = ["me", "you"]
    bus.told = [
        partition(0, "me", 3, 100),
        partition(1, "me", 4, 700),
        partition(2, "you", 50, 9000),
        partition(3, None, 6, 20),
    ]
    await looked(metrics, health, bus)
    lags = {dict(k)["consumer"]: v for k, v in samples(metrics)["stream_consumer_lag_ms"].items()}
    assert lags == {"me": 700, "nobody": 20}, "the oldest of each; another member tells its own"
    records = {dict(k)["consumer"]: v for k, v in samples(metrics)["stream_consumer_lag_records"].items()}
    assert records == {"me": 7, "nobody": 6}
    assert health.report() == {"bus": "ok", "store": "ok", "group g on t": "ok"}
    assert health.ready

    bus.told, bus.members = [partition(0, "you", 9, 9)], ["you"]
    await looked(metrics, health, bus)
    assert health.report()["group g on t"] == "me is not a member yet"
    lags = {dict(k)["consumer"]: v for k, v in samples(metrics)["stream_consumer_lag_ms"].items()}
    assert lags == {"me": 0}, "a partition that has an owner again is not nobody's"

    bus.away = True
    await looked(metrics, health, bus)
    assert health.report()["bus"] == "it is away"
    assert value(metrics, "stream_consumer_lag_ms", topic="t", group="g", consumer="me") == 0, (
        "the last known"
    )
