"""Traces from a producer's publish to the commit of a signal: on every bus, and sent over HTTP."""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Final, cast

import pytest
import structlog
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from market_data_core.batch import EventBatch
from market_data_core.config import Settings
from market_data_core.config import Traces as TraceSettings
from market_data_core.errors import BusUnavailable, ConfigError, StoreUnavailable
from market_data_core.events import StreamEvent
from market_data_core.protocols import Flush
from market_data_pipeline import tracing
from market_data_pipeline.cli import batching
from market_data_pipeline.cli.inferring import deciding, inference
from market_data_pipeline.consumers.signal_stats import SignalStats
from market_data_pipeline.consumers.stats import RunStats
from market_data_pipeline.producers.runner import ProducerRunner, RunnerOptions
from market_data_pipeline.streaming.bus import Bus, Record
from market_data_pipeline.streaming.drivers import open_bus
from market_data_pipeline.streaming.memory_bus import MemoryBus
from market_data_pipeline.tracing import UNTRACED, Traces, otlp
from market_data_pipeline.tracing.spans import Spans
from market_data_pipeline.tracing.traces import WINDOWING
from market_data_store import StoreClient
from tests.integration.pipeline import tick
from tests.integration.sink import MemorySink
from tests.servers import free_port
from tests.servers import kafka as kafka_servers
from tests.servers.kafka import KafkaServer, delete_topics
from tests.servers.redis import RedisServer, running
from tests.unit.test_producer_runner import Listed

EVENTS: Final = "mdp.events"
RULE: Final = "- {name: always, condition: close > 0, signal: 1.0, score: 0.9}\n"
_names = itertools.count()


class Recorded:
    """Traces whose spans the test can look at."""

    def __init__(self, ratio: float = 1.0) -> None:
        provider = otlp.provider_of(TraceSettings(ratio=ratio), "test")
        self._memory = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(self._memory))
        self.traces: Traces = Spans(provider)

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._memory.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return sorted((s for s in self.spans if s.name == name), key=lambda s: s.start_time or 0)

    def tree(self, trace_id: int) -> list[str]:
        """The names of the spans of a trace, each as the way to it from the root, in the order of their starts."""
        mine = {s.context.span_id: s for s in self.spans if s.context.trace_id == trace_id}

        def way(span: ReadableSpan) -> str:
            return span.name if span.parent is None else f"{way(mine[span.parent.span_id])} > {span.name}"

        return sorted(map(way, mine.values()))


def trace_ids(spans: list[ReadableSpan]) -> set[int]:
    return {span.context.trace_id for span in spans}


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    yield from running("6.2")


@pytest.fixture(scope="module")
def kafka() -> Iterator[KafkaServer]:
    yield from kafka_servers.running()


@pytest.fixture
async def memory_bus() -> AsyncIterator[MemoryBus]:
    async with MemoryBus(f"memory://traces{next(_names)}") as bus:
        yield bus


@pytest.fixture(params=["memory", "redis", pytest.param("kafka", marks=pytest.mark.slow)])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    url = f"memory://traces{next(_names)}"
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("server")
        server.client().flushall()
        url = server.uri
    elif request.param == "kafka":
        broker: KafkaServer = request.getfixturevalue("kafka")
        await delete_topics(broker)
        url = broker.bootstrap
    async with open_bus(request.param, url) as bus:
        yield bus


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULE)
    return Settings.model_validate(
        {
            "bus": {"redis": {"lease_ms": 2000}},
            "micro_batch": {"allow_late_ms": 0, "flush_timeout_ms": 200},
            "inference": {"adapters": {"rules": {"file": str(rules)}}},
        }
    )


async def produce(bus: Bus, traces: Traces, *events: StreamEvent) -> None:
    """One publish."""
    provider = Listed([EventBatch.from_events(list(events))])
    counts = await ProducerRunner(traces.producing(bus), provider, EVENTS, RunnerOptions()).run()
    assert counts.published == len(events)


async def micro_batch(bus: Bus, store: Any, settings: Settings, traces: Traces) -> RunStats:
    stats = RunStats()
    consumer = batching.micro_batcher(settings, bus, store, stats, traces=traces)
    await consumer.run(asyncio.Event(), until_idle=0.3)
    return stats


