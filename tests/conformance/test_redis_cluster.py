"""The Redis driver keeps the contract on a cluster, where partitions lie on different nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis.asyncio as aioredis

from market_data_pipeline.streaming.partitions import stream_of
from market_data_pipeline.streaming.redis_bus import RedisBus
from market_data_pipeline.streaming.redis_url import Address
from tests.conformance.delivery import DeliverySuite
from tests.conformance.harness import Capabilities, Harness
from tests.conformance.members import Link
from tests.conformance.ownership import OwnershipSuite
from tests.conformance.retention import RetentionSuite
from tests.conformance.static_members import StaticMembersSuite
from tests.servers.redis_cluster import RedisCluster, running
from tests.servers.wire import Wire


class ClusterLink(Link):
    """A wire to each node. The nodes tell their own ports, which stand for those of the wires."""

    def __init__(self, cluster: RedisCluster, wires: list[Wire]) -> None:
        super().__init__()
        ports = {node.port: wire.port for node, wire in zip(cluster.nodes, wires, strict=True)}

        def remap(address: Address) -> Address:
            return address[0], ports[address[1]]

        self.bus = RedisBus(cluster.url(list(ports.values())), remap=remap)
        self._wires = wires

    def _cut(self) -> None:
        for wire in self._wires:
            wire.cut(refuse=True)

    def heal(self) -> None:
        for wire in self._wires:
            wire.mend()


class ClusterHarness(Harness):
    can = Capabilities(steals=True, restarts=True)

    def __init__(self, cluster: RedisCluster) -> None:
        super().__init__()
        self.cluster = cluster
        self.links: list[ClusterLink] = []
        self._killed = 0

    async def link(self) -> Link:
        wires = [await self._stack.enter_async_context(Wire(node.port)) for node in self.cluster.nodes]
        link = ClusterLink(self.cluster, wires)
        await self._stack.enter_async_context(link.bus)
        self.links.append(link)
        return link

    async def remove(self, topic: str) -> None:
        for key in (topic, "mdp:topics"):
            async with aioredis.Redis(port=self.cluster.owner(key).port, protocol=2) as client:
                await (client.delete(key) if key == topic else client.hdel(key, topic))

    async def steal(self, topic: str, group: str, partition: int, count: int) -> int:
        stream = stream_of(topic, partition, await self.bus.partitions(topic))
        async with aioredis.Redis(port=self.cluster.owner(stream).port, protocol=2) as client:
            found: Any = await client.xreadgroup(group, "zombie", {stream: ">"}, count=count)
        return sum(len(entries) for _, entries in found)

    async def restart(self) -> None:
        """One node at a time, another one each time."""
        for link in self.links:
            link.cuts += 1
        node = self.cluster.nodes[self._killed % len(self.cluster.nodes)]
        self._killed += 1
        node.kill9()
        node.start()


@pytest.fixture(scope="session")
def cluster() -> Iterator[RedisCluster]:
    # Nodes of a busy machine take each other for dead after less, and then all of them stop.
    options = ["--cluster-require-full-coverage", "no"]
    yield from running(lambda: RedisCluster(3, options=options, node_timeout_ms=2000))


@pytest.fixture
async def harness(cluster: RedisCluster) -> AsyncIterator[Harness]:
    # The test before may have killed nodes; those that live take one for dead some time after it is back.
    await asyncio.to_thread(cluster.settled)
    async with ClusterHarness(cluster) as harness:
        yield harness


class TestDelivery(DeliverySuite): ...


class TestOwnership(OwnershipSuite): ...


class TestRetention(RetentionSuite): ...


class TestStaticMembers(StaticMembersSuite): ...
