"""``mdp doctor`` on real servers: each thing that can be wrong with them, and what is said of it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

from market_data_core.clock import SystemClock
from market_data_pipeline.cli import app
from market_data_pipeline.doctor.database import database as of_database
from market_data_pipeline.doctor.redis_servers import redis_servers
from market_data_pipeline.streaming.bus import Bus, Consumer, Record
from market_data_pipeline.streaming.kafka_bus import KafkaBus
from market_data_pipeline.streaming.redis_bus import RedisBus
from market_data_store import schema
from market_data_store.schema_version import HEAD
from tests.conformance.members import LONG_LEASE_MS, PATIENCE
from tests.servers.kafka import KafkaServer
from tests.servers.kafka import running as running_kafka
from tests.servers.postgres import PASSWORD
from tests.servers.redis import RedisServer, running

AWAY = f"postgresql://u:{PASSWORD}@127.0.0.1:1/d"
GROUP = "mdp-consumers"


class Row(NamedTuple):
    """One finding, as it is printed."""

    state: str
    found: str
    fix: str


class Report(dict[str, Row]):
    """The findings by what was looked at, and the exit code."""

    code: int


Doctor = Callable[..., Report]


@pytest.fixture
def doctor(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Doctor]:
    """Run the command on the servers given; by default on a Redis and a database that are away."""
    for name in [name for name in os.environ if name.startswith("MDP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MDP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MDP_TELEMETRY__METRICS_PORT", "0")
    monkeypatch.chdir(tmp_path)
    handlers, level = logging.root.handlers[:], logging.root.level

    def run(redis: str = "redis://127.0.0.1:1", postgres: str = AWAY, **settings: str) -> Report:
        given = {"REDIS_URI": redis, "DATABASE_URL": postgres, **settings}
        with monkeypatch.context() as patch:
            for name, value in given.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                app.main(["doctor", "--json"])
        out, err = capfd.readouterr()
        assert PASSWORD not in out + err
        rows = [json.loads(line) for line in out.splitlines()]
        report = Report({row["check"]: Row(row["state"], row["found"], row["fix"]) for row in rows})
        report.code = int(ended.value.code or 0)
        assert all(row.fix for row in report.values() if row.state != "ok")
        assert report.code == any(row.state == "fail" for row in report.values())
        return report

    yield run
    logging.root.handlers[:], logging.root.level = handlers, level


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    yield from running("6.2", password=PASSWORD)


@pytest.fixture
def empty(redis: RedisServer) -> RedisServer:
    """The server with nothing in it."""
    with redis.client() as client:
        client.flushall()
    return redis


# --- servers -----------------------------------------------------------------------------------------------------


def test_servers_that_are_well(doctor: Doctor, empty: RedisServer, database: str) -> None:
    report = doctor(empty.uri, database)
    wrong = {check for check, row in report.items() if row.state == "fail"}
    assert wrong == {"postgres durability"}, "the servers of the tests are without fsync"
    assert report["redis durability"].found == "append-only file, fsync always"
    assert report["schema"].found == f"at {HEAD}"


def test_redis_that_is_down_is_one_line_and_the_rest_is_looked_at(doctor: Doctor, database: str) -> None:
    report = doctor(postgres=database)
    assert (report.code, report["redis"].state) == (1, "fail")
    assert "REDIS_URI" in report["redis"].fix
    assert report["postgres"].state == "ok"
    assert not [check for check in report if check.startswith("group")]


def test_postgres_that_is_down(doctor: Doctor, empty: RedisServer) -> None:
    report = doctor(empty.uri)
    assert (report["postgres"].state, report["postgres"].fix) == ("fail", "check that it runs")
    assert report["redis"].state == "ok"


def test_a_password_that_is_wrong(doctor: Doctor, empty: RedisServer, database: str) -> None:
    report = doctor(empty.uri.replace(PASSWORD, "other"), database.replace(PASSWORD, "other"))
    assert [report[check].state for check in ("redis", "postgres")] == ["fail", "fail"]
    assert "user or password" in report["redis"].found + report["redis"].fix
    assert "DATABASE_URL" in report["postgres"].fix


@pytest.mark.parametrize(
    ("options", "check", "found", "fix"),
    [
        (("--appendonly", "no"), "redis durability", "appendonly is off", "CONFIG SET appendonly yes"),
        (("--appendfsync", "no"), "redis durability", "appendfsync is no", "always or everysec"),
        (("--maxmemory-policy", "allkeys-lru"), "redis memory", "allkeys-lru", "noeviction"),
        (("--maxmemory", "500kb"), "redis memory", "of 1 MB", "raise maxmemory"),
    ],
)
def test_redis_with_settings_that_lose_events(
    doctor: Doctor, options: tuple[str, str], check: str, found: str, fix: str
) -> None:
    with RedisServer("6.2", options=options) as server:
        row = doctor(server.uri)[check]
    assert row.state == ("warn" if options[0] in ("--appendfsync", "--maxmemory") else "fail")
    assert found in row.found
    assert fix in row.fix


# --- the database ------------------------------------------------------------------------------------------------


def test_a_schema_that_is_behind_ahead_or_not_there(doctor: Doctor, database: str) -> None:
    schema.downgrade(database, "0003")
    behind = doctor(postgres=database)["schema"]
    assert (behind.state, behind.found, behind.fix) == (
        "fail",
        f"at 0003, and this mdp needs {HEAD}",
        "mdp store upgrade",
    )
    with psycopg.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    ahead = doctor(postgres=database)["schema"]
    assert (ahead.state, ahead.found, ahead.fix) == (
        "fail",
        f"at 9999, newer than this mdp {HEAD}",
        "update mdp here",
    )
    with psycopg.connect(database) as connection:
        connection.execute("DROP TABLE alembic_version")
    assert "not there yet" in doctor(postgres=database)["schema"].found


def test_a_schema_that_somebody_changed(doctor: Doctor, database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("ALTER TABLE signals DROP COLUMN score")
    found = doctor(postgres=database)["schema"]
    assert (found.state, "score" in found.found, found.fix) == ("fail", True, "mdp store check")


def test_timescaledb_that_is_missing_is_no_failure(doctor: Doctor, database: str) -> None:
    found = doctor(postgres=database)["timescaledb"]
    assert (found.state, "plain tables" in found.found) == ("warn", True)
    assert "install TimescaleDB" in found.fix


def test_timescaledb_that_is_there(doctor: Doctor, timescale_url: str) -> None:
    schema.upgrade(timescale_url)
    report = doctor(postgres=timescale_url)
    assert (report["timescaledb"].state, report["schema"].state) == ("ok", "ok")
    assert report["timescaledb"].found.startswith("2.")


class Shifted(SystemClock):
    """This machine's clock, a minute slow."""

    def now(self) -> int:
        return time.time_ns() - 60 * 10**9


