"""The edge to PostgreSQL: URLs without their secrets, and psycopg's errors as ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import errors as pg
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from market_data_core.errors import SchemaOutOfDate, StoreError, StoreNotReady, StoreUnavailable
from market_data_core.redact import redact

FIX_SCHEMA: Final = "run `mdp store upgrade`"
_BAD_URL = re.compile(
    r"invalid (integer value|connection option|URI|port)|in connection info string|invalid dsn"
)
_STARTING = re.compile(r"the database system is (starting up|not yet accepting connections|in recovery mode)")
"""What PostgreSQL says while it reads its log. A failure to connect carries no SQLSTATE, so the words must do; a server
that says it in another language is taken for one that is away."""
_DRIVER = re.compile(r"\A(postgres(?:ql)?)\+\w+://")
UNREACHABLE: Final = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    pg.IdleInTransactionSessionTimeout,
    pg.TransactionTimeout,
    pg.ReadOnlySqlTransaction,
    pg.IdleInTransactionSessionTimeout,
    PoolTimeout,
    PoolClosed,
    TooManyRequests,
)
"""What may succeed later: the server is away, full, restarting, or a standby."""


def libpq_url(url: str) -> str:
    """``url`` as libpq takes it: SQLAlchemy's ``postgresql+driver://`` loses the driver."""
    return _DRIVER.sub(r"\1://", url)


def _sentence(error: BaseException) -> str:
    """The first line of what the server or the library said, without its trailing point."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def translate(error: BaseException, url: str) -> StoreError:
    """The error of ours that says what ``error`` of psycopg means for a user of ``url``."""
    where = redact(url)
    said = _sentence(error)
    if isinstance(error, (pg.InvalidPassword, pg.InvalidAuthorizationSpecification)) or (
        isinstance(error, psycopg.OperationalError) and "password" in said
    ):
        return StoreError(f"{where} refuses the login ({said}): correct the user or password in DATABASE_URL")
    if isinstance(error, pg.InvalidCatalogName) or re.search(r'database ".*" does not exist', said):
        return StoreError(f"{where} has no such database ({said}): create it or correct DATABASE_URL")
    if isinstance(error, (pg.UndefinedTable, pg.UndefinedColumn)):
        return SchemaOutOfDate(f"the schema of {where} is not the one needed ({said}): {FIX_SCHEMA}")
    if isinstance(error, pg.InsufficientPrivilege):
        return StoreError(f"{where}: {said}: grant it to the user, or use another one in DATABASE_URL")
    if isinstance(error, psycopg.Error) and _BAD_URL.search(said):
        return StoreError(f"{where} is not a database URL ({said}): write postgresql://user@host:port/name")
    if isinstance(error, psycopg.OperationalError) and _STARTING.search(said):
        return StoreNotReady(f"PostgreSQL at {where} takes nobody in yet ({said}): wait until it has started")
    if isinstance(error, UNREACHABLE):
        return StoreUnavailable(f"cannot use PostgreSQL at {where} now ({said}): check that it runs")
    return StoreError(f"{where} refused a command: {said}")


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Errors of psycopg and its pool leave the block as errors of ours."""
    try:
        yield
    except (psycopg.Error, PoolTimeout, PoolClosed, TooManyRequests) as error:
        raise translate(error, url) from error


async def one_row(cursor: psycopg.AsyncCursor[Any]) -> Any:
    """The single row of a statement that always gives one."""
    row = await cursor.fetchone()
    if row is None:
        raise psycopg.InternalError("the server gave no row where it always gives one")
    return row
