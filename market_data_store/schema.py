"""Bringing a database to the schema this version needs, and telling when it is not there.

Every function takes a database URL and uses one connection. Upgrades and downgrades hold an advisory lock, so
several processes may start at the same time and each finds the work done or does it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from market_data_core.errors import UsageError
from market_data_store import timescale
from market_data_store.connection import libpq_url, translate
from market_data_store.models import Base
from market_data_store.schema_version import HEAD, out_of_date

_LOCK: Final = 0x6D64705F  # "mdp_"
_ALEMBIC: Final = threading.Lock()
"""Alembic keeps the running command in module globals, so one at a time in a process."""


def _ours(name: str | None, kind: str, _parents: Any) -> bool:
    """Whether a table found in the database is declared by us. A database may be shared, and TimescaleDB
    keeps chunks and materialisations as tables of its own: none of them is drift."""
    return kind != "table" or name in Base.metadata.tables


def _declared(_item: Any, name: str | None, kind: str, reflected: bool, _other: Any) -> bool:
    """Leave out indexes that TimescaleDB makes for itself on a hypertable (its default one on time)."""
    return not (kind == "index" and reflected and bool(name) and str(name).endswith("_ts_idx"))


COMPARISON: Final[dict[str, Any]] = {
    "target_metadata": Base.metadata,
    "compare_type": True,
    "compare_server_default": True,
    "include_name": _ours,
    "include_object": _declared,
}
"""How alembic compares a database with the models; env.py uses it too."""


@dataclass(frozen=True, slots=True)
class Current:
    """``revision`` is the migration a database is at (None: empty), ``head`` the one this version needs."""

    revision: str | None
    head: str
    timescale: timescale.Extension

    @property
    def up_to_date(self) -> bool:
        return self.revision == self.head


def upgrade(
    url: str, revision: str = "head", *, policies: timescale.Policies | None = None
) -> timescale.Extension:
    """Migrate up to ``revision``; at the head also lay hypertables, policies and rollups.

    Raises:
        UsageError: no such revision.
        SchemaOutOfDate: the database is at a revision that this version does not know.
        StoreUnavailable, StoreError: the server cannot be reached, or refuses.
    """
    with _connected(url) as connection, _locked(connection):
        _alembic(connection, url, command.upgrade, revision)
        if _revision(connection) == HEAD:
            connection.rollback()
            return timescale.apply(connection, policies)
        return timescale.extension(connection)


def downgrade(url: str, revision: str) -> None:
    """Migrate down to ``revision`` (``base``: remove everything of ours, and the data with it)."""
    with _connected(url) as connection, _locked(connection):
        _alembic(connection, url, command.downgrade, revision)


def current(url: str) -> Current:
    """Which migration the database is at."""
    with _connected(url) as connection:
        return Current(_revision(connection), HEAD, timescale.extension(connection))


def require_current(url: str) -> None:
    """Return when the database is at the schema of this version.

    Raises:
        SchemaOutOfDate: it is not; the message says how to get there.
    """
    revision = current(url).revision
    if revision != HEAD:
        raise out_of_date(url, revision)


def check(url: str) -> list[str]:
    """Every difference between the database and what this version declares, as sentences; empty when none."""
    with _connected(url) as connection:
        revision = _revision(connection)
        if revision != HEAD:
            return [str(out_of_date(url, revision))]
        context = MigrationContext.configure(connection, opts=COMPARISON)
        drift = [_describe(change) for change in compare_metadata(context, Base.metadata)]
        return drift + timescale.missing_parts(connection)


def script_location() -> Path:
    """The folder of migrations: inside of the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "migrations"
    return inside if inside.is_dir() else package.parent / "migrations"


def alembic_config(url: str | None = None) -> Config:
    """Alembic's configuration without an ini file; with ``url``, alembic connects by itself."""
    config = Config()
    config.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    if url is not None:
        config.attributes["url"] = url
    return config


@contextmanager
def alembic_connection(config: Config) -> Iterator[Connection]:
    """The connection of a running command: the one handed over, or a new one to the configured URL."""
    given: Connection | None = config.attributes.get("connection")
    if given is not None:
        yield given
    else:
        with _connected(config.attributes["url"]) as connection:
            yield connection


@contextmanager
def _connected(url: str) -> Iterator[Connection]:
    """One connection of SQLAlchemy, opened by psycopg so that every libpq URL works as it is."""
    conninfo = libpq_url(url)
    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(conninfo, application_name="mdp-schema", connect_timeout=5),
        poolclass=NullPool,
    )
    try:
        with engine.connect() as connection:
            yield connection
    except DBAPIError as error:
        raise translate(error.orig or error, url) from error
    except psycopg.Error as error:
        raise translate(error, url) from error
    finally:
        engine.dispose()


@contextmanager
def _locked(connection: Connection) -> Iterator[None]:
    """Hold the advisory lock of schema changes; the server frees it when this process dies."""
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
    connection.commit()
    try:
        yield
    finally:
        if not connection.invalidated:
            connection.rollback()
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _LOCK})
            connection.commit()


def _alembic(connection: Connection, url: str, run: Any, revision: str) -> None:
    config = alembic_config()
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    at = _revision(connection)
    connection.rollback()
    if at is not None and at not in known:
        raise out_of_date(url, at)
    try:
        with _ALEMBIC:
            run(config, revision)
        connection.commit()
    except CommandError as error:
        names = ", ".join(sorted(known))
        raise UsageError(f"revision {revision!r}: {error}; use head, base or one of {names}") from error


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return revision


def _describe(change: Any) -> str:
    """One change that autogenerate would make, for people."""
    if isinstance(change, list):
        return "; ".join(_describe(part) for part in change)
    kind, *parts = change
    names = [str(getattr(part, "name", part)) for part in parts if part is not None and part != {}]
    return f"the database differs from the declared schema: {kind} {' '.join(names)}"