async def test_clocks_that_differ_are_told_with_the_direction(empty: RedisServer, database: str) -> None:
    found = await redis_servers(empty.uri, "here", Shifted())
    of_store = await asyncio.to_thread(
        lambda: list(of_database(database, "here", embedded=False, pool_size=1, clock=Shifted()))
    )
    clocks = {f.check: f for f in [*found, *of_store] if f.check.endswith("clock")}
    assert clocks.keys() == {"redis clock", "postgres clock"}
    for finding in clocks.values():
        assert finding.state == "warn", finding
        # A minute, give or take what a busy machine adds between two looks at a clock.
        assert float(finding.found.partition(" ms")[0]) == pytest.approx(60_000, abs=20_000)
        assert "NTP" in finding.fix


# --- this machine ------------------------------------------------------------------------------------------------


def test_a_metrics_port_that_is_taken(doctor: Doctor, empty: RedisServer) -> None:
    row = doctor(empty.uri, MDP_TELEMETRY__METRICS_PORT=str(empty.port))["metrics port"]
    assert (row.state, "redis-server (process" in row.found) == ("warn", True)


def test_a_disk_that_cannot_take_what_the_spool_may_hold(doctor: Doctor) -> None:
    row = doctor(MDP_PRODUCERS__SPOOL__MAX_BYTES=str(10**18))["spool disk"]
    assert (row.state, "1000000000.0 GB may be needed" in row.found) == ("warn", True)
    assert doctor()["spool disk"].state == "ok"