async def infer(bus: Bus, store: StoreClient, settings: Settings, traces: Traces) -> SignalStats:
    stats = SignalStats()
    await bus.ensure_topic("mdp.bars", 1)
    async with deciding(settings, "rules") as decider:
        consumer = inference(settings, decider, bus, store, stats, traces=traces)
        await consumer.run(asyncio.Event(), until_idle=0.3)
    return stats


async def test_one_trace_from_the_publish_to_the_signal(
    bus: Bus, store: StoreClient, settings: Settings
) -> None:
    recorded = Recorded()
    await produce(bus, recorded.traces, tick("A", 0, 1.0, 1.0, 1), tick("A", 100, 2.0, 1.0, 2))
    await micro_batch(bus, store, settings, recorded.traces)
    stats = await infer(bus, store, settings, recorded.traces)
    assert stats.summary()["signals_stored"] == 1
    (trace_id,) = trace_ids(recorded.spans)
    events, bars = "publish mdp.events > process mdp.events", "publish mdp.bars > process mdp.bars"
    assert recorded.tree(trace_id) == sorted(
        [
            "publish mdp.events",
            events,
            f"{events} > window",
            f"{events} > commit bars_ohlcv",
            f"{events} > publish mdp.bars",
            f"{events} > {bars}",
            f"{events} > {bars} > infer",
            f"{events} > {bars} > commit signals",
            f"{events} > {bars} > publish mdp.signals",
        ]
    )
    (published,), (commit,) = recorded.named("publish mdp.events"), recorded.named("commit bars_ohlcv")
    assert published.attributes is not None
    assert commit.attributes is not None
    assert published.attributes["messaging.system"] == bus.name
    assert published.attributes["messaging.destination.partition.id"] == "0"
    assert (commit.attributes["mdp.bars"], commit.attributes["mdp.partition"]) == (1, 0)
    assert all((span.end_time or 0) >= (span.start_time or 0) > 0 for span in recorded.spans)
    (window,), (processed,) = recorded.named("window"), recorded.named("process mdp.events")
    assert (window.end_time or 0) <= (commit.start_time or 0) <= (processed.end_time or 0)


async def test_a_flush_of_many_publishes_is_in_the_trace_of_the_first_and_linked_to_the_others(
    bus: Bus, settings: Settings
) -> None:
    recorded = Recorded()
    for n in range(3):
        await produce(bus, recorded.traces, tick("A", n * 100, 1.0, 1.0, n))
    sink = MemorySink()
    stats = await micro_batch(bus, sink, settings, recorded.traces)
    assert stats.summary()["bars_stored"] == 1
    first, *others = recorded.named("publish mdp.events")
    assert len(trace_ids([first, *others])) == 3
    (commit,), (published,) = recorded.named("commit bars_ohlcv"), recorded.named("publish mdp.bars")
    assert trace_ids([commit, published]) == trace_ids([first])
    for span in (commit, published):
        assert {link.context.trace_id for link in span.links} == trace_ids(others)
    processed = {span.context.trace_id: span for span in recorded.named("process mdp.events")}
    for other in others:
        (link,) = processed[other.context.trace_id].links
        assert link.context == commit.context
    # A worker that comes next reads them again, as it must know their ids; that is no news.
    before = len(recorded.spans)
    again = await micro_batch(bus, sink, settings, recorded.traces)
    assert again.summary()["bars_stored"] == 0
    assert len(recorded.spans) == before


async def test_a_record_is_followed_until_its_last_window_is_stored(
    memory_bus: MemoryBus, settings: Settings
) -> None:
    """Of two publishes the second lies in a window that is open when the first is stored: each has its commit."""
    recorded = Recorded()
    await produce(memory_bus, recorded.traces, tick("A", 0, 1.0, 1.0, 1))
    await produce(memory_bus, recorded.traces, tick("A", 2500, 1.0, 1.0, 2))
    # One record a read: else the second would be known before the first is stored.
    changed = settings.model_dump() | {
        "micro_batch": {**settings.micro_batch.model_dump(), "max_batch_size": 1}
    }
    changed["bus"] = {"redis": {"lease_ms": 2000}}
    await micro_batch(memory_bus, MemorySink(), Settings.model_validate(changed), recorded.traces)
    commits = recorded.named("commit bars_ohlcv")
    assert [s.context.trace_id for s in commits] == [
        s.context.trace_id for s in recorded.named("publish mdp.events")
    ]
    assert all(not commit.links for commit in commits)


