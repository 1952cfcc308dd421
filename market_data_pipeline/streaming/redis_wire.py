"""The way to one Redis server: connections, whole exchanges on them, and what their errors mean.

Commands are packed and replies are parsed by hiredis and used as they come (nested lists of bytes):
building redis-py's dictionaries of every entry would cost more than all the rest of a read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import hiredis
from redis.asyncio import Connection, ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from market_data_core.errors import BusError, BusUnavailable, ConfigError
from market_data_core.redact import redact

TIMEOUT: Final = 5.0
"""Seconds that one exchange may take, beyond what a blocking read waits on purpose."""
READ_SIZE: Final = 1 << 18
"""Bytes taken from the socket at a time. redis-py's default of 32 KiB costs a third of the read rate."""

_PASSING: Final = (
    *(BusyLoadingError, ClusterDownError, MasterDownError, NoScriptError, OutOfMemoryError),
    *(ReadOnlyError, TryAgainError),
)
_PASSING_WORDS: Final = ("BUSY", "MISCONF", "NOGROUP", "NOREPLICAS", "UNBLOCKED")
"""Refusals that end by themselves or by an operator's hand, without a change on our side."""
_LOOK: Final = "check that it runs, and REDIS_URI or bus.redis.uri"

Reply = Any


def pack(*command: str | bytes | int) -> bytes:
    """A command in the protocol's form."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]
    return packed


class RedisServer:
    """Where the server is and how to reach it; connects on first use."""

    def __init__(self, uri: str) -> None:
        self.where = redact(uri)
        try:
            self._pool: ConnectionPool = ConnectionPool.from_url(
                uri,
                protocol=2,
                socket_timeout=TIMEOUT,
                socket_connect_timeout=TIMEOUT,
                socket_read_size=READ_SIZE,
                # Once, at once: a connection of the pool may be one of a server that has restarted since. What
                # the pool is used for may be done twice; entries are published over a Wire, which never retries.
                retry=Retry(NoBackoff(), 1, (RedisConnectionError,)),
                client_name="mdp",
            )
        except ValueError as error:
            raise ConfigError(
                f"{self.where} is not the URL of a Redis server, such as redis://127.0.0.1:6379/0: {error}"
            ) from None
        self.client: Redis = Redis(connection_pool=self._pool)

    def wire(self) -> Wire:
        """A connection of its own, opened on first use."""
        return Wire(self)

    def connection(self) -> Connection:
        connection: Connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        # One deadline a whole exchange (see Wire), and not one a reply.
        connection.socket_timeout = None
        return connection

    async def close(self) -> None:
        await self.client.aclose()
        await self._pool.disconnect()

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raise what goes wrong inside as BusUnavailable or BusError."""
        try:
            yield
        except (RedisError, OSError, TimeoutError) as error:
            raise self.explain(error) from error

    def check(self, replies: Iterable[Reply]) -> None:
        """Raise the first refusal among ``replies``."""
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise self.explain(reply) from reply

    def explain(self, error: BaseException) -> BusError:
        """What an error of redis-py or of the socket means, in one sentence with the fix."""
        text = redact(str(error)).strip().rstrip(".") or type(error).__name__
        if isinstance(error, AuthenticationError | AuthorizationError) or text.startswith("NOAUTH"):
            return BusError(
                f"Redis at {self.where} refuses the login ({text}): "
                "correct the user or password in REDIS_URI or bus.redis.uri"
            )
        if isinstance(error, NoPermissionError) or text.startswith("NOPERM"):
            return BusError(
                f"the user of Redis at {self.where} lacks a permission: grant it with ACL SETUSER ({text})"
            )
        if isinstance(error, RedisTimeoutError | TimeoutError):
            return BusUnavailable(f"Redis at {self.where} did not answer in time: {_LOOK}")
        if isinstance(error, _PASSING) or text.startswith(_PASSING_WORDS):
            return BusUnavailable(f"Redis at {self.where} cannot take commands now: {text}")
        if isinstance(error, RedisConnectionError | OSError):
            return BusUnavailable(f"Redis at {self.where} cannot be reached ({text}): {_LOOK}")
        if "DB index" in text:
            return BusError(
                f"Redis at {self.where} has no such database ({text}): correct the number in the URL"
            )
        if "unknown command" in text:
            return BusError(f"Redis at {self.where} is too old, 6.2 or newer is needed: {text}")
        if text.startswith("WRONGTYPE"):
            return BusError(
                f"a key of Redis at {self.where} with a topic's name is not a stream: "
                f"remove it or use another topic ({text})"
            )
        return BusError(f"Redis at {self.where} refused a command: {text}")


class Wire:
    """One connection for whole exchanges: some commands at once, then their replies, in order.

    :meth:`exchange` may be called concurrently. A holder of ``send`` and ``receive`` must be the only user.
    After any error the connection is closed, and the next use opens a new one.
    """

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._connection: Connection | None = None
        self._lock = asyncio.Lock()

    async def exchange(self, *commands: bytes) -> list[Reply]:
        """Send packed commands and return their replies; a refusal is returned as ResponseError.

        Raises:
            BusUnavailable, BusError: the connection failed, and any of the commands may have been done.
        """
        async with self._lock:
            await self.send(commands)
            return await self.receive(len(commands))

    async def send(self, commands: Sequence[bytes]) -> None:
        with self._server.translated():
            async with asyncio.timeout(TIMEOUT):
                if self._connection is None:
                    self._connection = self._server.connection()
                elif self._connection.is_connected and await _ended(self._connection):
                    await self._connection.disconnect(nowait=True)
                await self._connection.connect()  # type: ignore[no-untyped-call]
                await self._connection.send_packed_command(commands, check_health=False)

    async def receive(self, replies: int, *, extra: float = 0.0) -> list[Reply]:
        """The next ``replies`` replies, which may take ``extra`` seconds longer than usual."""
        connection = self._connection
        if connection is None or not connection.is_connected:
            raise BusUnavailable(f"Redis at {self._server.where} closed the connection")
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
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect()


async def _ended(connection: Connection) -> bool:
    """Whether the server has closed an idle connection, as it does when it restarts."""
    # Its name before redis-py 8.
    look = getattr(connection, "can_read", None) or connection.can_read_destructive
    try:
        return bool(await look())
    except RedisConnectionError:
        return True