# --- groups ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def joined(bus: Bus) -> AsyncIterator[Consumer]:
    """A member that owns the one partition, and reads nothing before it seeks."""
    consumer = bus.consumer("mdp.events", GROUP, "w", lease_ms=LONG_LEASE_MS)
    async with consumer, asyncio.timeout(PATIENCE):
        while not (await consumer.poll(0.05)).assigned:
            pass
        yield consumer


async def test_a_lease_that_is_stuck_and_the_command_that_frees_it(
    doctor: Doctor, empty: RedisServer
) -> None:
    async with RedisBus(empty.uri) as bus:
        await bus.ensure_topic("mdp.events", 1)
        async with joined(bus):
            pass
        with empty.client() as client:
            # As after a restore of a dump whose keys were made to last.
            client.set("{mdp.events}:lease:mdp-consumers", "ghost#0123")
            row = (await asyncio.to_thread(doctor, empty.uri))[f"group {GROUP}"]
            assert (row.state, "is held for ghost, who does not beat, for ever" in row.found) == (
                "fail",
                True,
            )
            client.delete(row.fix.partition("DEL ")[2].strip("'"))
        async with joined(bus):
            row = (await asyncio.to_thread(doctor, empty.uri))[f"group {GROUP}"]
            assert (row.state, row.found) == ("ok", "mdp.events: 1 member, 0 records behind")


async def test_a_group_that_is_behind_stands_still_and_then_is_left_alone(
    doctor: Doctor, empty: RedisServer
) -> None:
    async with RedisBus(empty.uri) as bus:
        await bus.ensure_topic("mdp.events", 1)
        with empty.client() as client:
            client.xadd("mdp.events", {"k": "K", "v": "1"}, id="1700000000000-0")
        async with joined(bus) as consumer:
            row = (await asyncio.to_thread(doctor, empty.uri))[f"group {GROUP}"]
            assert (row.state, "1 records and" in row.found, "more workers" in row.fix) == (
                "warn",
                True,
                True,
            )
            await consumer.seek(0, None)
            async with asyncio.timeout(PATIENCE):
                while not (await consumer.poll(0.05)).deliveries:
                    pass
            row = (await asyncio.to_thread(doctor, empty.uri))[f"group {GROUP}"]
            assert (row.state, "w has had records of partition 0 for" in row.found) == ("warn", True)
        row = (await asyncio.to_thread(doctor, empty.uri))[f"group {GROUP}"]
        assert (row.state, "1 are unacknowledged" in row.found, "no member runs" in row.found) == (
            "warn",
            True,
            True,
        )


# --- Kafka -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kafka() -> Iterator[KafkaServer]:
    yield from running_kafka()


async def test_kafka_that_is_up_and_its_groups_and_then_is_down(doctor: Doctor, kafka: KafkaServer) -> None:
    settings = {"MDP_BUS__TYPE": "kafka", "KAFKA_BOOTSTRAP": kafka.bootstrap}
    report = await asyncio.to_thread(doctor, **settings)
    assert report["kafka"].found.startswith("Kafka, 1 broker")
    assert (report["kafka durability"].state, report["groups"].state) == ("warn", "ok")
    async with KafkaBus(kafka.bootstrap) as bus:
        await bus.ensure_topic("mdp.events", 1)
        await bus.publish("mdp.events", [Record("K", b"1")])
        async with joined(bus):
            report = await asyncio.to_thread(doctor, **settings)
            assert report[f"group {GROUP}"].found == "mdp.events: 1 member, 1 records behind"
    kafka.kill9()
    report = await asyncio.to_thread(doctor, **settings)
    assert (report.code, report["kafka"].state) == (1, "fail")
    assert kafka.bootstrap in report["kafka"].found
