"""The roles that the page on security gives: the pipeline runs as the writer, and each can do no more than it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import psycopg
import pytest
from psycopg import errors, sql

from market_data_store import StoreClient, schema
from tests.integration.store_samples import bars, events, flush, tick
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer

PAGE: Final = (Path(__file__).parents[2] / "docs" / "security.md").read_text("utf-8")
ROLES: Final = ("mdp_migrator", "mdp_writer", "mdp_reader")
TABLES: Final = ("bars_ohlcv", "signals", "job_runs", "stream_claims", "stream_positions", "stream_outbox")
STREAM: Final = TABLES[3:]


class Market(NamedTuple):
    """A database with the roles of the page: the URL of each."""

    migrator: str
    writer: str
    reader: str


def script(name: str) -> str:
    """A file of SQL as the page has it."""
    found = re.search(rf"^cat > {re.escape(name)} <<'END'\n(.*?)^END$", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def market(postgres: PostgresServer) -> Iterator[Market]:
    postgres.create_database("market")
    with psycopg.connect(postgres.url("market"), autocommit=True) as admin:
        admin.execute(script("roles.sql").encode())
    passwords = dict(re.findall(r"CREATE ROLE (\w+) LOGIN PASSWORD '([^']+)'", script("roles.sql")))
    urls = [f"postgresql://{role}:{passwords[role]}@127.0.0.1:{postgres.port}/market" for role in ROLES]
    try:
        schema.upgrade(urls[0])
        with psycopg.connect(urls[0], autocommit=True) as migrator:
            migrator.execute(script("grants.sql").encode())
        yield Market(*urls)
    finally:
        postgres.drop_database("market")
        for role in ROLES:
            postgres.execute(f"DROP ROLE {role}")


def mdp(url: str, redis: str, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    given = {"DATABASE_URL": url, "REDIS_URI": redis, "MDP_TELEMETRY__METRICS_PORT": "0"}
    return subprocess.run(
        [sys.executable, "-m", "market_data_pipeline.cli.app", *args],
        env={**os.environ, **given, "MDP_HOME": str(folder / "home")},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_pipeline_runs_as_the_writer_and_the_reader_sees_its_bars(market: Market, tmp_path: Path) -> None:
    with RedisServer("6.2") as redis:
        ran = mdp(
            market.writer, redis.uri, tmp_path, "stream", "run", "--duration", "1s", "--window", "200ms"
        )
        assert ran.returncode == 0, ran.stderr
        read = mdp(
            market.reader, redis.uri, tmp_path, "store", "bars", "--interval", "200ms", "--format", "csv"
        )
        assert read.returncode == 0, read.stderr
        assert len(read.stdout.splitlines()) > 1
        refused = mdp(market.reader, redis.uri, tmp_path, "stream", "micro-batch", "--until-idle", "100ms")
    assert refused.returncode == 1
    assert "permission denied" in refused.stderr
    assert "grant it to the user" in refused.stderr


async def test_the_writer_amends_publishes_and_forgets(market: Market) -> None:
    """What a short run does not come to: late events, the outbox, lanes that ended, and another owner."""
    async with await StoreClient.connect(market.writer) as store:
        claim = await store.claim("roles", "g", 0, "me")
        await store.commit(flush(claim, 1, bars(3)))
        committed = await store.commit(flush(claim, 2, bars(1), events(tick(1.0, 500.0, seq=7))))
        assert committed.amended == 1
        await store.begin_repartition({"roles": "mark"})
        await store.finish_repartition({"roles": "mark"}, {"roles": []}, {"roles": ""})
        assert (await store.claim("roles", "g", 0, "you")).epoch > claim.epoch
        assert await store.jobs() is not None


def refused(url: str, statement: sql.SQL | sql.Composed) -> bool:
    """Whether the server says no for want of a right, and for no other reason."""
    with psycopg.connect(url) as connection:
        try:
            connection.execute(statement)
        except errors.InsufficientPrivilege:
            return True
        finally:
            connection.rollback()
    return False


@pytest.mark.parametrize("table", TABLES)
def test_the_reader_reads_and_writes_nothing(market: Market, table: str) -> None:
    name = sql.Identifier(table)
    assert not refused(market.reader, sql.SQL("SELECT * FROM {} LIMIT 1").format(name))
    for text in ("INSERT INTO {} DEFAULT VALUES", "DELETE FROM {}", "TRUNCATE {}", "DROP TABLE {}"):
        assert refused(market.reader, sql.SQL(text).format(name)), text
    column = "owner" if table == "stream_claims" else "topic" if table in STREAM else "id"
    column = {"bars_ohlcv": "close", "signals": "value", "job_runs": "host"}.get(table, column)
    update = sql.SQL("UPDATE {} SET {} = {}").format(name, *[sql.Identifier(column)] * 2)
    assert refused(market.reader, update)
    assert not refused(market.writer, update)


@pytest.mark.parametrize("table", TABLES)
def test_the_writer_changes_no_table_and_removes_no_result(market: Market, table: str) -> None:
    name = sql.Identifier(table)
    for text in ("TRUNCATE {}", "DROP TABLE {}", "ALTER TABLE {} ADD COLUMN more int"):
        assert refused(market.writer, sql.SQL(text).format(name)), text
    assert refused(market.writer, sql.SQL("DELETE FROM {}").format(name)) == (table not in STREAM)


def test_neither_makes_tables_nor_migrates(market: Market) -> None:
    for url in (market.writer, market.reader):
        assert refused(url, sql.SQL("CREATE TABLE own (n int)"))
        assert refused(url, sql.SQL("UPDATE alembic_version SET version_num = '0001'"))


def test_nobody_else_gets_in(market: Market, postgres: PostgresServer) -> None:
    postgres.execute("CREATE ROLE mdp_stranger LOGIN PASSWORD 'p'")
    url = f"postgresql://mdp_stranger:p@127.0.0.1:{postgres.port}/market"
    try:
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(url)
    finally:
        postgres.execute("DROP ROLE mdp_stranger")
