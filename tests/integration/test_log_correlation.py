"""What a line of a pipeline's log belongs to: its run, its partition, its lane; for machines and for people."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import structlog
import typer
from structlog.contextvars import bound_contextvars

from market_data_core.batch import EventBatch
from market_data_core.config import Settings
from market_data_core.errors import StoreUnavailable
from market_data_core.protocols import Flush
from market_data_pipeline.cli import batching, context
from market_data_pipeline.cli.app import app
from market_data_pipeline.cli.produce import publish
from market_data_pipeline.consumers.micro_batcher import PartitionBars
from market_data_pipeline.logging import configure
from market_data_pipeline.producers.pacing import Unpaced
from market_data_pipeline.producers.provider import BadRow
from market_data_pipeline.producers.replay import replay_lane
from market_data_pipeline.producers.runner import ProducerRunner, RunnerOptions, live
from market_data_pipeline.streaming.bus import Bus, Delivery
from market_data_pipeline.streaming.memory_bus import MemoryBus
from market_data_pipeline.telemetry import Metrics, MetricsObserver
from tests.integration.pipeline import tick, until
from tests.integration.sink import MemorySink
from tests.unit.test_producer_runner import Listed

SETTINGS = Settings.model_validate(
    {
        "bus": {"type": "memory", "uri": "memory://unused", "redis": {"partitions": 2}},
        "micro_batch": {"allow_late_ms": 0, "flush_timeout_ms": 100},
    }
)
_names = itertools.count()


@pytest.fixture(params=["json", "console"])
def log_format(request: pytest.FixtureRequest) -> Iterator[str]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield request.param
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@dataclass
class Lines:
    """What was logged in ``log_format``."""

    log_format: str
    capsys: pytest.CaptureFixture[str]

    def __post_init__(self) -> None:
        configure("INFO", json=self.log_format == "json")

    def said(self, event: str) -> list[dict[str, str]]:
        """The fields of each line about ``event``."""
        lines = [line for line in self.capsys.readouterr().err.splitlines() if event in line]
        if self.log_format == "json":
            return [{name: str(value) for name, value in json.loads(line).items()} for line in lines]
        plain = (re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines)
        return [dict(re.findall(r"(\w+)=(\S+)", line)) for line in plain]


@pytest.fixture
async def bus() -> MemoryBus:
    return MemoryBus(f"memory://correlation{next(_names)}")


async def published(bus: Bus) -> None:
    """Events in both partitions."""
    events = EventBatch.from_events([tick(symbol, 0, 1.0, 1.0, 1) for symbol in "ABCD"])
    await ProducerRunner(bus, Listed([events]), "mdp.events", RunnerOptions(partitions=2)).run()
    assert [await bus.end_offset("mdp.events", p) is not None for p in (0, 1)] == [True, True]


async def test_a_commit_that_fails_names_its_run_and_partition(
    bus: MemoryBus, log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, failed = Lines(log_format, capsys), set[int]()

    def before(flush: Flush) -> None:
        if flush.claim.partition not in failed:
            failed.add(flush.claim.partition)
            raise StoreUnavailable("the database is away")

    await published(bus)
    observer = MetricsObserver(Metrics(), "mdp.events", 2000)
    with bound_contextvars(run="r1"):
        await batching.micro_batcher(SETTINGS, bus, MemorySink(before), observer).run(asyncio.Event(), 0.2)
    found = lines.said("retrying")
    assert sorted((line["run"], line["partition"]) for line in found) == [("r1", "0"), ("r1", "1")]


async def test_what_fails_before_a_delivery_counts_names_its_partition(
    bus: MemoryBus,
    log_format: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a read of history does, which inference needs of the store."""
    lines, failed = Lines(log_format, capsys), set[int]()

    class Unprepared(PartitionBars):
        async def prepare(self, delivery: Delivery) -> None:
            if delivery.partition not in failed:
                failed.add(delivery.partition)
                raise StoreUnavailable("the database is away")

    monkeypatch.setattr(batching, "PartitionBars", Unprepared)
    await published(bus)
    observer = MetricsObserver(Metrics(), "mdp.events", 2000)
    await batching.micro_batcher(SETTINGS, bus, MemorySink(), observer).run(asyncio.Event(), 0.2)
    assert sorted(line["partition"] for line in lines.said("retrying")) == ["0", "1"]
    assert "partition" not in structlog.contextvars.get_contextvars()


@pytest.mark.parametrize("lane", ["live", "replay"])
async def test_a_producer_that_is_cut_off_names_its_lane(
    bus: MemoryBus,
    log_format: str,
    lane: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = Lines(log_format, capsys)

    async def open_bus(settings: Settings) -> Bus:
        return bus

    class Cutting(Listed):
        def batches(self) -> Iterator[EventBatch | BadRow]:
            bus.cut()
            yield from self.items

    monkeypatch.setattr(context, "open_bus", open_bus)
    options = RunnerOptions(lane=live if lane == "live" else replay_lane("r7", force=False))
    source = Cutting([EventBatch.from_events([tick("A", 0, 1.0, 1.0, 1)])])
    ctx = typer.Context(typer.main.get_command(app))
    with bound_contextvars(run="r1"):
        task = asyncio.create_task(
            publish(ctx, SETTINGS, source, Unpaced(), options, None, 0, spooling=False)
        )
        found: list[dict[str, str]] = []

        async def told() -> bool:
            found.extend(lines.said("the bus cannot be reached"))
            return bool(found)

        await until(told)
        bus.heal()
        counts, _ = await task
    assert counts.published == 1
    want = "live/p" if lane == "live" else "replay/r7/p"
    assert {(line["run"], line["provider"], line["lane"]) for line in found} == {("r1", "p", want)}
