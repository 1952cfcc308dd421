"""The schema: up and down on data, the same as declared, and safe to upgrade from several processes."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.script import ScriptDirectory

from market_data_core.errors import SchemaOutOfDate, StoreUnavailable, UsageError
from market_data_core.events import Signal
from market_data_store import StoreClient, schema
from market_data_store.schema_version import HEAD
from market_data_store.timescale import Policies
from tests.integration.store_samples import T0, bars, exact, flush
from tests.servers import free_port
from tests.servers.postgres import PostgresServer

TABLES = {"bars_ohlcv", "job_runs", "signals", "stream_claims", "stream_positions", "stream_outbox"}
VIEWS = {"bars_5m", "bars_1h"}


def execute(url: str, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements outside of a transaction; the rows of the last."""
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        for statement in statements:
            cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def relations(url: str, kind: str) -> set[str]:
    """Tables (``BASE TABLE``) or views (``VIEW``) of the public schema, less the extension's."""
    rows = execute(
        url,
        "SELECT table_name FROM information_schema.tables"
        f" WHERE table_schema = 'public' AND table_type = '{kind}' AND table_name <> 'alembic_version'",
    )
    return {name for (name,) in rows}


async def fill(url: str) -> None:
    async with await StoreClient.connect(url, pool_size=1, prepare=False) as store:
        claim = await store.claim("t", "g", 0, "me")
        await store.commit(flush(claim, 1, bars(100, symbols=["IBM", "SPY"])))
        await store.write_signals([Signal("sim", "SPY", T0, "cross", 1.0, 0.5)])


async def test_up_makes_what_is_declared_and_down_leaves_nothing(empty_pg_url: str) -> None:
    schema.upgrade(empty_pg_url)
    assert relations(empty_pg_url, "BASE TABLE") == TABLES
    assert relations(empty_pg_url, "VIEW") == VIEWS
    assert schema.check(empty_pg_url) == []
    assert schema.current(empty_pg_url).up_to_date
    schema.require_current(empty_pg_url)

    await fill(empty_pg_url)
    schema.upgrade(empty_pg_url)
    assert schema.check(empty_pg_url) == [], "with data, and upgraded again"

    schema.downgrade(empty_pg_url, "base")
    assert relations(empty_pg_url, "BASE TABLE") == set()
    assert relations(empty_pg_url, "VIEW") == set()
    assert schema.current(empty_pg_url).revision is None

    schema.upgrade(empty_pg_url)
    assert schema.check(empty_pg_url) == []
    await fill(empty_pg_url)


async def test_each_step_down_and_up_keeps_the_other_tables_data(empty_pg_url: str) -> None:
    schema.upgrade(empty_pg_url)
    await fill(empty_pg_url)
    async with await StoreClient.connect(empty_pg_url, pool_size=1, prepare=False) as store:
        before = exact(await store.bars(interval="1m"))

    schema.downgrade(empty_pg_url, "-1")
    assert execute(empty_pg_url, "SELECT owner FROM stream_claims") == [("me",)], "without its topic's id"
    schema.downgrade(empty_pg_url, "-1")
    assert execute(empty_pg_url, "SELECT name FROM signals") == [("cross",)], "without its writer"
    schema.downgrade(empty_pg_url, "0003")
    assert relations(empty_pg_url, "BASE TABLE") == {"bars_ohlcv", "job_runs", "signals"}
    assert execute(empty_pg_url, "SELECT count(*) FROM signals") == [(1,)]
    schema.downgrade(empty_pg_url, "0002")
    schema.downgrade(empty_pg_url, "0001")
    assert relations(empty_pg_url, "BASE TABLE") == {"bars_ohlcv"}
    schema.upgrade(empty_pg_url, "0003")
    assert schema.current(empty_pg_url).revision == "0003"
    schema.upgrade(empty_pg_url)
    assert schema.check(empty_pg_url) == []

    async with await StoreClient.connect(empty_pg_url, pool_size=1, prepare=False) as store:
        assert exact(await store.bars(interval="1m")) == before
        assert await store.signals() == []


def test_alembic_by_itself_finds_nothing_to_do(pg_url: str) -> None:
    """``alembic check`` as its own command runs it, through env.py."""
    command.check(schema.alembic_config(pg_url))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("ALTER TABLE signals ADD COLUMN extra text", "remove_column"),
        ("ALTER TABLE signals DROP COLUMN score", "add_column"),
        ("DROP INDEX ix_job_runs_started_at", "add_index"),
        ("DROP TABLE stream_outbox", "add_table"),
        ("ALTER TABLE job_runs ALTER COLUMN pid TYPE bigint", "modify_type"),
        ("ALTER TABLE job_runs ALTER COLUMN host DROP NOT NULL", "modify_nullable"),
        ("ALTER TABLE signals ALTER COLUMN meta DROP DEFAULT", "modify_default"),
        ("DROP VIEW bars_1h", "view bars_1h is missing"),
    ],
)
def test_a_difference_to_what_is_declared_is_found(database: str, damage: str, said: str) -> None:
    execute(database, damage)
    problems = schema.check(database)
    assert len([p for p in problems if said in p]) == 1, problems


