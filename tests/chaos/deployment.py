"""What one scenario runs on: servers, micro-batchers, inference and a producer as processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from market_data_core.events import format_interval
from tests.chaos.crew import Crew
from tests.chaos.load import Load
from tests.chaos.processes import Process
from tests.chaos.servers import Servers, Wires
from tests.chaos.signals_oracle import FEATURES, rules
from tests.chaos.waiting import until
from tests.chaos.watch import CommitWatch

PARTITIONS = 4
WORKERS = 3
INFERRERS = 2
WINDOW_NS = 1_000_000_000
HORIZON_MS = 6000
"""More than the latest event of the load is late, and less than an outage lasts."""
AUDITOR = "auditor"
_FOREIGN = ("REDIS_URI", "KAFKA_BOOTSTRAP", "DATABASE_URL", "MDP_CONFIG")
_CONFIG = """\
version: 1
bus:
  redis:
    stream: {name}.events
    bars_stream: {name}.bars
    signals_stream: {name}.signals
    consumer_group: {name}
    partitions: {partitions}
    lease_ms: {lease_ms}
    retention: 10s
micro_batch:
  window_ms: 1000
  allow_late_ms: 300
  flush_timeout_ms: 1000
  dedupe_horizon_ms: {horizon_ms}
features:
  windows: {features}
inference:
  group: {name}.inference
  adapters:
    rules:
      file: {rules}
telemetry:
  metrics_port: 0
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """``name``: of the scenario, its topics and its provider. ``wired``: through a proxy to each server."""

    name: str
    seed: int
    rate: int
    symbols: int = 64
    lease_ms: int = 2000
    wired: bool = False

    @property
    def events(self) -> int:
        """The most events of a symbol in one window."""
        return -(-self.rate // self.symbols)


class Deployment:
    """Entered: workers own every partition and events flow; inference begins when it is asked for. Left: nothing of it
    runs any more."""

    def __init__(self, servers: Servers, plan: Plan, folder: Path) -> None:
        self.servers, self.plan, self.folder = servers, plan, folder
        self.topic, self.bars_topic = f"{plan.name}.events", f"{plan.name}.bars"
        self.signals_topic = f"{plan.name}.signals"
        self.wires: dict[str, Wires] = {}
        self.producer: Process | None = None
        self.load: Load | None = None
        self.until = 0
        self._began = 0.0
        self._stack = contextlib.AsyncExitStack()
        self._config = folder / "chaos.yaml"
        self.batchers = self._crew(
            "worker", self.topic, plan.name, "micro-batch", "--window", format_interval(WINDOW_NS)
        )
        self.inferrers = self._crew(
            "infer", self.bars_topic, f"{plan.name}.inference", "infer", "--adapter", "rules"
        )

    def _crew(self, role: str, topic: str, group: str, *command: str) -> Crew:
        argv = ["-m", "market_data_pipeline.cli.app", "--config", str(self._config), "--json", "stream"]
        return Crew(
            role, [*argv, *command], self._process, CommitWatch(self.servers.postgres_url, topic, group)
        )

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        for crew in (self.batchers, self.inferrers):
            for process in (*crew.workers, *crew.past):
                process.end()
        if self.producer is not None:
            self.producer.end()
        await self._stack.aclose()

    async def _start(self) -> None:
        plan = self.plan
        self.folder.mkdir(parents=True, exist_ok=True)
        rules_file = self.folder / "rules.yaml"
        rules_file.write_text(rules(plan.events))
        self._config.write_text(
            _CONFIG.format(
                name=plan.name,
                partitions=PARTITIONS,
                lease_ms=plan.lease_ms,
                horizon_ms=HORIZON_MS,
                features=FEATURES,
                rules=rules_file,
            )
        )
        async with self.servers.open_bus() as bus:
            for topic in (self.topic, self.bars_topic, self.signals_topic):
                await bus.ensure_topic(topic, PARTITIONS)
        await self._keep()
        await self._stack.enter_async_context(self.batchers.watch)
        for _ in range(WORKERS):
            await self.batchers.join()
        await until("every partition has an owner", 120, lambda: self.batchers.owned(PARTITIONS))
        start = time.time_ns() // WINDOW_NS * WINDOW_NS
        self.load = Load(plan.name, self.topic, PARTITIONS, plan.symbols, plan.rate, plan.seed, start)
        described = msgspec.json.encode(self.load).decode()
        self.producer = await self._process("producer", ["-m", "tests.chaos.load", described], talks=True)
        self._began = time.monotonic()
        await self._committing(self.batchers)

    async def infer(self) -> None:
        """Begin to make signals, of all bars from the first on."""
        await self._stack.enter_async_context(self.inferrers.watch)
        for _ in range(INFERRERS):
            await self.inferrers.join()
        await self._committing(self.inferrers)

    async def _keep(self) -> None:
        """A group that acknowledges nothing: what is published stays, however short the retention."""
        async with self.servers.open_bus() as bus:
            for topic in (self.bars_topic, self.signals_topic):
                async with bus.consumer(topic, AUDITOR, AUDITOR) as auditor:
                    owned: set[int] = set()
                    while len(owned) < PARTITIONS:
                        for partition in (await auditor.poll(1)).assigned:
                            await auditor.seek(partition, None)
                            await auditor.ack(partition, -1)
                            owned.add(partition)

    async def _committing(self, crew: Crew) -> None:
        def committing() -> bool:
            self.check()
            return crew.committing(PARTITIONS)

        await until(f"every partition of the {crew.role}s has a commit", 120, committing)

    async def _process(self, name: str, argv: Sequence[str], *, talks: bool = False) -> Process:
        env = {k: v for k, v in os.environ.items() if k not in _FOREIGN}
        env |= {"MDP_HOME": str(self.servers.home)} | self.servers.bus.environment()
        if self.plan.wired:
            wires = self.wires[name] = await self._stack.enter_async_context(Wires(self.servers))
            env |= wires.env
        return Process(name, argv, env, self.folder, talks=talks)

    def check(self) -> None:
        """See that nobody ended who was not ended by the harness.

        Raises:
            AssertionError: somebody did.
        """
        workers = (*self.batchers.workers, *self.inferrers.workers)
        for process in (*workers, *([self.producer] if self.producer else [])):
            code = process.code
            assert code is None, f"{process.name} ended by itself with {code}: {process.last_words()}"

    async def pause(self, seconds: float) -> None:
        """The random time between two blows."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.check()
            await asyncio.sleep(min(left, 0.1))

    async def progress(self, seconds: float = 120) -> None:
        """Wait until everybody commits again, each partition of each crew."""
        for crew in (self.batchers, self.inferrers):
            await crew.progress(self.check, seconds)

    async def finish_load(self) -> float:
        """End the load at a second of event time from now, and wait for the producer; seconds it ran."""
        assert self.producer is not None
        self.check()
        self.until = time.time_ns() + WINDOW_NS
        self.producer.tell(str(self.until))
        await self.producer.gone(180)
        return time.monotonic() - self._began

    async def drained(self, seconds: float) -> float:
        """Wait until every event is in the bars, and every bar in the signals if they are made."""
        async with self.servers.open_bus() as bus:
            waited = await self.batchers.drained(bus, PARTITIONS, seconds)
            if self.inferrers.workers:
                waited += await self.inferrers.drained(bus, PARTITIONS, seconds)
        return waited
