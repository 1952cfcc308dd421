"""Producers while a real Redis dies and comes back, and while they die themselves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import pytest

from market_data_core.batch import EventBatch
from market_data_core.codecs import Codec, EventDecoder
from market_data_core.partitioner import partition_of
from market_data_pipeline.producers.pacing import EventTimePace
from market_data_pipeline.producers.runner import ProducerRunner, RunnerOptions
from market_data_pipeline.producers.spool import Spool
from market_data_pipeline.producers.synthetic import SyntheticProvider, SyntheticSpec
from market_data_pipeline.streaming.redis_bus import RedisBus
from tests.integration.conftest import missing
from tests.servers import ServerMissing
from tests.servers.redis import RedisServer
from tests.servers.wire import Wire

TOPIC = "mdp.events"
SYMBOLS = tuple(f"S{i}" for i in range(10))

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """Redis as the embedded one is run: what it acknowledged is on the disk. With the usual ``everysec`` it may
    write up to two seconds later than it answers, and a ``kill -9`` loses that."""
    try:
        server = RedisServer("6.2", options=["--appendfsync", "always"])
    except ServerMissing as reason:
        missing(reason)
    with server:
        yield server


async def arrived(bus: RedisBus) -> dict[str, list[int]]:
    """The numbers of each symbol's events in the order of the topic, a copy where one came twice."""
    out: dict[str, list[int]] = {}
    partitions = await bus.partitions(TOPIC)
    for partition in range(partitions):
        start = None
        while records := await bus.read(TOPIC, partition, start, 500):
            start = records[-1].offset + 1
            decoded = EventDecoder().decode([r.value for r in records])
            assert decoded.poison == []
            for event in decoded.batch.events():
                assert partition_of(event.symbol, partitions) == partition
                out.setdefault(event.symbol, []).append(event.seq)
    return out


def first_times(numbers: list[int]) -> list[int]:
    """Without copies: what a reader that dedupes sees."""
    return list(dict.fromkeys(numbers))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - counts are no events
            await asyncio.sleep(0.005)


async def further(runner: ProducerRunner, count: str, by: int) -> None:
    """Waits until a count has gone up by so much."""
    enough = getattr(runner.counts, count) + by
    await until(lambda: getattr(runner.counts, count) >= enough)


def whole(got: dict[str, list[int]], taken: int) -> None:
    """Every event that was taken has arrived, and each symbol's in order."""
    want = {symbol: list(range(len(range(turn, taken, len(SYMBOLS))))) for turn, symbol in enumerate(SYMBOLS)}
    for symbol, numbers in want.items():
        found = first_times(got[symbol])
        assert found == numbers, (symbol, sorted(set(numbers) - set(found)), len(numbers))


@pytest.mark.parametrize("codec", ["frame", "json"])
async def test_redis_killed_twice_loses_nothing(server: RedisServer, tmp_path: Path, codec: Codec) -> None:
    spool = Spool.open(tmp_path, "synthetic", 1 << 26)
    spec = SyntheticSpec(SYMBOLS, 2000.0, None, 1)
    options = RunnerOptions(partitions=3, codec=codec)
    async with RedisBus(server.uri) as bus:
        pace = EventTimePace(1.0, "ingest_ts")
        runner = ProducerRunner(bus, SyntheticProvider(spec), TOPIC, options, pace=pace, spool=spool)
        task = asyncio.create_task(runner.run())
        for _ in range(2):
            await further(runner, "published", 1000)
            server.kill9()
            await further(runner, "spooled", 1000)
            server.start()
        await further(runner, "published", 1000)
        await until(lambda: runner.counts.spool_events == 0)
        runner.stop()
        counts = await asyncio.wait_for(task, 60)
        got = await arrived(bus)
    spool.close()
    whole(got, counts.taken)
    assert (counts.published, counts.unpublished, counts.dropped) == (counts.taken, 0, 0)
    assert not list(tmp_path.glob("*.sqlite")), "an empty spool leaves no file"


async def test_a_cut_wire_loses_nothing(server: RedisServer, tmp_path: Path) -> None:
    """Also when the cut swallows the answer, so that the producer cannot know what has arrived."""
    spool = Spool.open(tmp_path, "synthetic", 1 << 26)
    spec = SyntheticSpec(SYMBOLS, 5000.0, None, 1)
    async with Wire(server.port) as wire, RedisBus(server.url(wire.port)) as bus:
        pace = EventTimePace(1.0, "ingest_ts")
        options = RunnerOptions(partitions=2)
        runner = ProducerRunner(bus, SyntheticProvider(spec), TOPIC, options, pace=pace, spool=spool)
        task = asyncio.create_task(runner.run())
        loses: list[Literal["reply", "request"]] = ["reply", "request"]
        for times, lose in enumerate(loses, 1):
            await further(runner, "published", 1000)
            wire.trip_at(b"XADD", lose)
            await until(lambda times=times: wire.tripped == times)  # type: ignore[misc]
        await further(runner, "published", 1000)
        wire.cut(refuse=True)
        await until(lambda: runner.counts.spool_events > 1000)
        wire.mend()
        await further(runner, "published", 1000)
        await until(lambda: runner.counts.spool_events == 0)
        runner.stop()
        counts = await asyncio.wait_for(task, 60)
        got = await arrived(bus)
    spool.close()
    whole(got, counts.taken)
    assert counts.published == counts.taken
    assert counts.retries >= 3