def test_other_tables_of_the_database_are_no_difference(database: str) -> None:
    execute(database, "CREATE TABLE theirs (id int PRIMARY KEY)", "CREATE VIEW them AS SELECT * FROM theirs")
    assert schema.check(database) == []


def test_head_is_the_newest_script() -> None:
    script = ScriptDirectory.from_config(schema.alembic_config())
    assert script.get_heads() == [HEAD]
    assert [s.revision for s in script.walk_revisions()] == ["0006", "0005", "0004", "0003", "0002", "0001"]


def test_a_database_behind_or_ahead_is_told_apart(database: str) -> None:
    execute(database, "UPDATE alembic_version SET version_num = '0003'")
    behind = "is at 0003, this mdp needs 0006: run `mdp store upgrade`"
    with pytest.raises(SchemaOutOfDate, match=behind):
        schema.require_current(database)
    (problem,) = schema.check(database)
    assert problem.endswith(behind)
    execute(database, "UPDATE alembic_version SET version_num = '0099'")
    with pytest.raises(SchemaOutOfDate, match=r"newer than this mdp .*: update mdp"):
        schema.require_current(database)
    with pytest.raises(SchemaOutOfDate, match="newer"):
        schema.upgrade(database)
    execute(database, "DROP TABLE alembic_version")
    with pytest.raises(SchemaOutOfDate, match="no schema of mdp yet"):
        schema.require_current(database)


def test_a_wrong_revision_names_the_right_ones(database: str) -> None:
    with pytest.raises(UsageError, match="use head, base or one of 0001, 0002, 0003, 0004, 0005, 0006"):
        schema.upgrade(database, "12")


def test_a_server_that_is_away_is_named_without_its_password() -> None:
    with pytest.raises(StoreUnavailable, match=r"postgresql\+psycopg://me:\*\*\*@127.0.0.1") as gone:
        schema.upgrade(f"postgresql+psycopg://me:hidden@127.0.0.1:{free_port()}/x")
    assert "hidden" not in str(gone.value)


def test_a_migration_that_fails_leaves_the_schema_as_it_was(postgres: PostgresServer) -> None:
    url = postgres.create_database("half_way")
    execute(url, "CREATE TABLE stream_positions (mine int)")
    with pytest.raises(Exception, match='relation "stream_positions" already exists'):
        schema.upgrade(url)
    assert schema.current(url).revision is None
    assert relations(url, "BASE TABLE") == {"stream_positions"}
    execute(url, "DROP TABLE stream_positions")
    schema.upgrade(url)
    assert schema.check(url) == []
    postgres.drop_database("half_way")


def test_upgrades_at_the_same_time_do_not_collide(postgres: PostgresServer) -> None:
    """Two processes and two threads of a third one, on an empty database."""
    url = postgres.create_database("crowd")
    script = f"from market_data_store import schema; schema.upgrade({url!r})"
    others = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(schema.upgrade, [url] * 2))
    assert [(p.communicate(timeout=60)[1], p.returncode) for p in others] == [(b"", 0)] * 2
    assert {extension.version for extension in found} == {None}
    assert schema.check(url) == []
    postgres.drop_database("crowd")


async def test_a_database_that_gains_timescale_later_is_converted(timescale_url: str) -> None:
    """Alembic alone makes plain tables; with data in them and plain views beside, as on plain PostgreSQL."""
    command.upgrade(schema.alembic_config(timescale_url), "head")
    await fill(timescale_url)
    execute(
        timescale_url,
        "CREATE VIEW bars_5m AS SELECT * FROM bars_ohlcv",
        "CREATE VIEW bars_1h AS SELECT * FROM bars_5m",
    )
    assert schema.check(timescale_url) == [
        "table bars_ohlcv is no hypertable",
        "table signals is no hypertable",
        "view bars_5m is no continuous aggregate",
        "view bars_1h is no continuous aggregate",
    ]
    schema.upgrade(timescale_url, policies=Policies())
    assert schema.check(timescale_url) == []
    async with await StoreClient.connect(timescale_url, pool_size=1, prepare=False) as store:
        assert exact(await store.bars(interval="1m")) == exact(bars(100, symbols=["IBM", "SPY"]))
    assert execute(timescale_url, "SELECT count(*) FROM bars_5m") == [(42,)]
