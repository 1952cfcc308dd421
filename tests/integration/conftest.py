"""Databases for tests: servers once a session, a database of its own for each test."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NoReturn

import psycopg
import pytest

from market_data_store import StoreClient, arrays, schema
from tests.integration.backfills import Command
from tests.servers import ServerMissing
from tests.servers.postgres import PostgresServer
from tests.servers.timescale import TimescaleServer

MATRIX = ("pg15", "pg16", "pg17", "pg18", "timescale")
_TEMPLATE = "mdp_template"
_numbers = itertools.count(1)


def missing(reason: ServerMissing) -> NoReturn:
    """Skip on a laptop; in CI a server that is not there is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(str(reason))
    pytest.skip(str(reason))


class Databases:
    """Starts each server when a test first needs it."""

    def __init__(self) -> None:
        self._postgres: dict[str, PostgresServer] = {}
        self._timescale: TimescaleServer | None = None

    def postgres(self, version: str) -> PostgresServer:
        if version not in self._postgres:
            server = PostgresServer(version).__enter__()
            self._postgres[version] = server
            schema.upgrade(server.create_database(_TEMPLATE))
        return self._postgres[version]

    def timescale(self) -> TimescaleServer:
        if self._timescale is None:
            self._timescale = TimescaleServer().__enter__()
        return self._timescale

    def stop(self) -> None:
        for server in (*self._postgres.values(), self._timescale):
            if server is not None:
                server.__exit__(None, None, None)


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    servers = Databases()
    yield servers
    servers.stop()


@pytest.fixture(scope="session")
def postgres(databases: Databases) -> PostgresServer:
    """PostgreSQL 18, without fsync."""
    try:
        return databases.postgres("18")
    except ServerMissing as reason:
        missing(reason)


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[str]:
    """The URL of a new, migrated database."""
    name = f"mdp_{next(_numbers)}"
    yield postgres.create_database(name, _TEMPLATE)
    postgres.drop_database(name)


@pytest.fixture
async def store(database: str) -> AsyncIterator[StoreClient]:
    """A client on a new database."""
    async with await StoreClient.connect(database) as client:
        yield client


@pytest.fixture
async def reader(postgres: PostgresServer) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A bare connection that knows the columns of the store."""
    connection = await psycopg.AsyncConnection.connect(postgres.url())
    async with connection:
        arrays.register(connection)
        yield connection


def _matrix_database(databases: Databases, server: str, *, migrated: bool) -> Iterator[str]:
    try:
        if server == "timescale":
            timescale = databases.timescale()
            timescale.reset()
            if migrated:
                schema.upgrade(timescale.url())
            yield timescale.url()
        else:
            postgres = databases.postgres(server.removeprefix("pg"))
            name = f"mdp_{next(_numbers)}"
            yield postgres.create_database(name, _TEMPLATE if migrated else None)
            postgres.drop_database(name)
    except ServerMissing as reason:
        missing(reason)


@pytest.fixture(params=MATRIX)
def pg_url(request: pytest.FixtureRequest, databases: Databases) -> Iterator[str]:
    """The URL of a new, migrated database on each server of the matrix."""
    yield from _matrix_database(databases, request.param, migrated=True)


@pytest.fixture(params=MATRIX)
def empty_pg_url(request: pytest.FixtureRequest, databases: Databases) -> Iterator[str]:
    """The URL of a new, empty database on each server of the matrix."""
    yield from _matrix_database(databases, request.param, migrated=False)


@pytest.fixture
def timescale_url(databases: Databases) -> Iterator[str]:
    """The URL of an empty database with TimescaleDB."""
    yield from _matrix_database(databases, "timescale", migrated=False)


@pytest.fixture
async def matrix_store(pg_url: str) -> AsyncIterator[StoreClient]:
    """A client on each server of the matrix, with the one connection that TimescaleDB in WASM takes."""
    async with await StoreClient.connect(pg_url, pool_size=1, prepare=False) as client:
        yield client


@pytest.fixture
def command(database: str, tmp_path: Path) -> Command:
    """``mdp backfill`` on a new database."""
    return Command(tmp_path, database)


@pytest.fixture
def streamed(postgres: PostgresServer, tmp_path: Path) -> Iterator[Command]:
    """Another database, for the bars of the stream."""
    name = f"mdp_{next(_numbers)}"
    yield Command(tmp_path, postgres.create_database(name, _TEMPLATE))
    postgres.drop_database(name)
