"""The wire, the server and its users going wrong."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from typing import Literal

import pytest
from redis.asyncio import Redis

from market_data_core.errors import BusError, BusUnavailable
from market_data_pipeline.streaming import redis_wire
from market_data_pipeline.streaming.bus import Record
from market_data_pipeline.streaming.redis_bus import RedisBus
from market_data_pipeline.streaming.redis_consumer import RedisConsumer
from market_data_pipeline.streaming.redis_topics import lease_key
from tests.conformance.members import PATIENCE, GroupRecord, Link, Member, until
from tests.servers import free_port
from tests.servers.redis import VERSIONS, RedisServer, running
from tests.servers.wire import Wire

PASSWORD = "s3cret-of-tests"  # noqa: S105
_numbers = itertools.count(1)


class Wired(Link):
    def __init__(self, server: RedisServer, wire: Wire) -> None:
        super().__init__()
        self.bus: RedisBus = RedisBus(server.url(wire.port))
        self.wire = wire

    def heal(self) -> None:
        self.wire.mend()

    def _cut(self) -> None:
        self.wire.cut(refuse=True)


@pytest.fixture(scope="module", params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    yield from running(request.param, password=PASSWORD)


@pytest.fixture
async def link(server: RedisServer) -> AsyncIterator[Wired]:
    async with Wire(server.port) as wire:
        link = Wired(server, wire)
        async with link.bus:
            yield link


@pytest.fixture
async def topic(link: Wired) -> str:
    topic = f"o{next(_numbers)}"
    await link.bus.ensure_topic(topic, 1)
    return topic


def member(link: Wired, topic: str, *, lease_ms: int = 20_000) -> Member:
    consumer = link.bus.consumer(topic, "g", "a", max_records=10, lease_ms=lease_ms)
    return Member("a", consumer, link, GroupRecord(), None)


def records(values: range) -> list[Record]:
    return [Record("K", str(v).encode()) for v in values]


def texts(values: range) -> list[bytes]:
    return [str(v).encode() for v in values]


@pytest.mark.parametrize("lose", ["request", "reply"])
@pytest.mark.parametrize("command", [b"XREADGROUP", b"XACK", b"XRANGE", b"XAUTOCLAIM", b"XINFO", b"XGROUP"])
async def test_a_wire_cut_in_any_command_leaves_no_gap_and_nothing_pending(
    link: Wired, topic: str, command: bytes, lose: Literal["request", "reply"]
) -> None:
    one = member(link, topic)
    await link.bus.publish(topic, records(range(35)))
    await until([one], lambda: len(one.values()) >= 10, ack=True)
    link.wire.trip_at(command, lose)
    for start in range(35, 95, 12):
        await link.bus.publish(topic, records(range(start, start + 12)))
        await one.step()
        await one.ack_all()
    if command in (b"XAUTOCLAIM", b"XGROUP"):
        # These are sent when a partition is sought; the group has to be made to go on after it, too.
        end = await link.bus.end_offset(topic, 0)
        assert end is not None
        await until([one], lambda: len(one.values()) == 95)
        link.wire.trip_at(command, lose)
        await one.seek(0, end + (1 << 70))
        await until([one], lambda: bool(link.wire.tripped) and not one._unsought)
        await one.seek(0, end + 1)
    await until([one], lambda: len(one.values()) == 95 and bool(link.wire.tripped), ack=True)
    assert one.values() == texts(range(95))
    assert one.lost == []
    await one.ack_all()
    (status,) = await link.bus.status([topic])
    assert (status.groups[0].partitions[0].pending, status.groups[0].partitions[0].lag) == (0, 0)
    await one.close()


@pytest.mark.parametrize("lose", ["request", "reply"])
async def test_publishing_over_a_cut_wire_is_done_or_told(
    link: Wired, topic: str, lose: Literal["request", "reply"]
) -> None:
    await link.bus.publish(topic, records(range(3)))
    link.wire.trip_at(b"XADD", lose)
    with pytest.raises(BusUnavailable, match="cannot be reached"):
        await link.bus.publish(topic, records(range(3, 6)))
    stored = [r.value for r in await link.bus.read(topic, 0, None, 10)]
    assert stored == texts(range(3 if lose == "request" else 6))
    await link.bus.publish(topic, records(range(6, 7)))


async def test_a_silent_server_is_given_up_in_time_and_used_again(
    link: Wired, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_wire, "TIMEOUT", 0.3)
    one = member(link, topic, lease_ms=1000)
    await until([one], lambda: 0 in one.idle)
    link.wire.silence()
    began = time.monotonic()
    with pytest.raises(BusUnavailable, match="did not answer in time"):
        await link.bus.publish(topic, records(range(1)))
    # The lease ends by this side's clock, although nothing comes over the wire.
    await until([one], lambda: one.lost == [0])
    assert time.monotonic() - began < PATIENCE / 2
    link.heal()
    await until([one], lambda: one.owned == {0})
    await link.bus.publish(topic, records(range(1, 4)))
    await until([one], lambda: one.values()[-3:] == texts(range(1, 4)))
    await one.close()


async def test_what_was_read_before_the_lease_ended_is_not_delivered_after_it(
    server: RedisServer, link: Wired, topic: str
) -> None:
    one = member(link, topic, lease_ms=800)
    await until([one], lambda: 0 in one.idle)
    assert isinstance(one.consumer, RedisConsumer)
    while not one.consumer._rounds:
        await one.step()
    (reading,) = [under_way.task for under_way in one.consumer._rounds.values()]
    async with RedisBus(server.uri) as other:
        await other.publish(topic, records(range(5)))
        await asyncio.wait({reading})
        # Its records are here. While they are checked against the stream, the wire falls silent.
        link.wire.silence()
        step = asyncio.create_task(one.step(timeout=3))
        lease = lease_key(topic, "g")
        async with Redis(port=server.port, password=PASSWORD, protocol=2) as client:
            while await client.exists(lease):
                continue
        link.heal()
        poll = await step
    assert (poll.deliveries, poll.lost) == ([], [0])
    await until([one], lambda: one.values() == texts(range(5)))
    await one.close()


async def test_a_stopped_server_comes_back_to_the_same_objects(
    server: RedisServer, link: Wired, topic: str
) -> None:
    one = member(link, topic)
    await link.bus.publish(topic, records(range(5)))
    await until([one], lambda: len(one.values()) == 5)
    server.kill9()
    with pytest.raises(BusUnavailable):
        await link.bus.publish(topic, records(range(5, 6)))
    await until([one], lambda: one.outages > 2)
    server.start()
    await link.bus.publish(topic, records(range(5, 9)))
    await until([one], lambda: len(one.values()) == 9, ack=True)
    assert one.values() == texts(range(9))
    await one.close()


async def test_closing_while_the_server_is_away_ends_quietly(link: Wired, topic: str) -> None:
    one = member(link, topic, lease_ms=1000)
    await until([one], lambda: 0 in one.idle)
    link.cut()
    await one.close()


async def test_a_wrong_password_is_no_outage_and_is_not_told(server: RedisServer) -> None:
    for user in (":wr0ng-password@", "somebody:wr0ng-password@", ""):
        async with RedisBus(f"redis://{user}127.0.0.1:{server.port}/0") as bus:
            with pytest.raises(BusError, match="user or password") as caught:
                await bus.ping()
            with pytest.raises(BusError, match="user or password") as again:
                await bus.ensure_topic("t", 1)
        for error in (caught.value, again.value):
            assert not isinstance(error, BusUnavailable)
            assert "wr0ng" not in str(error)


async def test_a_missing_permission_names_the_fix(server: RedisServer) -> None:
    with server.client() as client:
        client.acl_setuser(
            "reader",
            enabled=True,
            passwords=["+pw"],
            keys=["*"],
            categories=["+@read"],
            commands=["+ping", "+info"],
        )
    async with RedisBus(f"redis://reader:pw@127.0.0.1:{server.port}/0") as bus:
        with pytest.raises(BusError, match="ACL SETUSER") as caught:
            await bus.ensure_topic("t", 1)
        assert not caught.value.retriable


async def test_a_key_that_is_no_stream_names_the_fix(server: RedisServer, link: Wired) -> None:
    with server.client() as client:
        client.set("text", "x")
        client.hset("mdp:topics", "text", "1")
    for call in (link.bus.publish("text", records(range(1))), link.bus.read("text", 0, None, 1)):
        with pytest.raises(BusError, match="is not a stream"):
            await call


async def test_a_server_without_memory_left_is_an_outage(
    server: RedisServer, link: Wired, topic: str
) -> None:
    with server.client() as client:
        client.config_set("maxmemory", "1")
        try:
            with pytest.raises(BusUnavailable, match="cannot take commands now"):
                await link.bus.publish(topic, records(range(1)))
        finally:
            client.config_set("maxmemory", "0")
    await link.bus.publish(topic, records(range(1)))


async def test_nobody_listens() -> None:
    async with RedisBus(f"redis://:{PASSWORD}@127.0.0.1:{free_port()}/0") as bus:
        for call in (bus.ping(), bus.ensure_topic("t", 1), bus.partitions("t"), bus.status()):
            with pytest.raises(BusUnavailable, match="cannot be reached") as caught:
                await call
            assert PASSWORD not in str(caught.value)
            assert caught.value.retriable


async def test_the_server_tells_its_durability(link: Wired) -> None:
    facts = await link.bus.ping()
    assert facts["durability"] == "append-only file, fsync always"
    assert PASSWORD not in "".join(facts.values())


async def test_asking_the_server_how_it_is_opens_one_connection(server: RedisServer, link: Wired) -> None:
    """A worker asks every few seconds, and what a closed connection leaves is many kilobytes of garbage."""
    await link.bus.ping()
    with server.client() as client:
        before = client.info("stats")["total_connections_received"]
        for _ in range(10):
            await link.bus.ping()
        assert client.info("stats")["total_connections_received"] == before
