"""The server goes away, the wire is cut or silent: nothing is lost, nothing done twice, and no restart."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

import psycopg
import pytest

from market_data_core.errors import SchemaOutOfDate, StoreError, StoreNotReady, StoreUnavailable
from market_data_core.protocols import Committed
from market_data_store import StoreClient, schema
from tests.integration.conftest import missing
from tests.integration.store_samples import T0, S, bars, events, exact, flush, tick
from tests.servers import ServerMissing, free_port
from tests.servers.postgres import PASSWORD, PostgresServer
from tests.servers.redis import RedisServer
from tests.servers.wire import Wire

T = TypeVar("T")


@pytest.fixture
async def wire(postgres: PostgresServer) -> AsyncIterator[Wire]:
    """A proxy before the server."""
    async with Wire(postgres.port) as proxy:
        yield proxy


def through(url: str, postgres: PostgresServer, wire: Wire) -> str:
    return url.replace(f":{postgres.port}/", f":{wire.port}/")


async def eventually(call: Callable[[], Awaitable[T]], seconds: float = 30.0) -> T:
    """``call`` again until the store is there, as a worker does."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return await call()
        except StoreUnavailable:
            if time.monotonic() > deadline:
                raise


@pytest.mark.parametrize("lose", ["request", "reply"])
async def test_a_commit_whose_outcome_is_unknown_is_applied_once(
    postgres: PostgresServer, database: str, wire: Wire, lose: Literal["request", "reply"]
) -> None:
    """The wire is cut at COMMIT, before the server has it or after; the flush given again is right both times."""
    async with await StoreClient.connect(through(database, postgres, wire), pool_size=2) as store:
        claim = await store.claim("t", "g", 0, "me")
        await store.commit(flush(claim, 1, bars(3)))
        late = events(tick(1.0, 500.0, seq=7), tick(601.0, 1.0, seq=8))
        second = flush(claim, 2, bars(1, start=T0 + 300 * S), late)
        wire.trip_at(b"COMMIT", lose)
        with pytest.raises(StoreUnavailable):
            await store.commit(second)
        assert wire.tripped == 1
        committed = postgres.execute(
            "SELECT flush_number FROM stream_claims", database=database.rpartition("/")[2]
        )
        assert committed == [(2 if lose == "reply" else 1,)]

        done: Committed = await eventually(lambda: store.commit(second))
        assert (done.amended, len(done.bars)) == (1, 3)
        stored = await store.bars(interval="1m")
        assert stored.n_events.tolist() == [4, 3, 3, 3, 1]
        assert stored.revision.tolist() == [2, 1, 1, 1, 1]
        outbox = (await store.claim("t", "g", 0, "next")).outbox
        assert [r.id for r in outbox][1:] == [r.id for r in done.outbox], "one frame, not two"


async def test_any_statement_of_a_commit_may_be_cut(
    postgres: PostgresServer, database: str, wire: Wire
) -> None:
    async with await StoreClient.connect(
        through(database, postgres, wire), pool_size=1, prepare=False
    ) as store:
        claim = await store.claim("t", "g", 0, "me")
        words = (b"BEGIN", b"stream_claims", b"bars_ohlcv", b"INSERT INTO stream_outbox", b"stream_positions")
        for number, word in enumerate(words, 1):
            one = flush(claim, number, bars(number), events(tick(1.0, 50.0, seq=number)))
            wire.trip_at(word, "request" if number % 2 else "reply")
            with pytest.raises(StoreUnavailable):
                await store.commit(one)
            await eventually(lambda one=one: store.commit(one))  # type: ignore[misc]
        assert wire.tripped == len(words)
        stored = await store.bars(interval="1m")
        assert stored.n_events.tolist() == [3 + len(words), 3, 3, 3, 3]


async def test_killed_sessions_are_replaced_all_at_once(postgres: PostgresServer, database: str) -> None:
    """Four pooled sessions die: one call fails, and the next finds a living one."""
    async with await StoreClient.connect(database, pool_size=4) as store:
        claim = await store.claim("t", "g", 0, "me")
        await _fill_pool(store, 4)
        postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mdp'"
        )
        with pytest.raises(StoreUnavailable):
            await store.commit(flush(claim, 1, bars(3)))
        for _ in range(4):
            await store.ping()
        await store.commit(flush(claim, 1, bars(3)))
        assert exact(await store.bars(interval="1m")) == exact(bars(3))


async def _fill_pool(store: StoreClient, size: int) -> None:
    """Hold ``size`` sessions at once, so that the pool has as many."""
    together = asyncio.Barrier(size)

    async def hold() -> None:
        async with store.session():
            await together.wait()

    await asyncio.gather(*(hold() for _ in range(size)))


async def test_a_killed_server_comes_back_with_everything_committed() -> None:
    with PostgresServer("18", durable=True) as server:
        schema.upgrade(server.url())
        async with await StoreClient.connect(server.url(), pool_size=3) as store:
            claim = await store.claim("t", "g", 0, "me")
            for number in range(1, 6):
                await store.commit(flush(claim, number, bars(number)))
            server.kill()
            with pytest.raises(
                StoreUnavailable, match=r"cannot use PostgreSQL at postgresql://postgres:\*\*\*@"
            ) as gone:
                await store.commit(flush(claim, 6, bars(6)))
            assert PASSWORD not in str(gone.value)
            assert gone.value.retriable
            await asyncio.to_thread(server.start)
            await eventually(lambda: store.commit(flush(claim, 6, bars(6))))
            assert exact(await store.bars(interval="1m")) == exact(bars(6))
            assert claim.epoch == 1


