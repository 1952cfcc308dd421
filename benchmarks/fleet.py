"""Several micro-batchers that share the partitions of a topic, each a process of ``mdp stream micro-batch``."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import psutil
import psycopg

from benchmarks.measure import ROOT
from benchmarks.servers import Servers
from market_data_pipeline.streaming import drivers
from market_data_pipeline.streaming.bus import Bus
from market_data_store.connection import libpq_url
from tests.servers.kafka import KafkaServer

PARTITIONS: Final = 8
PATIENCE: Final = 240.0
_LEASE_MS: Final = 60_000
"""Longer than workers stand still while a topic is filled."""
_CLAIMS: Final = "SELECT owner, count(*) FROM stream_claims WHERE topic = %s GROUP BY owner"


@dataclass(frozen=True, slots=True)
class BusServer:
    """``name``: of the driver. ``environment``: what makes a process use it."""

    name: str
    title: str
    url: str
    pid: int
    environment: dict[str, str]

    def open(self) -> Bus:
        return drivers.open_bus(self.name, self.url)


@contextmanager
def buses(servers: Servers) -> Iterator[list[BusServer]]:
    """Redis, which runs, and Kafka."""
    with KafkaServer() as kafka:
        yield [
            BusServer(
                "redis",
                "Redis",
                servers.redis_url,
                servers.given["pids"]["redis"],
                {"REDIS_URI": servers.redis_url},
            ),
            BusServer(
                "kafka",
                "Kafka",
                kafka.bootstrap,
                kafka.pid,
                {"MDP_BUS__TYPE": "kafka", "KAFKA_BOOTSTRAP": kafka.bootstrap},
            ),
        ]


@dataclass(slots=True)
class Fleet:
    """Entered: ``workers`` own even shares of a new ``topic``, which is empty. Left: they have ended in order."""

    servers: Servers
    bus: BusServer
    topic: str
    workers: int
    window: str
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def bars_topic(self) -> str:
        return f"{self.topic}.bars"

    async def __aenter__(self) -> Self:
        async with self.bus.open() as bus:
            await bus.ensure_topic(self.topic, PARTITIONS)
        try:
            self._processes += [self._worker(number) for number in range(self.workers)]
            await self._until("every worker owns its share", self._shared)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self._processes:
            await asyncio.to_thread(process.wait, 60)

    def stand(self) -> None:
        """Stop every worker where it is."""
        for process in self._processes:
            process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGCONT)

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far: of all workers together, of the bus, of PostgreSQL."""
        pids = {
            "client": [process.pid for process in self._processes],
            "bus": [self.bus.pid],
            "postgres": [self.servers.given["pids"]["postgres"]],
        }
        return {name: sum(map(_cpu, some)) for name, some in pids.items()}

    def peak_bytes(self) -> int:
        """The most resident memory of any worker so far."""
        status = [Path(f"/proc/{p.pid}/status").read_text(encoding="ascii") for p in self._processes]
        return max(int(text.split("VmHWM:")[1].split()[0]) * 1024 for text in status)

    async def stored(self, what: str, query: str, *parameters: object) -> None:
        """Wait until ``query`` of the database answers true."""
        with psycopg.connect(libpq_url(self.servers.database_url), autocommit=True) as connection:
            await self._until(what, lambda: _first(connection, query, parameters) is True)

    async def _until(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            for process in self._processes:
                if process.poll() is not None:
                    raise RuntimeError(f"a worker ended with {process.returncode}: {self._log(process)}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"not within {PATIENCE:.0f} s: {what}")
            await asyncio.sleep(0.02)

    def _shared(self) -> bool:
        with psycopg.connect(libpq_url(self.servers.database_url), autocommit=True) as connection:
            rows: list[tuple[str, int]] = connection.execute(_CLAIMS, (self.topic,)).fetchall()
        counts = [count for _, count in rows]
        return len(counts) == self.workers and sum(counts) == PARTITIONS and max(counts) - min(counts) <= 1

    def _worker(self, number: int) -> subprocess.Popen[bytes]:
        path = self.servers.folder / f"{self.topic}-{number}.log"
        command = [sys.executable, "-m", "market_data_pipeline.cli.app", "--json", "stream", "micro-batch"]
        settings = {
            "MDP_BUS__REDIS__STREAM": self.topic,
            "MDP_BUS__REDIS__BARS_STREAM": self.bars_topic,
            "MDP_BUS__REDIS__CONSUMER_GROUP": self.topic,
            "MDP_BUS__REDIS__PARTITIONS": str(PARTITIONS),
            "MDP_BUS__REDIS__LEASE_MS": str(_LEASE_MS),
            "MDP_TELEMETRY__METRICS_PORT": "0",
            "DATABASE_URL": self.servers.database_url,
        }
        with path.open("wb") as log:
            return subprocess.Popen(
                [*command, "--window", self.window],
                cwd=ROOT,
                env=os.environ | settings | self.bus.environment,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def _log(self, process: subprocess.Popen[bytes]) -> str:
        number = self._processes.index(process)
        return (self.servers.folder / f"{self.topic}-{number}.log").read_text()[-1000:]


def _first(connection: psycopg.Connection[Any], query: str, parameters: tuple[object, ...]) -> object:
    row = connection.execute(query, parameters).fetchone()
    return None if row is None else row[0]


def _cpu(pid: int) -> float:
    """CPU seconds of a process and of those that it started."""
    head = psutil.Process(pid)
    total = 0.0
    for process in (head, *head.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
