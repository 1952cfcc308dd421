"""The way to a Redis server: connections, whole exchanges on them, and what their errors mean.

Commands are packed and replies are parsed by hiredis and used as they come (nested lists of bytes):
building redis-py's dictionaries of every entry would cost more than all the rest of a read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import hiredis
from redis.asyncio import Connection, ConnectionPool, Redis, RedisCluster
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, ResponseError

from market_data_core.errors import BusError, BusUnavailable
from market_data_pipeline.streaming.redis_errors import FAILURES, closed_meanwhile, explain
from market_data_pipeline.streaming.redis_url import RedisUrl, parse
from market_data_pipeline.streaming.together import Asked, Together

TIMEOUT: Final = 5.0
"""Seconds that one exchange may take, beyond what a blocking read waits on purpose."""
READ_SIZE: Final = 1 << 18
"""Bytes taken from the socket at a time. redis-py's default of 32 KiB costs a third of the read rate."""

Reply = Any


def pack(*command: str | bytes | int) -> bytes:
    """A command in the protocol's form."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]
    return packed


def connection_options() -> dict[str, Any]:
    """How every connection is made, whatever it leads to."""
    return {
        "protocol": 2,
        "socket_timeout": TIMEOUT,
        "socket_connect_timeout": TIMEOUT,
        "socket_read_size": READ_SIZE,
        # Once, at once: a connection of the pool may be one of a server that has restarted since. What
        # the pool is used for may be done twice; entries are published over a Wire, which never retries.
        "retry": Retry(NoBackoff(), 1, (RedisConnectionError,)),
        "client_name": "mdp",
    }


class RedisServer:
    """Where the server is and how to reach it; connects on first use.

    Behind Sentinels, or behind a name that is given to another server when one fails, it is whoever is the
    master when a connection is opened. A connection to one that has become a replica is closed.
    """

    clustered = False

    def __init__(self, uri: str | RedisUrl) -> None:
        self.url = parse(uri) if isinstance(uri, str) else uri
        self.where = self.url.where
        self._sentinels: Sentinel | None = None
        self.client: Redis | RedisCluster = self._connect()

    def _connect(self) -> Redis | RedisCluster:
        options = connection_options() | dict(self.url.options)
        if self.url.kind == "sentinel":
            tls = {name: value for name, value in options.items() if name.startswith(("socket_", "ssl_"))}
            about = (
                tls
                | {"ssl": self.url.tls, "protocol": 2, "retry": Retry(NoBackoff(), 0)}
                | dict(self.url.sentinel_options)
            )
            self._sentinels = Sentinel(  # type: ignore[no-untyped-call]
                self.url.addresses, sentinel_kwargs=about
            )
            self._pool: ConnectionPool = SentinelConnectionPool(  # type: ignore[no-untyped-call]
                self.url.service, self._sentinels, ssl=self.url.tls, **options
            )
        else:
            kind = self.url.connection_class
            masters = {Connection: _OfMaster, SSLConnection: _OfMasterTls}
            self._pool = ConnectionPool(connection_class=masters.get(kind, kind), **options)
        return Redis(connection_pool=self._pool)

    def wire(self) -> Wire:
        """A connection of its own, opened on first use."""
        return Wire(self, self.connection)

    def wire_at(self, place: str) -> Wire:
        """A connection of its own to the server at a :meth:`place`."""
        return self.wire()

    def place(self, key: str) -> str:
        """The server that has ``key``; the same for all keys that one connection can be asked for.

        Raises:
            BusUnavailable: there is none now.
        """
        return ""

    def places(self) -> list[str]:
        """Every server that has keys."""
        return [""]

    async def settle(self) -> None:
        """Find out where keys are, if that may have changed."""

    def connection(self) -> Connection:
        return lasting(self._pool.make_connection())  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        await self.client.aclose()
        await self._pool.disconnect()
        if self._sentinels is not None:
            for sentinel in self._sentinels.sentinels:
                await sentinel.aclose()

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raise what goes wrong inside as BusUnavailable or BusError."""
        try:
            yield
        except FAILURES as error:
            raise self.explain(error) from error
        except AttributeError as error:
            if not closed_meanwhile(error):
                raise
            raise self.explain(ConnectionResetError("the connection was closed")) from error

    def check(self, replies: Iterable[Reply]) -> None:
        """Raise the first refusal among ``replies``."""
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise self.explain(reply) from reply

    def explain(self, error: BaseException) -> BusError:
        """What an error of redis-py or of the socket means, in one sentence with the fix."""
        return explain(error, self.url)


