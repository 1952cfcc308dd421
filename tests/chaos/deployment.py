"""What one scenario runs on: servers, micro-batchers and a producer as processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec

from market_data_core.errors import BusError
from market_data_core.events import format_interval
from tests.chaos.load import Load
from tests.chaos.processes import STOPPED_AT_ITS_START, Process
from tests.chaos.servers import Servers, Wires
from tests.chaos.waiting import until
from tests.chaos.watch import CommitWatch

PARTITIONS = 4
WORKERS = 3
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


class Deployment:
    """Entered: workers own every partition and events flow. Left: nothing of it runs any more."""

    def __init__(self, servers: Servers, plan: Plan, folder: Path) -> None:
        self.servers, self.plan, self.folder = servers, plan, folder
        self.topic, self.bars_topic = f"{plan.name}.events", f"{plan.name}.bars"
        self.workers: list[Process] = []
        self.past: list[Process] = []
        self.wires: dict[str, Wires] = {}
        self.producer: Process | None = None
        self.load: Load | None = None
        self.until = 0
        self._began = 0.0
        self._numbers = 0
        self._stack = contextlib.AsyncExitStack()
        self.watch = CommitWatch(servers.postgres_url, self.topic, plan.name)

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        for process in self._all():
            process.end()
        await self._stack.aclose()

    def _all(self) -> list[Process]:
        return [*self.workers, *self.past, *([self.producer] if self.producer else [])]

    async def _start(self) -> None:
        plan = self.plan
        self.folder.mkdir(parents=True, exist_ok=True)
        self._config = self.folder / "chaos.yaml"
        self._config.write_text(
            _CONFIG.format(
                name=plan.name, partitions=PARTITIONS, lease_ms=plan.lease_ms, horizon_ms=HORIZON_MS
            )
        )
        async with self.servers.open_bus() as bus:
            for topic in (self.topic, self.bars_topic):
                await bus.ensure_topic(topic, PARTITIONS)
        await self._keep_bars()
        await self._stack.enter_async_context(self.watch)
        for _ in range(WORKERS):
            await self.join()
        await until("every partition has an owner", 120, lambda: len(self.watch.held) == PARTITIONS)
        start = time.time_ns() // WINDOW_NS * WINDOW_NS
        self.load = Load(plan.name, self.topic, PARTITIONS, plan.symbols, plan.rate, plan.seed, start)
        described = msgspec.json.encode(self.load).decode()
        self.producer = await self._process("producer", ["-m", "tests.chaos.load", described], talks=True)
        self._began = time.monotonic()
        await until("every partition has a commit", 120, self._committing)

    async def _keep_bars(self) -> None:
        """A group that acknowledges nothing: what is published stays, however short the retention."""
        async with (
            self.servers.open_bus() as bus,
            bus.consumer(self.bars_topic, AUDITOR, AUDITOR) as auditor,
        ):
            owned: set[int] = set()
            while len(owned) < PARTITIONS:
                for partition in (await auditor.poll(1)).assigned:
                    await auditor.seek(partition, None)
                    await auditor.ack(partition, -1)
                    owned.add(partition)

    def _committing(self) -> bool:
        self.check()
        return len(self.watch.held) == PARTITIONS and all(h.flushes > 0 for h in self.watch.held.values())

    async def _process(self, name: str, argv: list[str], *, talks: bool = False) -> Process:
        env = {k: v for k, v in os.environ.items() if k not in _FOREIGN}
        env |= {"MDP_HOME": str(self.servers.home)} | self.servers.bus.environment()
        if self.plan.wired:
            wires = self.wires[name] = await self._stack.enter_async_context(Wires(self.servers))
            env |= wires.env
        return Process(name, argv, env, self.folder, talks=talks)

    async def join(self) -> Process:
        """One more worker."""
        self._numbers += 1
        worker = await self._process(
            f"worker-{self._numbers}",
            [
                *("-m", "market_data_pipeline.cli.app", "--config", str(self._config), "--json"),
                *("stream", "micro-batch", "--window", format_interval(WINDOW_NS)),
            ],
        )
        self.workers.append(worker)
        return worker

    def kill(self, worker: Process) -> None:
        """``kill -9`` of a worker, wherever it is in its life."""
        self.watch.killed(worker.pid)
        worker.kill()
        self.workers.remove(worker)
        self.past.append(worker)

    async def leave(self, worker: Process) -> None:
        """SIGTERM at any moment, and its orderly end."""
        worker.dismiss()
        self.workers.remove(worker)
        self.past.append(worker)
        await worker.gone(30, codes=(0, *STOPPED_AT_ITS_START))

    def owners(self) -> list[Process]:
        """Workers that hold a partition."""
        return [w for w in self.workers if self.watch.of(w.pid)]

    def check(self) -> None:
        """See that nobody ended who was not ended by the harness.

        Raises:
            AssertionError: somebody did.
        """
        for process in (*self.workers, *([self.producer] if self.producer else [])):
            code = process.code
            assert code is None, f"{process.name} ended by itself with {code}: {process.last_words()}"

    async def pause(self, seconds: float) -> None:
        """The random time between two blows."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.check()
            await asyncio.sleep(min(left, 0.1))

    async def progress(self, seconds: float = 120) -> None:
        """Wait until every partition has commits again that it has not now."""
        before = {p: (h.epoch, h.flushes) for p, h in self.watch.held.items()}

        def moved() -> bool:
            self.check()
            now = {p: (h.epoch, h.flushes) for p, h in self.watch.held.items()}
            return all(now[p] > before[p] and now[p][1] > 0 for p in before)

        await until("every partition commits", seconds, moved)

    async def finish_load(self) -> float:
        """End the load at a second of event time from now, and wait for the producer; seconds it ran."""
        assert self.producer is not None
        self.check()
        self.until = time.time_ns() + WINDOW_NS
        self.producer.tell(str(self.until))
        await self.producer.gone(180)
        return time.monotonic() - self._began

    async def drained(self, seconds: float) -> float:
        """Wait until every worker has joined and every record is acknowledged, which follows the commit and the
        publishing of all bars."""
        async with self.servers.open_bus() as bus:

            async def done() -> bool:
                for worker in self.workers:
                    assert worker.code is None, f"{worker.name} ended by itself: {worker.last_words()}"
                try:
                    (status,) = await bus.status([self.topic])
                except BusError:
                    return False
                mine = [g for g in status.groups if g.group == self.plan.name]
                parts = mine[0].partitions if mine else []
                if len(parts) != PARTITIONS or len(mine[0].members) != len(self.workers):
                    return False
                return all(p.lag == 0 and p.pending == 0 for p in parts)

            return await until("the group has handled every record", seconds, done)

    async def dismiss(self) -> list[dict[str, Any]]:
        """End all workers in order; their results."""
        for worker in self.workers:
            worker.dismiss()
        for worker in self.workers:
            await worker.gone(30)
        ended = [w for w in (*self.workers, *self.past) if w.code == 0]
        for worker in ended:
            assert worker.result()["fenced"] == worker.fenced(), f"{worker.name} counts other than it logs"
        return [worker.result() for worker in ended]

    def fenced(self) -> int:
        """Writes refused to workers that had been replaced, by their logs."""
        return sum(worker.fenced() for worker in (*self.workers, *self.past))
