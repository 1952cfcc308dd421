"""A cluster whose nodes die, fail over and hand slots to each other while it is used."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import NoReturn

import pytest

from market_data_core.errors import BusUnavailable
from market_data_pipeline.streaming.bus import Record
from market_data_pipeline.streaming.redis_bus import RedisBus
from market_data_pipeline.streaming.redis_topics import members_key
from tests.conformance.members import PATIENCE, GroupRecord, Link, Member, until
from tests.servers.redis import RedisServer
from tests.servers.redis_cluster import RedisCluster, running, told

PARTITIONS = 4
_numbers = itertools.count(1)


class Direct(Link):
    def __init__(self, bus: RedisBus) -> None:
        super().__init__()
        self.bus = bus

    def heal(self) -> None:
        raise NotImplementedError

    def _cut(self) -> None:
        raise NotImplementedError


class Load:
    """Numbered records in every partition of a topic, each published until the bus has taken it."""

    def __init__(self, bus: RedisBus, topic: str) -> None:
        self.bus = bus
        self.topic = topic
        self.published = dict.fromkeys(range(PARTITIONS), 0)
        self.outages = 0

    async def publish(self, count: int, partitions: range | list[int] = range(PARTITIONS)) -> None:
        deadline = time.monotonic() + PATIENCE
        for partition in partitions:
            start = self.published[partition]
            records = [Record("K", str(v).encode()) for v in range(start, start + count)]
            while True:
                try:
                    await self.bus.publish(self.topic, records, partition=partition)
                except BusUnavailable:
                    if time.monotonic() > deadline:
                        raise
                    self.outages += 1
                    await asyncio.sleep(0.02)
                else:
                    break
            self.published[partition] += count

    def complete(self, member: Member) -> Callable[[], bool]:
        """Whether ``member`` has got everything."""
        return lambda: all(
            set(member.values(p)) == {str(v).encode() for v in range(self.published[p])}
            for p in range(PARTITIONS)
        )

    def in_order(self, member: Member) -> None:
        """Nothing came before what was published before it, whatever was sent twice."""
        for p in range(PARTITIONS):
            firsts = list(dict.fromkeys(map(int, member.values(p))))
            assert firsts == list(range(self.published[p]))


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    options = ["--cluster-require-full-coverage", "no"]
    yield from running(lambda: RedisCluster(3, replicas=1, options=options))


@pytest.fixture
async def bus(cluster: RedisCluster) -> AsyncIterator[RedisBus]:
    async with RedisBus(cluster.uri) as bus:
        yield bus


@pytest.fixture
async def load(cluster: RedisCluster) -> AsyncIterator[Load]:
    """By a producer of its own, which finds out for itself what became of the cluster."""
    topic = f"c{next(_numbers)}"
    async with RedisBus(cluster.uri) as bus:
        await bus.ensure_topic(topic, PARTITIONS)
        yield Load(bus, topic)


@pytest.fixture
async def member(bus: RedisBus, load: Load) -> AsyncIterator[Member]:
    consumer = bus.consumer(load.topic, "g", "a", max_records=10, lease_ms=20_000)
    # It goes on after what it acknowledged, as a consumer with a store does.
    member = Member("a", consumer, Direct(bus), GroupRecord(), {})
    await load.publish(30)
    await until([member], load.complete(member), ack=True)
    yield member
    await member.close()


async def forever(call: Callable[[], Awaitable[None]]) -> NoReturn:
    """Until it fails."""
    while True:
        await call()


def masters(cluster: RedisCluster) -> list[RedisServer]:
    return [node for node in cluster.nodes if told(node, "INFO", "replication")["role"] == "master"]


def alone(cluster: RedisCluster) -> list[RedisServer]:
    """The masters that no replica stands in for."""
    return [node for node in masters(cluster) if told(node, "INFO", "replication")["connected_slaves"] == "0"]


async def test_slots_that_move_take_their_readers_and_writers_with_them(
    cluster: RedisCluster, load: Load, member: Member
) -> None:
    loop = asyncio.get_running_loop()

    async def use() -> None:
        await load.publish(25)
        await until([member], load.complete(member), ack=True)

    def between() -> None:
        asyncio.run_coroutine_threadsafe(use(), loop).result(PATIENCE)

    for partition in (0, 1):
        stream = f"{load.topic}.{partition}"
        home = cluster.owner(stream)
        target = next(node for node in masters(cluster) if node is not home)
        # While the slot is open, its old node sends away what it has not, and the new one takes it if asked to.
        await asyncio.to_thread(cluster.move, stream, target, between=between)
        assert cluster.owner(stream) is target
        await use()
    load.in_order(member)
    assert load.outages == member.outages == 0
    assert member.lost == []
    (status,) = await load.bus.status([load.topic])
    assert [(part.pending, part.lag) for part in status.groups[0].partitions] == [(0, 0)] * PARTITIONS


async def test_a_master_that_dies_is_followed_by_its_replica_without_loss(
    cluster: RedisCluster, load: Load, member: Member
) -> None:
    cluster.settled()
    (master,) = (
        node for node in masters(cluster) if told(node, "INFO", "replication")["connected_slaves"] == "1"
    )
    mine = [p for p in range(PARTITIONS) if cluster.owner(f"{load.topic}.{p}") is master]
    if not mine:
        await asyncio.to_thread(cluster.move, f"{load.topic}.0", master)
        mine = [0]
    await load.publish(10)
    await until([member], load.complete(member), ack=True)
    plain = load.bus
    async with RedisBus(f"{cluster.uri}?sync_replicas=1") as safe:
        # On return the replica has them, so nothing of this goes with the master.
        load.bus = safe
        await load.publish(200, mine)
        before = load.outages
        assert before == 0
        master.kill9()
        load.bus = plain
        await load.publish(50, mine)
        assert load.outages > before
        await until([member], load.complete(member), ack=True)
        assert cluster.owner(f"{load.topic}.{mine[0]}") is not master
    async with RedisBus(f"{cluster.uri}?sync_replicas=1") as safe:
        # Who took over has no replica of its own: what it took may go with it, and that is told.
        with pytest.raises(BusUnavailable, match="0 of 1 replicas"):
            await safe.publish(load.topic, [Record("K", b"0")], partition=mine[0])
    load.in_order(member)
    master.start()
    cluster.settled()


async def test_a_cluster_that_is_down_is_an_outage_and_goes_on_afterwards(
    cluster: RedisCluster, load: Load, member: Member
) -> None:
    alone = next(
        node for node in masters(cluster) if told(node, "INFO", "replication")["connected_slaves"] == "0"
    )
    await asyncio.to_thread(cluster.move, f"{load.topic}.2", alone)
    await load.publish(10)
    dead = [node for node in cluster.nodes if node is not alone]
    for node in dead:
        node.kill9()
    # The last one serves nothing as soon as it knows that it is the last one.
    with pytest.raises(BusUnavailable, match="cannot take commands now"):
        await forever(lambda: load.bus.publish(load.topic, [Record("K", b"0")], partition=2))
    await until([member], lambda: member.outages > 3)
    for node in dead:
        node.start()
    await load.publish(20)
    await until([member], load.complete(member), ack=True)
    load.in_order(member)
    cluster.settled()


async def test_a_node_that_is_away_costs_no_lease_on_the_others(
    cluster: RedisCluster, bus: RedisBus, load: Load
) -> None:
    consumer = bus.consumer(load.topic, "g", "a", max_records=10, lease_ms=5000)
    member = Member("a", consumer, Direct(bus), GroupRecord(), {})
    await load.publish(5)
    await until([member], load.complete(member), ack=True)
    # What asks the nodes takes a while on a busy machine, in which the member must go on renewing.
    victim, other = await asyncio.to_thread(alone, cluster)
    # Also what tells the members of each other is away.
    for key, node in (
        (members_key(load.topic, "g"), victim),
        (f"{load.topic}.0", victim),
        (f"{load.topic}.1", other),
    ):
        await asyncio.to_thread(cluster.move, key, node)
    owners = [await asyncio.to_thread(cluster.owner, f"{load.topic}.{p}") for p in range(PARTITIONS)]
    away = {p for p, owner in enumerate(owners) if owner is victim}
    await load.publish(5)
    await until([member], load.complete(member), ack=True)
    await until([member], lambda: member.owned == set(range(PARTITIONS)))
    member.lost.clear()
    victim.kill9()
    await until([member], lambda: set(member.lost) >= away)
    # Longer than any lease would last that is not renewed.
    began = time.monotonic()
    await until([member], lambda: time.monotonic() - began > 6)
    assert set(member.lost) == away
    assert member.owned == set(range(PARTITIONS)) - away
    victim.start()
    await load.publish(5)
    await until([member], load.complete(member), ack=True)
    assert set(member.lost) == away
    await member.close()
    cluster.settled()
