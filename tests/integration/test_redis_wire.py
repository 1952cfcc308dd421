"""Callers that share a connection to Redis, and what becomes of each when others are many, fail, or give up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.exceptions import ResponseError

from market_data_core.errors import BusUnavailable
from market_data_pipeline.streaming import together
from market_data_pipeline.streaming.bus import Record
from market_data_pipeline.streaming.redis_bus import RedisBus
from market_data_pipeline.streaming.redis_wire import RedisServer, Wire, pack
from tests.servers import redis as servers
from tests.servers.wire import Wire as Cable

PARTITIONS = 8


@pytest.fixture(scope="module")
def redis() -> Iterator[servers.RedisServer]:
    yield from servers.running("6.2")


@pytest.fixture
async def cable(redis: servers.RedisServer) -> AsyncIterator[Cable]:
    redis.client().flushall()
    async with Cable(redis.port) as opened:
        yield opened


@pytest.fixture
async def wire(cable: Cable) -> AsyncIterator[Wire]:
    server = RedisServer(f"redis://127.0.0.1:{cable.port}/0")
    wire = server.wire()
    yield wire
    await wire.close()
    await server.close()


async def asked(wire: Wire, count: int) -> list[asyncio.Task[list[object]]]:
    """So many who push their number, all of them waiting."""
    tasks = [asyncio.create_task(wire.exchange(pack("RPUSH", "l", n), pack("ECHO", n))) for n in range(count)]
    await asyncio.sleep(0)
    return tasks


async def test_each_of_many_gets_its_own_replies_in_the_order_of_asking(
    wire: Wire, redis: servers.RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "MOST_BYTES", 1000)
    replies = await asyncio.gather(*await asked(wire, 200))
    assert replies == [[n + 1, str(n).encode()] for n in range(200)]
    assert redis.client().lrange("l", 0, -1) == [str(n).encode() for n in range(200)]


async def test_a_refusal_is_told_to_the_one_who_asked(wire: Wire) -> None:
    good, bad, also = await asyncio.gather(
        wire.exchange(pack("ECHO", "a")), wire.exchange(pack("NONSENSE")), wire.exchange(pack("ECHO", "b"))
    )
    assert (good, also) == ([b"a"], [b"b"])
    assert isinstance(bad[0], ResponseError)


async def test_one_who_gives_up_takes_nothing_from_the_others(wire: Wire, cable: Cable) -> None:
    await wire.exchange(pack("PING"))
    cable.silence()
    tasks = await asked(wire, 1)
    await asyncio.sleep(0.05)
    tasks += await asked(wire, 3)
    tasks[0].cancel()  # on its way
    tasks[2].cancel()  # still waiting
    await asyncio.sleep(0.05)
    cable.mend()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert isinstance(found[2], asyncio.CancelledError)
    assert [found[1], found[3]] == [[2, b"0"], [3, b"2"]]


async def test_a_cut_fails_those_on_their_way_and_the_next_are_asked_anew(wire: Wire, cable: Cable) -> None:
    await wire.exchange(pack("PING"))
    cable.silence()
    lost = await asked(wire, 2)
    await asyncio.sleep(0.05)
    later = await asked(wire, 2)
    cable.cut()
    cable.mend()
    found = await asyncio.gather(*lost, return_exceptions=True)
    assert all(isinstance(failure, BusUnavailable) for failure in found)
    assert [reply[1] for reply in await asyncio.gather(*later)] == [b"0", b"1"]


async def test_closing_fails_whoever_waits(wire: Wire, cable: Cable) -> None:
    await wire.exchange(pack("PING"))
    cable.silence()
    tasks = await asked(wire, 2)
    await asyncio.sleep(0.05)
    tasks += await asked(wire, 2)
    closing = asyncio.create_task(wire.close())
    await asyncio.sleep(0)
    tasks += await asked(wire, 1)
    await closing
    async with asyncio.timeout(1):
        found = await asyncio.gather(*tasks[:4], return_exceptions=True)
    assert all(isinstance(failure, BusUnavailable) for failure in found)
    cable.mend()
    assert await wire.exchange(pack("ECHO", "again")) == [b"again"]
    await asyncio.gather(tasks[4], return_exceptions=True)


async def test_records_of_all_partitions_are_one_exchange(redis: servers.RedisServer) -> None:
    """A server that syncs its file for each answers once for all of them."""
    client = redis.client()
    client.flushall()
    records = [Record(f"S{n}", b"x") for n in range(100)]
    async with RedisBus(redis.uri) as bus:
        await bus.ensure_topic("t", PARTITIONS)
        await bus.publish("t", records)
        before = client.info("stats")["total_reads_processed"]
        await bus.publish("t", records)
        after = client.info("stats")["total_reads_processed"]
    assert sum(client.xlen(f"t.{p}") for p in range(PARTITIONS)) == 200
    assert all(client.xlen(f"t.{p}") for p in range(PARTITIONS))
    assert after - before <= 2  # the other one asked for these figures