class Mdp:
    """The command line in a process of its own."""

    def __init__(self, home: Path, uri: str) -> None:
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("MDP_", "REDIS_", "DATABASE_"))}
        self.home = home
        self._env = keep | {"MDP_HOME": str(home), "REDIS_URI": uri}

    def start(self, *args: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "market_data_pipeline.cli.app", "stream", "produce", *args, "--json"]
        return subprocess.Popen(
            command, env=self._env, cwd=self.home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def spooled(self) -> int:
        """Events in the spool of the producer ``synthetic``."""
        path = self.home / "spool" / f"synthetic.{TOPIC}.sqlite"
        if not path.exists():
            return 0
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            found: int = db.execute("SELECT coalesce(sum(events), 0) FROM parcels").fetchone()[0]
            return found


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


SYNTHETIC = ("--provider", "synthetic", "--symbols", "A,B", "--rate", "5000", "--seed", "1")


async def test_a_killed_producer_leaves_a_spool_that_the_next_start_publishes(
    server: RedisServer, tmp_path: Path
) -> None:
    mdp = Mdp(tmp_path, server.uri)
    with server.client() as redis:
        producer = mdp.start(*SYNTHETIC, "--start-time", "2025-01-01")
        wait_for(lambda: redis.xlen(TOPIC) > 5, producer)
    server.kill9()
    wait_for(lambda: mdp.spooled() > 5000, producer)
    producer.kill()
    producer.communicate()
    left = mdp.spooled()
    assert left > 5000
    server.start()
    again = mdp.start(*SYNTHETIC, "--start-time", "2025-01-02", "--limit", "1000")
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    told = json.loads(out)
    assert told["published"] == left + 1000
    assert (told["spool_events"], mdp.spooled()) == (0, 0)
    async with RedisBus(server.uri) as bus:
        records = await bus.read(TOPIC, 0, None, 100_000)
    batch = EventDecoder().decode([r.value for r in records]).batch
    day = batch.src_ts // (86_400 * 10**9)
    assert (day[1:] >= day[:-1]).all(), "what was left goes first"
    for symbol in ("A", "B"):
        mine = batch.take(batch.code == [s.symbol for s in batch.series].index(symbol))
        before = mine.take(mine.src_ts < mine.src_ts.max() // (86_400 * 10**9) * (86_400 * 10**9))
        numbers = first_times(before.seq.tolist())
        assert numbers == list(range(len(numbers))), (
            "none is missing from the first run, and they are in order"
        )


def test_ctrl_c_publishes_what_was_taken(server: RedisServer, tmp_path: Path) -> None:
    mdp = Mdp(tmp_path, server.uri)
    with server.client() as redis:
        producer = mdp.start(*SYNTHETIC)
        wait_for(lambda: redis.xlen(TOPIC) > 20, producer)
        producer.send_signal(signal.SIGINT)
        out, err = producer.communicate(timeout=30)
        assert producer.returncode == 130, err
        told = json.loads(out)
        assert told["interrupted"] is True
        assert told["taken"] == told["published"] > 0
        assert told["records"] == redis.xlen(TOPIC)
    assert "Traceback" not in err
    assert mdp.spooled() == 0


def test_ctrl_c_while_the_bus_is_away_keeps_what_was_taken(server: RedisServer, tmp_path: Path) -> None:
    mdp = Mdp(tmp_path, server.uri)
    with server.client() as redis:
        producer = mdp.start(*SYNTHETIC)
        wait_for(lambda: redis.xlen(TOPIC) > 5, producer)
    server.kill9()
    wait_for(lambda: mdp.spooled() > 1000, producer)
    producer.send_signal(signal.SIGINT)
    out, err = producer.communicate(timeout=30)
    assert producer.returncode == 130, err
    told = json.loads(out)
    assert told["published"] + told["spool_events"] == told["taken"]
    assert told["unpublished"] == 0
    assert told["spool_events"] == mdp.spooled() > 0


def test_low_rates_have_low_delay(server: RedisServer, tmp_path: Path) -> None:
    """From an event's time to its place on the bus: by far less than the pause between two events."""
    mdp = Mdp(tmp_path, server.uri)
    producer = mdp.start("--provider", "synthetic", "--symbols", "A", "--rate", "20", "--duration", "1500ms")
    out, err = producer.communicate(timeout=60)
    assert producer.returncode == 0, err
    assert json.loads(out)["published"] == 30
    with server.client() as redis:
        found = redis.xrange(TOPIC)
    delays = []
    for ident, fields in found:
        batch: EventBatch = EventDecoder().decode([fields[b"v"]]).batch
        delays += (int(ident.split(b"-")[0]) - batch.src_ts // 10**6).tolist()
    assert len(delays) == 30
    assert sorted(delays)[15] < 40, delays
