"""What a soak runs on: the embedded servers, and ``mdp stream`` produce, micro-batch and infer as processes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psycopg

from market_data_pipeline import embedded
from tests.chaos.crew import Crew
from tests.chaos.processes import Process
from tests.chaos.servers import Servers
from tests.chaos.waiting import until
from tests.chaos.watch import CommitWatch
from tests.soak.plan import GROUPS, TOPICS, Phase, Plan

_FOREIGN = ("REDIS_URI", "KAFKA_BOOTSTRAP", "DATABASE_URL")
EVENTS, BARS, _ = TOPICS
_DRAIN_S = 180.0
_REPLAY_S = 300.0


@dataclass(slots=True)
class Span:
    """When a phase was: s UTC, from its first event to its last; ``drained``: when everything of it was handled.
    ``produced``: the producer's own summary."""

    phase: Phase
    began: float = 0.0
    ended: float = 0.0
    drained: float = 0.0
    produced: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Stand:
    """Entered: one micro-batcher and one inference run. Left: nothing runs any more, and the servers still do.

    ``spans``: the phases so far. ``marks``: (s UTC, what happened).
    """

    def __init__(self, servers: Servers, plan: Plan, folder: Path, say: Callable[[str], None]) -> None:
        self.servers, self.plan, self.folder = servers, plan, folder
        self.spans: list[Span] = []
        self.marks: list[tuple[float, str]] = []
        self.producer: Process | None = None
        self._say = say
        self._config = folder / "soak.yaml"
        self._servers_pids: dict[str, int] = {}
        self.batchers = self._crew("micro-batch", EVENTS, "micro-batch", "--window", "2s")
        self.inferrers = self._crew("infer", BARS, "infer", "--adapter", "rules")

    @property
    def crews(self) -> tuple[Crew, Crew]:
        return self.batchers, self.inferrers

    def _argv(self, *command: str) -> list[str]:
        head = ["-m", "market_data_pipeline.cli.app", "--config", str(self._config), "--json", "stream"]
        return [*head, *command]

    def _crew(self, role: str, topic: str, *command: str) -> Crew:
        watch = CommitWatch(self.servers.postgres_url, topic, GROUPS[topic])
        return Crew(role, self._argv(*command), self._process, watch)

    async def __aenter__(self) -> Self:
        try:
            await asyncio.to_thread(note_commit_times, self.servers)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._config.write_text(self.plan.config(self.folder), encoding="utf-8")
            self.look_for_servers()
            async with self.servers.open_bus() as bus:
                for topic in TOPICS:
                    await bus.ensure_topic(topic, self.plan.partitions)
            for crew in self.crews:
                async with crew.watch:
                    await crew.join()
                    await until(
                        f"{crew.role} owns every partition",
                        120,
                        lambda crew=crew: crew.owned(self.plan.partitions),  # type: ignore[misc]
                    )
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        for crew in self.crews:
            for process in (*crew.workers, *crew.past):
                process.end()
        if self.producer is not None:
            self.producer.end()

    async def _process(self, name: str, argv: Sequence[str]) -> Process:
        keep = {k: v for k, v in os.environ.items() if not k.startswith("MDP_") and k not in _FOREIGN}
        return Process(name, argv, keep | {"MDP_HOME": str(self.servers.home)}, self.folder)

    def note(self, what: str) -> None:
        """Something that the pictures show."""
        self.marks.append((time.time(), what))
        self._say(f"    {what}")

    def look_for_servers(self) -> None:
        """Learn the servers' processes, which may be new."""
        found = {service.name: service.status().pid for service in embedded.services(self.servers.home)}
        self._servers_pids = {name: pid for name, pid in found.items() if pid is not None}

    def processes(self) -> dict[str, int]:
        """Everybody who runs now."""
        found = {crew.role: worker.pid for crew in self.crews for worker in crew.workers}
        if self.producer is not None:
            found["produce"] = self.producer.pid
        return found | self._servers_pids | {"this harness": os.getpid()}

    async def begin(self, phase: Phase) -> Span:
        """Start the producer of ``phase``."""
        self._say(f"{phase.name}: {phase.title}" + (f", {phase.seconds:.0f} s" if phase.seconds else ""))
        span = Span(phase)
        length = [] if phase.seconds is None else ["--duration", f"{phase.seconds:.0f}s"]
        argv = self._argv(
            "produce",
            *(
                "--provider",
                "synthetic",
                "--provider-name",
                phase.name,
                "--symbols",
                ",".join(self.plan.names),
            ),
            *(
                "--rate",
                str(phase.rate),
                "--seed",
                str(self.plan.seed),
                "--late",
                str(self.plan.late),
                *length,
            ),
        )
        self.producer = await self._process(f"produce-{phase.name}", argv)
        self.spans.append(span)
        return span

    async def finish(self, span: Span) -> None:
        """Wait for the producer of ``span``, or end it if nothing else does, and until all is handled.

        Raises:
            AssertionError: it took too long, or somebody ended who was not ended.
        """
        producer = self.producer
        assert producer is not None

        def over() -> bool:
            self.check()
            return producer.code is not None

        if span.phase.seconds is None:
            producer.dismiss()
        await until(f"{producer.name} ends", (span.phase.seconds or 0) + 120, over)
        await producer.gone(1)
        span.produced = producer.result()
        self.producer = None
        async with self.servers.open_bus() as bus:
            for crew in self.crews:
                await crew.drained(bus, self.plan.partitions, _DRAIN_S)
        span.drained = time.time()

    async def replay(self, start: str, end: str) -> dict[str, Any]:
        """``mdp stream replay`` of the range that was written; its summary."""
        argv = self._argv("replay", "--dataset", "soak_range", "--from", start, "--to", end)
        process = await self._process("replay", argv)
        try:
            await process.gone(_REPLAY_S)
        finally:
            process.end()
        return process.result()

    def check(self) -> None:
        """See that nobody has ended by himself.

        Raises:
            AssertionError: somebody has.
        """
        for worker in (*self.batchers.workers, *self.inferrers.workers):
            code = worker.code
            assert code is None, f"{worker.name} ended by itself with {code}: {worker.last_words()}"


def note_commit_times(servers: Servers) -> None:
    """Have PostgreSQL keep the time of every commit, for which it must be started again."""
    with psycopg.connect(servers.postgres_url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET track_commit_timestamp = on")
    servers.postgres.stop()
    assert servers.postgres.start() == servers.postgres_url, "PostgreSQL came back elsewhere"
