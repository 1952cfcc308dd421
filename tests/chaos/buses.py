"""The servers of the buses that the scenarios run on: started, killed, brought back, and reached through a proxy."""

from __future__ import annotations

import asyncio
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar, Final
from urllib.parse import urlsplit, urlunsplit

import psutil
from aiokafka.protocol.metadata import MetadataRequest

from market_data_core.errors import BusUnavailable
from market_data_pipeline import embedded
from market_data_pipeline.streaming.kafka_address import Address
from market_data_pipeline.streaming.kafka_link import KafkaLink
from tests.chaos.waiting import until
from tests.servers.kafka import KafkaCluster, KafkaServer
from tests.servers.wire import Bundle, Wire

DOORS = 40
"""Ways through a proxy to a broker of Kafka, one for each process of a scenario."""


class BusServer(ABC):
    """``name``: of the driver. ``published``: bytes of every request that publishes, and of no other."""

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
    def wire(self) -> Bundle:
        """A way to it that can be cut, not open yet."""

    @abstractmethod
    def environment(self, wire: Bundle | None = None) -> dict[str, str]:
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

    def wire(self) -> Bundle:
        port = urlsplit(self.url).port
        assert port is not None
        return Bundle([Wire(port)])

    def environment(self, wire: Bundle | None = None) -> dict[str, str]:
        # Whom nobody tells finds it in its home.
        return {} if wire is None else {"REDIS_URI": through(self.url, wire.doors[0])}


class KafkaBusServer(BusServer):
    """A broker of the tests."""

    name = "kafka"
    # No transaction, every replica, and the time in ms that the driver gives a request.
    published = b"\xff\xff\xff\xff\x00\x00\x13\x88"

    def __init__(self, home: Path, doors: int) -> None:
        self._server = self._made(doors, {"MDP_HOME": str(home)})
        self._doors = [list(broker.doors) for broker in self._brokers]
        self.url = self._server.bootstrap

    def _made(self, doors: int, environment: dict[str, str]) -> KafkaServer | KafkaCluster:
        return KafkaServer(doors=doors, environment=environment)

    @property
    def _brokers(self) -> list[KafkaServer]:
        return [self._server] if isinstance(self._server, KafkaServer) else self._server.brokers

    async def start(self) -> None:
        await asyncio.to_thread(self._server.__enter__)

    async def stop(self) -> None:
        await asyncio.to_thread(self._server.__exit__)

    async def kill(self) -> None:
        await asyncio.to_thread(self._server.kill9)

    async def revive(self) -> None:
        if not all(broker.alive for broker in self._brokers):
            await asyncio.to_thread(self._server.start)

    def wire(self) -> Bundle:
        ways = [doors.pop() for doors in self._doors]
        return Bundle([Wire(listening, told) for listening, told in ways])

    def environment(self, wire: Bundle | None = None) -> dict[str, str]:
        where = self.url if wire is None else ",".join(f"127.0.0.1:{port}" for port in wire.doors)
        return {"MDP_BUS__TYPE": "kafka", "KAFKA_BOOTSTRAP": where}


class KafkaClusterBusServer(KafkaBusServer):
    """Three brokers of the tests, of which each can be harmed alone."""

    _server: KafkaCluster

    def _made(self, doors: int, environment: dict[str, str]) -> KafkaCluster:
        return KafkaCluster(doors=doors, environment=environment)

    @property
    def nodes(self) -> list[int]:
        """The numbers of the brokers."""
        return [broker.node for broker in self._brokers]

    async def kill_one(self, node: int) -> None:
        await asyncio.to_thread(self._broker(node).kill9)

    def freeze_one(self, node: int) -> None:
        self._broker(node).freeze()

    def thaw_one(self, node: int) -> None:
        self._broker(node).thaw()

    async def coordinator(self, group: str) -> int:
        """The broker that coordinates ``group`` now."""
        async with self._linked() as link:
            return await link.coordinator(group)

    async def leaders(self, topic: str) -> list[int]:
        """The broker that leads each partition of ``topic`` now."""
        async with self._linked() as link:
            (row,) = (await link.ask(MetadataRequest([topic], allow_auto_topic_creation=False))).topics
            return [leader for _, _, leader, *_ in row[3]]

    async def in_sync(self) -> None:
        """Wait until every partition of every topic has all replicas again."""

        async def whole() -> bool:
            try:
                async with self._linked() as link:
                    found = await link.ask(MetadataRequest(None, allow_auto_topic_creation=False))
            except BusUnavailable:
                return False
            rows = [partition for topic in found.topics for partition in topic[3]]
            return all(len(isr) == len(self.nodes) for _, _, _, _, isr, *_ in rows)

        await until("every replica is in sync", 120, whole)

    def _broker(self, node: int) -> KafkaServer:
        return next(broker for broker in self._brokers if broker.node == node)

    @asynccontextmanager
    async def _linked(self) -> AsyncIterator[KafkaLink]:
        link = KafkaLink(Address.parse(self.url))
        try:
            yield link
        finally:
            await link.close()


BUSES: Final[dict[str, Callable[[Path, int], BusServer]]] = {
    "redis": lambda home, _: RedisBusServer(home),
    "kafka": KafkaBusServer,
    "kafka-cluster": KafkaClusterBusServer,
}
"""By name: what makes the server of a home, with so many doors."""


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
