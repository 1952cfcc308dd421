"""What an operator sees with redis-cli, and what of it stays true whatever happens."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from market_data_pipeline.streaming.bus import Record
from market_data_pipeline.streaming.redis_bus import RedisBus
from tests.conformance.members import PATIENCE, GroupRecord, Link, Member, until
from tests.servers.redis import VERSIONS, RedisServer, running


class Direct(Link):
    def __init__(self, bus: RedisBus) -> None:
        super().__init__()
        self.bus = bus

    def heal(self) -> None:
        raise NotImplementedError

    def _cut(self) -> None:
        raise NotImplementedError


@pytest.fixture(scope="module", params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    yield from running(request.param)


@pytest.fixture
def cli(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as client:
        client.flushall()
        yield client


@pytest.fixture
async def bus(server: RedisServer, cli: redis.Redis) -> AsyncIterator[RedisBus]:
    async with RedisBus(server.uri) as bus:
        yield bus


def member(bus: RedisBus, topic: str, name: str, *, max_records: int = 100, lease_ms: int = 20_000) -> Member:
    consumer = bus.consumer(topic, "g", name, max_records=max_records, lease_ms=lease_ms)
    return Member(name, consumer, Direct(bus), GroupRecord(), None)


def records(values: range) -> list[Record]:
    return [Record("K", str(v).encode()) for v in values]


def pending(cli: redis.Redis, stream: str) -> dict[str, int]:
    found: Any = cli.xpending(stream, "g")
    return {c["name"].decode(): c["pending"] for c in found["consumers"]}


def consumers(cli: redis.Redis, stream: str) -> list[str]:
    found: Any = cli.xinfo_consumers(stream, "g")
    return sorted(c["name"].decode() for c in found)


async def test_xpending_names_the_owner_of_what_it_works_on(bus: RedisBus, cli: redis.Redis) -> None:
    await bus.ensure_topic("t", 1)
    await bus.publish("t", records(range(100)))
    first, second = member(bus, "t", "first", max_records=10), member(bus, "t", "second")
    await until([first], lambda: len(first.values()) >= 40)
    await first.consumer.ack(0, first.offsets[0][9])
    await first.close()
    assert pending(cli, "t")["first"] >= 30
    await until([second], lambda: len(second.values()) == 100)
    assert pending(cli, "t") == {"second": 90}
    await second.ack_all()
    assert pending(cli, "t") == {}
    group: Any = cli.xinfo_groups("t")
    assert group[0]["pending"] == 0
    assert group[0]["last-delivered-id"].decode() == bus.format_offset(second.offsets[0][-1])
    await second.close()


async def test_members_that_are_gone_do_not_stay_in_the_group(bus: RedisBus, cli: redis.Redis) -> None:
    await bus.ensure_topic("t", 1)
    await bus.publish("t", records(range(10)))
    first = member(bus, "t", "first")
    await until([first], lambda: len(first.values()) == 10)
    await first.close()
    # It left something pending, so the group remembers it.
    assert consumers(cli, "t") == ["first"]
    cli.xgroup_createconsumer("t", "g", "never-seen-again")
    last = member(bus, "t", "last", lease_ms=1000)
    await until([last], lambda: len(last.values()) == 10)
    # When they have not been seen for longer than a lease, who seeks next takes them out.
    deadline = time.monotonic() + PATIENCE
    while consumers(cli, "t") != ["last"]:
        assert time.monotonic() < deadline
        await last.step()
        await until([last], lambda: last.owned == {0})
        await last.seek(0, None)
    await until([last], lambda: 0 in last.idle)
    await last.ack_all()
    await last.close()
    assert consumers(cli, "t") == []


async def test_every_key_of_a_partition_is_in_the_slot_of_its_stream(bus: RedisBus, cli: redis.Redis) -> None:
    await bus.ensure_topic("mdp.events", 4)
    await bus.publish("mdp.events", [Record(f"S{i}", b"x") for i in range(50)])
    one = member(bus, "mdp.events", "one")
    await until([one], lambda: sum(map(len, one.got.values())) == 50)
    for partition in one.owned:
        await one.consumer.ack(partition, one.offsets[partition][-1], keep_from=one.offsets[partition][0])
    keys = {key.decode() for key in cli.scan_iter()}
    for partition in range(4):
        stream = f"mdp.events.{partition}"
        mine = {stream, f"{{{stream}}}:lease:g", f"{{{stream}}}:keep"}
        assert mine <= keys
        assert {key_slot(key.encode()) for key in mine} == {key_slot(stream.encode())}
        keys -= mine
    assert keys == {"mdp:topics", "{mdp.events}:members:g"}
    await one.close()
    assert {key.decode() for key in cli.scan_iter("*lease*")} == set()


async def test_a_group_moved_back_or_destroyed_delivers_no_record_twice_and_misses_none(
    bus: RedisBus, cli: redis.Redis
) -> None:
    await bus.ensure_topic("t", 1)
    await bus.publish("t", records(range(50)))
    one = member(bus, "t", "one")
    await until([one], lambda: len(one.values()) == 50)
    cli.xgroup_setid("t", "g", "0")
    await bus.publish("t", records(range(50, 60)))
    await until([one], lambda: len(one.values()) == 60)
    cli.xgroup_destroy("t", "g")
    await bus.publish("t", records(range(60, 70)))
    await until([one], lambda: len(one.values()) == 70)
    cli.xgroup_setid("t", "g", "$")
    await bus.publish("t", records(range(70, 75)))
    cli.xgroup_setid("t", "g", "$")
    await until([one], lambda: len(one.values()) == 75)
    assert one.values() == [str(v).encode() for v in range(75)]
    await one.ack_all()
    assert pending(cli, "t") == {}
    await one.close()


async def test_a_stream_that_was_removed_comes_back_and_is_read(bus: RedisBus, cli: redis.Redis) -> None:
    await bus.ensure_topic("t", 2)
    one = member(bus, "t", "one")
    await until([one], lambda: one.owned == {0, 1})
    await bus.publish("t", records(range(5)), partition=1)
    await until([one], lambda: len(one.values(1)) == 5)
    cli.delete("t.1")
    await until([one], lambda: 1 in one.idle)
    await bus.publish("t", records(range(5, 9)), partition=1)
    await until([one], lambda: len(one.values(1)) == 9)
    assert one.lost == []
    await one.close()


async def test_all_data_lost_is_a_new_beginning_and_not_an_end(bus: RedisBus, cli: redis.Redis) -> None:
    await bus.ensure_topic("t", 2)
    one = member(bus, "t", "one", lease_ms=1000)
    await until([one], lambda: one.owned == {0, 1})
    await bus.publish("t", records(range(5)), partition=1)
    await until([one], lambda: len(one.values(1)) == 5)
    cli.flushall()
    await until([one], lambda: sorted(one.lost) == [0, 1] and one.owned == {0, 1})
    await bus.publish("t", records(range(5, 9)), partition=1)
    await until([one], lambda: len(one.values(1)) == 9)
    assert cli.hgetall("mdp:topics") == {b"t": b"2"}
    await one.close()


async def test_a_position_past_the_end_of_what_the_server_lost_still_sees_what_is_new(
    bus: RedisBus, cli: redis.Redis
) -> None:
    await bus.ensure_topic("t", 1)
    cli.xadd("t", {"v": "future", "k": "K"}, id="99999999999999-7")
    position = await bus.end_offset("t", 0)
    assert position is not None
    # The server comes back without that record; its clock is behind the record's.
    cli.flushall()
    await bus.publish("t", records(range(1)))
    one = member(bus, "t", "one")
    one.seeking = False
    await until([one], lambda: one.owned == {0})
    await one.seek(0, position + 1)
    await until([one], lambda: 0 in one.idle)
    await bus.publish("t", records(range(1, 4)))
    await until([one], lambda: len(one.values()) == 3)
    assert one.values() == [b"1", b"2", b"3"]
    await one.close()


async def test_a_short_lag_is_counted_also_where_the_server_does_not(bus: RedisBus, cli: redis.Redis) -> None:
    await bus.ensure_topic("t", 1)
    await bus.publish("t", records(range(2000)))
    offsets = [r.offset for r in await bus.read("t", 0, None, 30_000)]
    cli.xgroup_create("t", "g", "0")
    # Redis 7 does not know the lag of a group that was set into the middle, or past a deleted entry.
    cli.xgroup_setid("t", "g", bus.format_offset(offsets[1099]))
    await bus.delete("t", 0, offsets[1500:1510])
    (status,) = await bus.status(["t"])
    assert status.groups[0].partitions[0].lag == 2000 - 1100 - 10
    assert status.records == 1990


async def test_a_long_lag_is_estimated_where_the_server_does_not_count(
    bus: RedisBus, cli: redis.Redis
) -> None:
    """To count a backlog each few seconds would take more of the server than to read it."""
    await bus.ensure_topic("t", 1)
    evenly = [f"{ms}-0" for ms in range(10_000, 15_000)]
    at_once = [f"15000-{number}" for number in range(1, 2001)]
    with cli.pipeline(transaction=False) as pipe:
        for entry in evenly:
            pipe.xadd("t", {"v": "x"}, id=entry)
        pipe.execute()
        cli.xgroup_create("t", "g", "0")

        async def lag(position: str) -> int:
            cli.xgroup_setid("t", "g", position)
            (status,) = await bus.status(["t"])
            return status.groups[0].partitions[0].lag

        assert await lag("5-0") == 5000, "it was handed none of them"
        cli.xdel("t", "14500-0")  # so that Redis 7 does not know either
        assert await lag("11999-0") == pytest.approx(2999, abs=2)
        assert await lag("14999-0") == 0
        for entry in at_once:
            pipe.xadd("t", {"v": "x"}, id=entry)
        pipe.execute()
        assert 1000 <= await lag("14999-0") < 2000, "no fewer than were counted"
    assert await lag("20000-0") == 0