async def test_what_is_not_sampled_looks_as_without_traces(bus: Bus, settings: Settings) -> None:
    recorded = Recorded(ratio=0.0)
    event = tick("A", 0, 1.0, 1.0, 1)
    await produce(bus, recorded.traces, event)
    await produce(bus, UNTRACED, event)
    sampled_out, untraced = await bus.read(EVENTS, 0, None, 10)
    assert (sampled_out.key, sampled_out.lane, sampled_out.traceparent) == (untraced.key, None, None)
    assert sampled_out.value == untraced.value
    await micro_batch(bus, MemorySink(), settings, recorded.traces)
    assert recorded.spans == []


async def test_a_sampled_publish_changes_no_event_and_no_bar(bus: Bus, settings: Settings) -> None:
    events = [tick("A", n * 300, 1.0 + n, 1.0, n) for n in range(20)]
    bits, duplicates = [], []
    for traces in (Recorded().traces, UNTRACED):
        sink = MemorySink()
        await produce(bus, traces, *events)
        stats = await micro_batch(bus, sink, settings, traces)
        bits.append(sink.bits())
        duplicates.append(stats.summary()["duplicates"])
    assert duplicates == [0, 20]  # the second time the traced and the untraced copies were read
    assert bits[0] == bits[1]
    assert len(bits[0]) == 3


@pytest.mark.parametrize("flags", ["00", "zz"])
async def test_a_foreign_record_is_followed_when_its_own_trace_is_sampled(
    flags: str, memory_bus: MemoryBus, settings: Settings
) -> None:
    recorded, trace = Recorded(), f"{7:032x}"
    await memory_bus.ensure_topic(EVENTS, 1)
    await produce(memory_bus, UNTRACED, tick("A", 0, 1.0, 1.0, 1))
    (plain,) = await memory_bus.read(EVENTS, 0, None, 1)
    for said in (f"00-{trace}-{1:016x}-{flags}", "nonsense", "", f"00-{trace}-{1:016x}-01"):
        await memory_bus.publish(EVENTS, [Record("A", plain.value, None, said)])
    await micro_batch(memory_bus, MemorySink(), settings, recorded.traces)
    assert trace_ids(recorded.spans) == {7}
    assert [span.name for span in recorded.named("process mdp.events")] == ["process mdp.events"]


async def test_a_commit_that_is_tried_again_is_a_span_each_time(
    memory_bus: MemoryBus, settings: Settings
) -> None:
    recorded = Recorded()
    troubles = iter([StoreUnavailable("the database is away")])

    def before(flush: Flush) -> None:
        for trouble in troubles:
            raise trouble

    await produce(memory_bus, recorded.traces, tick("A", 0, 1.0, 1.0, 1))
    stats = await micro_batch(memory_bus, MemorySink(before), settings, recorded.traces)
    assert stats.summary()["bars_stored"] == 1
    assert [span.status.is_ok for span in recorded.named("commit bars_ohlcv")] == [False, True]
    (processed,) = recorded.named("process mdp.events")
    assert processed.status.is_ok


async def test_a_publish_that_fails_is_a_span_that_says_so(memory_bus: MemoryBus) -> None:
    recorded = Recorded()
    bus = recorded.traces.producing(memory_bus)
    await bus.ensure_topic(EVENTS, 1)
    memory_bus.cut()
    with pytest.raises(BusUnavailable):
        await bus.publish(EVENTS, [Record("A", b"x")])
    (span,) = recorded.spans
    assert not span.status.is_ok


async def test_logs_of_a_traced_flush_name_the_trace(memory_bus: MemoryBus, settings: Settings) -> None:
    recorded, bound = Recorded(), []

    def before(flush: Flush) -> None:
        bound.append(structlog.contextvars.get_contextvars().get("trace"))

    await produce(memory_bus, recorded.traces, tick("A", 0, 1.0, 1.0, 1))
    await micro_batch(memory_bus, MemorySink(before), settings, recorded.traces)
    (trace_id,) = trace_ids(recorded.spans)
    assert bound[0] == f"{trace_id:032x}"
    assert "trace" not in structlog.contextvars.get_contextvars()