def lasting(connection: Connection) -> Connection:
    """``connection`` with one deadline a whole exchange (see :class:`Wire`), and not one a reply."""
    connection.socket_timeout = None
    return connection


class _OfMaster(Connection):
    """Ends when its server has become a replica, so that the next one leads to whoever is the master now."""

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except ReadOnlyError:
            await self.disconnect(nowait=True)
            raise RedisConnectionError("it is a replica now") from None


class _OfMasterTls(_OfMaster, SSLConnection): ...


class Wire:
    """One connection for whole exchanges: some commands at once, then their replies, in order.

    :meth:`exchange` may be called concurrently. A holder of ``send`` and ``receive`` must be the only user.
    After any error the connection is closed, and the next use opens a new one.
    """

    def __init__(self, server: RedisServer, connect: Callable[[], Connection]) -> None:
        self._server = server
        self._connect = connect
        self._connection: Connection | None = None
        self._together = Together(self._exchange, self._closed)

    async def exchange(self, *commands: bytes, key: str = "") -> list[Reply]:
        """Send packed commands and return their replies; a refusal is returned as ResponseError.

        What is asked while others wait for their replies goes together in the next exchange, and the server writes to
        its file once for all of it. ``key`` is one that the commands are about; those of a cluster go to the node that
        has it.

        Raises:
            BusUnavailable, BusError: the connection failed, and any of the commands may have been done.
        """
        return await self._together.ask(commands, sum(map(len, commands)))

    async def _exchange(self, some: Sequence[Asked[Sequence[bytes], list[Reply]]]) -> None:
        await self.send([command for asked in some for command in asked.what])
        replies = iter(await self.receive(sum(len(asked.what) for asked in some)))
        for asked in some:
            asked.answer([next(replies) for _ in asked.what])

    async def send(self, commands: Sequence[bytes]) -> None:
        with self._server.translated():
            async with asyncio.timeout(TIMEOUT):
                if self._connection is None:
                    self._connection = self._connect()
                elif self._connection.is_connected and await _ended(self._connection):
                    await self._connection.disconnect(nowait=True)
                await self._connection.connect()  # type: ignore[no-untyped-call]
                await self._connection.send_packed_command(commands, check_health=False)

    async def receive(self, replies: int, *, extra: float = 0.0) -> list[Reply]:
        """The next ``replies`` replies, which may take ``extra`` seconds longer than usual."""
        connection = self._connection
        if connection is None or not connection.is_connected:
            raise self._closed()
        out: list[Reply] = []
        try:
            with self._server.translated():
                async with asyncio.timeout(TIMEOUT + extra):
                    for _ in range(replies):
                        try:
                            out.append(await connection.read_response(disable_decoding=True))
                        except ResponseError as refusal:
                            out.append(refusal)
        except BaseException:
            # A reply that comes later must not be taken for that of another command.
            await self._drop()
            raise
        return out

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def close(self) -> None:
        """Close the connection; whoever waits for a reply on it gets BusUnavailable."""
        # Taken first: whoever asks from now on has a connection of his own.
        connection, self._connection = self._connection, None
        await self._together.close()
        if connection is not None:
            await connection.disconnect()

    def _closed(self) -> BusUnavailable:
        return BusUnavailable(f"Redis at {self._server.where} closed the connection")


async def _ended(connection: Connection) -> bool:
    """Whether the server has closed an idle connection, as it does when it restarts."""
    # Its name before redis-py 8.
    look = getattr(connection, "can_read", None) or connection.can_read_destructive
    try:
        return bool(await look())
    except RedisConnectionError:
        return True
