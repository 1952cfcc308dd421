"""The servers of the buses that the scenarios run on: started, killed, brought back, and reached through a proxy."""

from __future__ import annotations

import asyncio
import os
import signal
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit, urlunsplit

import psutil

from market_data_pipeline import embedded
from tests.chaos.waiting import until
from tests.servers.kafka import KafkaServer
from tests.servers.wire import Wire

BUSES = ("redis", "kafka")
DOORS = 40
"""Ways through a proxy to the broker of Kafka, one for each process of a scenario."""


class BusServer(ABC):
    """``published``: bytes of every request that publishes, and of no other."""

    name: ClassVar[str]
    published: ClassVar[bytes]
    url: str

    @abstractmethod
    async def start(self) -> None: ...

    @abstractmethod
    async def stop(self) -> None: ...

    @abstractmethod
    async def kill(self) -> None:
        """``kill -9``; on return it is dead."""

    @abstractmethod
    async def revive(self) -> None:
        """Start what is down, on the same port and data, as an init system would."""

    @abstractmethod
    def wire(self) -> Wire:
        """A way to it that can be cut, not open yet."""

    @abstractmethod
    def environment(self, wire: Wire | None = None) -> dict[str, str]:
        """What makes a process use this server, through ``wire``."""


class RedisBusServer(BusServer):
    """The embedded Redis of a home."""

    name = "redis"
    published = b"XADD"

    def __init__(self, home: Path) -> None:
        self._service = embedded.redis(home)
        self.url = ""

    async def start(self) -> None:
        self.url = await asyncio.to_thread(self._service.start)

    async def stop(self) -> None:
        await asyncio.to_thread(self._service.stop)

    async def kill(self) -> None:
        pid = self._service.status().pid
        assert pid is not None, "Redis does not run"
        await kill([pid])

    async def revive(self) -> None:
        assert await asyncio.to_thread(self._service.start) == self.url, "Redis came back elsewhere"

    def wire(self) -> Wire:
        port = urlsplit(self.url).port
        assert port is not None
        return Wire(port)

    def environment(self, wire: Wire | None = None) -> dict[str, str]:
        # Whom nobody tells finds it in its home.
        return {} if wire is None else {"REDIS_URI": through(self.url, wire.port)}


class KafkaBusServer(BusServer):
    """A broker of the tests."""

    name = "kafka"
    # No transaction, every replica, and the time in ms that the driver gives a request.
    published = b"\xff\xff\xff\xff\x00\x00\x13\x88"

    def __init__(self, home: Path) -> None:
        self._server = KafkaServer(doors=DOORS, environment={"MDP_HOME": str(home)})
        self._doors = list(self._server.doors)
        self.url = self._server.bootstrap

    async def start(self) -> None:
        await asyncio.to_thread(self._server.__enter__)

    async def stop(self) -> None:
        await asyncio.to_thread(self._server.__exit__)

    async def kill(self) -> None:
        await asyncio.to_thread(self._server.kill9)

    async def revive(self) -> None:
        if not self._server.alive:
            await asyncio.to_thread(self._server.start)

    def wire(self) -> Wire:
        listening, told = self._doors.pop()
        return Wire(listening, told)

    def environment(self, wire: Wire | None = None) -> dict[str, str]:
        where = self.url if wire is None else f"127.0.0.1:{wire.port}"
        return {"MDP_BUS__TYPE": "kafka", "KAFKA_BOOTSTRAP": where}


def bus_server(name: str, home: Path) -> BusServer:
    """The server of a bus of :data:`BUSES`."""
    return KafkaBusServer(home) if name == "kafka" else RedisBusServer(home)


def through(url: str, port: int) -> str:
    """``url`` behind another port of the loopback."""
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    return urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{port}"))


async def kill(pids: list[int]) -> None:
    """``kill -9``; on return they are dead."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    for pid in pids:
        await until(f"process {pid} is dead", 10, lambda pid=pid: not _runs(pid))  # type: ignore[misc]


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