async def test_a_silent_wire_is_hung_up_on(postgres: PostgresServer, database: str, wire: Wire) -> None:
    url = through(database, postgres, wire)
    async with await StoreClient.connect(url, pool_size=1, timeout_s=0.5) as store:
        claim = await store.claim("t", "g", 0, "me")
        wire.silence()
        with pytest.raises(StoreUnavailable):
            await store.commit(flush(claim, 1, bars(2)))
        wire.mend()
        await eventually(lambda: store.commit(flush(claim, 1, bars(2))))
        assert exact(await store.bars(interval="1m")) == exact(bars(2))


async def test_a_cut_wire_tells_why_and_heals(postgres: PostgresServer, database: str, wire: Wire) -> None:
    async with await StoreClient.connect(through(database, postgres, wire), wait_s=0.5) as store:
        await store.ping()
        wire.cut(refuse=True)
        with pytest.raises(StoreUnavailable):
            await store.ping()
        with pytest.raises(StoreUnavailable, match="closed the connection unexpectedly"):
            await store.ping()
        wire.mend()
        assert (await eventually(store.ping)).startswith("18")


async def test_connecting_says_what_is_wrong(postgres: PostgresServer, database: str) -> None:
    nobody = f"postgresql://postgres:{PASSWORD}@127.0.0.1:{free_port()}/x"
    cases: list[tuple[str, type[StoreError], str]] = [
        (nobody, StoreUnavailable, "Connection refused.*check that it runs"),
        (database.replace(PASSWORD, "wr0ng"), StoreError, "refuses the login.*correct the user or password"),
        (postgres.url("no_such_base"), StoreError, "no such database.*create it"),
        (postgres.url(), SchemaOutOfDate, "has no schema of mdp yet: run `mdp store upgrade`"),
        ("postgresql://127.0.0.1:notaport/x", StoreError, "not a database URL"),
    ]
    for url, kind, said in cases:
        with pytest.raises(StoreError, match=said) as refused:
            await StoreClient.connect(url)
        assert type(refused.value) is kind
        assert PASSWORD not in str(refused.value)
        assert "wr0ng" not in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.fixture
def old_schema(postgres: PostgresServer) -> Iterator[str]:
    """A database that misses the last migration."""
    url = postgres.create_database("old_schema")
    schema.upgrade(url, "0003")
    yield url
    postgres.drop_database("old_schema")


async def test_a_worker_does_not_start_on_an_old_schema(old_schema: str) -> None:
    with pytest.raises(SchemaOutOfDate, match="is at 0003, this mdp needs 0006: run `mdp store upgrade`"):
        await StoreClient.connect(old_schema)
    async with await StoreClient.connect(old_schema, check_schema=False) as store:
        with pytest.raises(SchemaOutOfDate, match="stream_claims"):
            await store.claim("t", "g", 0, "me")


async def test_a_full_pool_waits_for_its_turn(database: str) -> None:
    async with await StoreClient.connect(database, pool_size=1) as store:
        assert len(await asyncio.gather(*(store.ping() for _ in range(20)))) == 20


async def test_a_session_that_fails_writes_nothing(store: StoreClient) -> None:
    async def fail_halfway() -> None:
        async with store.session() as connection:
            await connection.execute("DELETE FROM alembic_version")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_halfway()
    with pytest.raises(StoreError, match="refused a command"):
        async with store.session() as connection:
            await connection.execute("SELECT 1 / 0")
    async with store.session() as connection:
        cursor: psycopg.AsyncCursor[tuple[int]] = await connection.execute(
            "SELECT count(*) FROM alembic_version"
        )
        assert await cursor.fetchone() == (1,)


@pytest.fixture
def own() -> Iterator[PostgresServer]:
    """A server of this test's, with the schema."""
    try:
        server = PostgresServer("18")
    except ServerMissing as reason:
        missing(reason)
    with server:
        schema.upgrade(server.url())
        yield server


def test_a_worker_waits_for_a_server_that_is_starting(own: PostgresServer, tmp_path: Path) -> None:
    """As after a crash of the machine, when everything is started at the same time."""
    own.stop()
    let = own.start_slowly()
    try:
        with pytest.raises(StoreNotReady, match="takes nobody in yet"):
            asyncio.run(connected_when_up(own))
        with RedisServer("6.2") as redis:
            command = [sys.executable, "-m", "market_data_pipeline.cli.app"]
            given = {"REDIS_URI": redis.uri, "DATABASE_URL": own.url(), "MDP_TELEMETRY__METRICS_PORT": "0"}
            with subprocess.Popen(
                [*command, "stream", "micro-batch", "--until-idle", "100ms"],
                env={**os.environ, **given},
                cwd=tmp_path,
                stderr=subprocess.PIPE,
                text=True,
            ) as worker:
                assert worker.stderr is not None
                for line in worker.stderr:
                    if "a server is still starting" in line:
                        break
                else:
                    raise AssertionError(f"it ended with {worker.wait()} and did not wait")
                assert PASSWORD not in line
                let()
                said = worker.stderr.read()
                assert worker.wait(60) == 0, said
    finally:
        let()


async def connected_when_up(server: PostgresServer) -> None:
    """Raises StoreNotReady once the server listens."""
    deadline = time.monotonic() + 30
    while True:
        try:
            async with await StoreClient.connect(server.url()):
                return
        except StoreNotReady:
            raise
        except StoreUnavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.02)
