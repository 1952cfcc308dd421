"""The Redis driver keeps the contract, on the oldest and on a newer server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis.asyncio import Redis

from market_data_pipeline.streaming.partitions import stream_of
from market_data_pipeline.streaming.redis_bus import RedisBus
from tests.conformance.delivery import DeliverySuite
from tests.conformance.harness import Capabilities, Harness
from tests.conformance.members import Link
from tests.conformance.ownership import OwnershipSuite
from tests.conformance.retention import RetentionSuite
from tests.conformance.static_members import StaticMembersSuite
from tests.servers.redis import VERSIONS, RedisServer, running
from tests.servers.wire import Wire


class RedisLink(Link):
    def __init__(self, server: RedisServer, wire: Wire) -> None:
        super().__init__()
        self.bus = RedisBus(server.url(wire.port))
        self._wire = wire

    def _cut(self) -> None:
        self._wire.cut(refuse=True)

    def heal(self) -> None:
        self._wire.mend()


class RedisHarness(Harness):
    can = Capabilities(steals=True, restarts=True)

    def __init__(self, server: RedisServer) -> None:
        super().__init__()
        self.server = server
        self.links: list[RedisLink] = []

    async def link(self) -> Link:
        link = RedisLink(self.server, await self._stack.enter_async_context(Wire(self.server.port)))
        await self._stack.enter_async_context(link.bus)
        self.links.append(link)
        return link

    async def remove(self, topic: str) -> None:
        async with Redis(port=self.server.port, protocol=2) as client:
            await client.delete(topic)
            await client.hdel("mdp:topics", topic)

    async def steal(self, topic: str, group: str, partition: int, count: int) -> int:
        stream = stream_of(topic, partition, await self.bus.partitions(topic))
        async with Redis(port=self.server.port, protocol=2) as client:
            found: Any = await client.xreadgroup(group, "zombie", {stream: ">"}, count=count)
        return sum(len(entries) for _, entries in found)

    async def restart(self) -> None:
        for link in self.links:
            link.cuts += 1
        self.server.kill9()
        self.server.start()


@pytest.fixture(scope="session", params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    yield from running(request.param)


@pytest.fixture
async def harness(server: RedisServer) -> AsyncIterator[Harness]:
    async with RedisHarness(server) as harness:
        yield harness


class TestDelivery(DeliverySuite): ...


class TestOwnership(OwnershipSuite): ...


class TestRetention(RetentionSuite): ...


class TestStaticMembers(StaticMembersSuite): ...
