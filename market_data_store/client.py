"""StoreClient: the only door to the database."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Self, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg import errors as pg
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from market_data_core.batch import BarBatch
from market_data_core.clock import Clock, SystemClock
from market_data_core.events import Signal, format_interval, parse_interval
from market_data_core.protocols import Claim, Committed, Flush
from market_data_store import arrays, flushes, job_runs, positions, repartitions
from market_data_store import bars as bars_table
from market_data_store.bars import BarQuery
from market_data_store.connection import libpq_url, translate, translated
from market_data_store.job_runs import JobRecord
from market_data_store.repartitions import GroupPosition
from market_data_store.schema_version import HEAD, out_of_date
from market_data_store.signals import SignalsStoreClient

PAGE: Final = 20_000
"""Bars, or signals, read at once by :meth:`StoreClient.bar_pages` and :meth:`StoreClient.signal_pages`."""

_KEEPALIVE: Final = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
_ROLLED_BACK: Final = (pg.DeadlockDetected, pg.SerializationFailure)
"""What the server does to one of two transactions that wait for each other: it is to be tried again."""

_R = TypeVar("_R")


class StoreClient:
    """A pool of connections to one database, and everything mdp does with them.

    Safe for concurrent calls of one event loop. Every method raises StoreUnavailable when the server is away,
    after which the same call may be made again: connections come back by themselves.
    """

    def __init__(
        self, url: str, *, pool_size: int, timeout_s: float, wait_s: float, prepare: bool, clock: Clock
    ) -> None:
        """Use :meth:`connect`."""
        self._url = url
        self._timeout = timeout_s
        self._clock = clock
        self._options: dict[str, Any] = {"application_name": "mdp", "connect_timeout": 5} | _KEEPALIVE
        self._options["prepare_threshold"] = 5 if prepare else None
        self._pool: AsyncConnectionPool[AsyncConnection[Any]] = AsyncConnectionPool(
            libpq_url(url),
            kwargs=self._options,
            configure=_configure,
            min_size=min(1, pool_size),
            max_size=pool_size,
            timeout=wait_s,
            # Beyond this the pool gives up until it is asked again. Short, because its delays double.
            reconnect_timeout=4.0,
            open=False,
        )
        self._signals = SignalsStoreClient(self)

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        pool_size: int = 4,
        timeout_s: float = 60.0,
        wait_s: float = 5.0,
        prepare: bool = True,
        check_schema: bool = True,
        clock: Clock | None = None,
    ) -> Self:
        """Connect to the database at ``url`` (any URL of libpq).

        ``timeout_s``: a session that takes longer is hung up on, so that a silent wire cannot hold a worker
        for ever. ``wait_s``: how long a call waits for a connection. ``prepare``: keep statements prepared;
        switch it off behind a transaction pooler.

        Raises:
            StoreUnavailable: the server cannot be reached. StoreError: it refuses the login or the database.
            SchemaOutOfDate: run ``mdp store upgrade`` first.
        """
        client = cls(
            url,
            pool_size=pool_size,
            timeout_s=timeout_s,
            wait_s=wait_s,
            prepare=prepare,
            clock=clock or SystemClock(),
        )
        await client._probe(check_schema=check_schema)
        await client._pool.open()
        return client

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def claim(self, topic: str, group: str, partition: int, owner: str, *, topic_id: str = "") -> Claim:
        """Raise the partition's epoch and make it ``owner``'s; see BarSink."""

        async def work(connection: AsyncConnection[Any]) -> Claim:
            return await positions.take_claim(connection, topic, group, partition, owner, topic_id)

        return await self._transaction(work)

    async def commit(self, flush: Flush) -> Committed:
        """Apply ``flush`` whole, or raise; see BarSink.

        A numbered flush may be given again after StoreUnavailable: when it had been applied after all, the
        answer is what it did then. A flush without a number must not be.

        Raises:
            Fenced: a newer epoch exists; nothing was written. StoreUnavailable: try again.
        """
        now = self._clock.now()

        async def work(connection: AsyncConnection[Any]) -> Committed:
            return await flushes.apply(connection, flush, now)

        async def isolated(connection: AsyncConnection[Any]) -> Committed:
            return await flushes.apply(connection, flush, now, isolate=True)

        try:
            return await self._transaction(work, let_through=flushes.ROW_ERRORS)
        except flushes.ROW_ERRORS:
            return await self._transaction(isolated)

    async def read_offsets(self, topic: str, lane: str) -> dict[tuple[str, int], str]:
        """How far one lane of every partition is read, by (group, partition). Claims nothing."""
        async with self.session() as connection:
            return await positions.read_offsets(connection, topic, lane)

    async def claims(self, topic: str) -> list[Claim]:
        """Every claim on ``topic``, of all groups, with its positions and outbox. Claims nothing."""
        async with self.session() as connection:
            return await repartitions.look(connection, topic)

    async def begin_repartition(self, marks: dict[str, str]) -> None:
        """Fence every owner of the topics in ``marks``, whose values become the owners."""
        await self._transaction(lambda connection: repartitions.begin(connection, marks))

    async def finish_repartition(
        self,
        marks: dict[str, str],
        moved: Mapping[str, Sequence[GroupPosition]],
        topic_ids: Mapping[str, str],
    ) -> None:
        """Replace all positions and outboxes of the topics in ``marks`` by ``moved``, in one transaction. Their offsets
        are of the topics with ``topic_ids``.

        Raises:
            Fenced: somebody has claimed a partition since :meth:`begin_repartition`; nothing was changed.
        """
        await self._transaction(lambda connection: repartitions.finish(connection, marks, moved, topic_ids))

    async def bars(
        self,
        symbols: Sequence[str] | None = None,
        *,
        interval: str,
        provider: str | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> BarBatch:
        """Bars of ``[start, end)`` (ns UTC), ordered by (symbol, ts, provider).

        Raises:
            ValueError: ``interval`` is none.
        """
        pages = self.bar_pages(symbols, interval=interval, provider=provider, start=start, end=end)
        batches = [page async for page in pages]
        return BarBatch.concat(batches) if batches else BarBatch.empty()

    async def bar_pages(
        self,
        symbols: Sequence[str] | None = None,
        *,
        interval: str,
        provider: str | None = None,
        start: int | None = None,
        end: int | None = None,
        page: int = PAGE,
    ) -> AsyncIterator[BarBatch]:
        """:meth:`bars` in batches of up to ``page`` rows, for ranges of any size.

        No connection is held between batches; each batch is what is stored when it is read.
        """
        names = None if symbols is None else list(symbols)
        query = BarQuery(format_interval(parse_interval(interval)), names, provider, start, end)
        after: tuple[str, int, str] | None = None
        while True:
            async with self.session() as connection:
                batch = await bars_table.read(connection, query, page, after)
            if len(batch):
                last = batch.series[batch.code[-1]]
                after = (last.symbol, int(batch.ts[-1]), last.provider)
                yield batch
            if len(batch) < page:
                return

    async def write_signals(self, signals: Sequence[Signal]) -> list[Signal]:
        """See :meth:`SignalsStoreClient.upsert`."""
        return await self._signals.upsert(signals)

    async def signals(
        self,
        *,
        symbols: Sequence[str] | None = None,
        provider: str | None = None,
        name: str | None = None,
        start: int | None = None,
        end: int | None = None,
        limit: int | None = None,
    ) -> list[Signal]:
        """See :meth:`SignalsStoreClient.read`."""
        return await self._signals.read(
            symbols=symbols, provider=provider, name=name, start=start, end=end, limit=limit
        )

    def signal_pages(
        self,
        *,
        symbols: Sequence[str] | None = None,
        provider: str | None = None,
        name: str | None = None,
        start: int | None = None,
        end: int | None = None,
        page: int = PAGE,
    ) -> AsyncIterator[list[Signal]]:
        """See :meth:`SignalsStoreClient.pages`."""
        return self._signals.pages(
            symbols=symbols, provider=provider, name=name, start=start, end=end, page=page
        )

    async def jobs(
        self, *, outcome: str | None = None, job: str | None = None, limit: int = 50
    ) -> list[JobRecord]:
        """The newest runs first, after marking those that have not been heard of."""
        await job_runs.abandon(self, self._clock.now())
        return await job_runs.jobs(self, outcome=outcome, job=job, limit=limit)

    async def ping(self) -> str:
        """The server's version, or StoreUnavailable."""
        async with self.session() as connection:
            row = await (await connection.execute("SHOW server_version")).fetchone()
        return str(row[0]) if row else ""

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncGenerator[AsyncConnection[Any]]:
        """A transaction, committed when the block ends without an error. For the modules of the store."""
        with translated(self._url):
            async with self._raw_session() as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def _raw_session(self) -> AsyncGenerator[AsyncConnection[Any]]:
        """:meth:`session` with psycopg's errors."""
        connection: AsyncConnection[Any] | None = None
        hung_up: asyncio.TimerHandle | None = None
        try:
            async with self._pool.connection() as connection:
                hung_up = asyncio.get_running_loop().call_later(self._timeout, _hang_up, connection)
                yield connection
        except PoolTimeout:
            # The pool only says that it had no connection to give. Ask the server why, for the message.
            await self._probe(check_schema=False)
            raise
        finally:
            if hung_up is not None:
                hung_up.cancel()
            if connection is not None and connection.closed:
                # What broke this connection has most likely broken those that wait: replace them all.
                await self._pool.drain()

    async def _transaction(
        self,
        work: Callable[[AsyncConnection[Any]], Awaitable[_R]],
        *,
        let_through: tuple[type[psycopg.Error], ...] = (),
    ) -> _R:
        """``work`` in a transaction, again when the server has rolled it back to resolve a deadlock."""
        try:
            try:
                # Nearly always that is all. What tries again refers to itself, fifty objects of it, and stays until the
                # garbage collector comes by, which a consumer lets come rarely.
                return await self._once(work)
            except _ROLLED_BACK:
                async for attempt in AsyncRetrying(
                    retry=retry_if_exception_type(_ROLLED_BACK),
                    stop=stop_after_attempt(5),
                    wait=wait_random_exponential(multiplier=0.02, max=1.0),
                    reraise=True,
                ):
                    with attempt:
                        result = await self._once(work)
        except let_through:
            raise
        except (psycopg.Error, PoolTimeout) as error:
            raise translate(error, self._url) from error
        return result

    async def _once(self, work: Callable[[AsyncConnection[Any]], Awaitable[_R]]) -> _R:
        async with self._raw_session() as connection:
            return await work(connection)

    async def _probe(self, *, check_schema: bool) -> None:
        """Connect once, past the pool, to learn what is wrong if something is."""
        with translated(self._url):
            connection = await AsyncConnection.connect(libpq_url(self._url), **self._options)
            async with connection:
                if not check_schema:
                    return
                found = await connection.execute("SELECT to_regclass('alembic_version') IS NOT NULL")
                row = await found.fetchone()
                if row is None or not row[0]:
                    raise out_of_date(self._url, None)
                row = await (await connection.execute("SELECT version_num FROM alembic_version")).fetchone()
                if row is None or row[0] != HEAD:
                    raise out_of_date(self._url, row[0] if row else None)


async def _configure(connection: AsyncConnection[Any]) -> None:
    arrays.register(connection)


def _hang_up(connection: AsyncConnection[Any]) -> None:
    """End the wire, so that whoever waits on it gets an error now; a cancel request might wait as well."""
    if connection.closed:
        return
    with socket.socket(fileno=socket.dup(connection.fileno())) as wire, contextlib.suppress(OSError):
        wire.shutdown(socket.SHUT_RDWR)