def test_without_traces_nothing_is_put_around_anything(settings: Settings) -> None:
    bus = store = logic = claim = cast(Any, object())
    with tracing.traces(settings, "run") as off:
        assert off.producing(bus) is bus
        assert off.consuming(bus) is bus
        assert off.sink(store, WINDOWING) is store
        assert off.logic(logic, claim, WINDOWING) is logic
    # redis-py imports OpenTelemetry's metrics wherever it finds them; what makes and sends spans is ours to leave out.
    code = """
import sys
from market_data_core.config import Settings
from market_data_pipeline import tracing
with tracing.traces(Settings(), "run"):
    sys.exit(any(name.startswith(("opentelemetry.sdk.trace", "opentelemetry.exporter")) for name in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(sys.modules, "market_data_pipeline.tracing.otlp")
    with (
        pytest.raises(ConfigError) as caught,
        tracing.traces(Settings.model_validate({"telemetry": {"traces": {"enabled": True}}}), "run"),
    ):
        pass
    assert str(caught.value) == (
        "telemetry.traces.enabled is true, and OpenTelemetry is not installed: pip install 'mdp[otel]'"
    )


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("", None),
        ("http://c:4318", "http://c:4318/v1/traces"),
        ("https://c/otlp/", "https://c/otlp/v1/traces"),
        ("http://c:4318/v1/traces", "http://c:4318/v1/traces"),
    ],
)
def test_the_endpoint_is_a_base_as_that_of_opentelemetry(given: str, used: str | None) -> None:
    assert otlp.endpoint_of(TraceSettings.model_validate({"endpoint": given})) == used


class Receiver(HTTPServer):
    """A collector of one page: what was sent to ``/v1/traces``, and with which headers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Post)
        self.requests: list[ExportTraceServiceRequest] = []
        self.said: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def names(self) -> list[str]:
        return sorted(
            span.name
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        )

    def resource(self) -> dict[str, str]:
        (found,) = {
            tuple((a.key, a.value.string_value) for a in r.resource.attributes)
            for request in self.requests
            for r in request.resource_spans
        }
        return dict(found)


class _Post(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.server.said.append(self.headers["X-Desk"])
        self.send_response(200 if self.path == "/v1/traces" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def receiving() -> Iterator[Receiver]:
    with Receiver() as receiver:
        thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield receiver
        finally:
            receiver.shutdown()
            thread.join()


def traced(settings: Settings, endpoint: str) -> Settings:
    telemetry = settings.telemetry.model_copy(
        update={"traces": TraceSettings.model_validate({"enabled": True, "endpoint": endpoint, "ratio": 1.0})}
    )
    return settings.model_copy(update={"telemetry": telemetry})


@pytest.mark.parametrize("by_variable", [False, True])
async def test_spans_are_sent_to_the_endpoint(
    by_variable: bool, memory_bus: MemoryBus, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-desk=equities")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    with receiving() as receiver:
        if by_variable:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
            monkeypatch.setenv("OTEL_SERVICE_NAME", "desk-bars")
        switched_on = traced(settings, "" if by_variable else receiver.url)
        with tracing.traces(switched_on, "micro-batch") as traces:
            await produce(memory_bus, traces, tick("A", 0, 1.0, 1.0, 1))
            await micro_batch(memory_bus, MemorySink(), switched_on, traces)
    assert receiver.names() == [
        "commit bars_ohlcv",
        "process mdp.events",
        "publish mdp.bars",
        "publish mdp.events",
        "window",
    ]
    assert set(receiver.said) == {"equities"}
    resource = receiver.resource()
    assert resource["service.name"] == ("desk-bars" if by_variable else "mdp-micro-batch")
    assert resource["deployment.environment.name"] == "test"


@pytest.mark.parametrize("silent", [False, True])
async def test_an_endpoint_that_is_away_or_silent_neither_blocks_nor_fails_the_pipeline(
    silent: bool, memory_bus: MemoryBus, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    monkeypatch.setattr(otlp, "LAST_SECONDS", 0.1)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if silent:
            listening.listen()  # and nobody ever answers
        port = listening.getsockname()[1] if silent else free_port()
        with tracing.traces(traced(settings, f"http://127.0.0.1:{port}"), "micro-batch") as traces:
            for n in range(20):
                await produce(memory_bus, traces, tick("A", n * 2000, 1.0, 1.0, n))
            sink = MemorySink()
            stats = await micro_batch(memory_bus, sink, settings, traces)
        assert stats.summary()["bars_stored"] == len(sink.bars()) == 20
        for thread in threading.enumerate():
            if thread.name in ("mdp-last-spans", "OtelBatchSpanRecordProcessor"):
                thread.join(20)
                assert not thread.is_alive()
