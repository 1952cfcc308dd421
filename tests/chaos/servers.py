"""The embedded Redis and PostgreSQL of a home of their own, with ways to harm them."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit, urlunsplit

import psutil

from market_data_pipeline import embedded
from market_data_store import schema
from tests.chaos.reaper import Reaper
from tests.chaos.waiting import until
from tests.servers.wire import Wire

PostgresDeath = Literal["all", "postmaster", "backend"]


class Servers:
    """Started on entry, stopped on exit; what they hold stays in ``home``."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.redis, self.postgres = embedded.redis(home), embedded.postgres(home)
        self.redis_url = self.postgres_url = ""
        self._reaper: Reaper | None = None

    async def __aenter__(self) -> Self:
        self._reaper = Reaper(self.home)
        try:
            self.redis_url = await asyncio.to_thread(self.redis.start)
            self.postgres_url = await asyncio.to_thread(self.postgres.start)
            await asyncio.to_thread(schema.upgrade, self.postgres_url)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._reaper is not None
        with self._reaper:
            for service in (self.redis, self.postgres):
                await asyncio.to_thread(service.stop)

    async def kill_redis(self) -> None:
        """``kill -9``; on return it is dead."""
        await _kill([_pid(self.redis)])

    async def kill_postgres(self, how: PostgresDeath) -> None:
        """``kill -9`` of every process of it, of the postmaster alone, or of one that serves a client."""
        head = _pid(self.postgres)
        children = [p.pid for p in psutil.Process(head).children()]
        if how == "all":
            await _kill([head, *children])
        elif how == "postmaster":
            await _kill([head])
        else:
            serving = [p.pid for p in psutil.Process(head).children() if _serves(p)]
            await _kill(serving[:1])

    async def revive(self) -> None:
        """Start what is down, on the same port and data, as an init system would."""
        for service, url in ((self.redis, self.redis_url), (self.postgres, self.postgres_url)):
            now = await asyncio.to_thread(service.start)
            assert now == url, f"{service.name} came back elsewhere"


def _pid(service: embedded.Service) -> int:
    pid = service.status().pid
    assert pid is not None, f"{service.name} does not run"
    return pid


def _serves(process: psutil.Process) -> bool:
    try:
        return "127.0.0.1(" in " ".join(process.cmdline())
    except psutil.Error:
        return False


async def _kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    for pid in pids:
        await until(f"process {pid} is dead", 10, lambda pid=pid: not _runs(pid))  # type: ignore[misc]


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


class Wires:
    """The way of one process to both servers: a proxy each."""

    def __init__(self, servers: Servers) -> None:
        self._redis_url, self._postgres_url = servers.redis_url, servers.postgres_url
        self.redis = Wire(_port(servers.redis_url))
        self.postgres = Wire(_port(servers.postgres_url))

    async def __aenter__(self) -> Self:
        await self.redis.__aenter__()
        await self.postgres.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.postgres.__aexit__()
        await self.redis.__aexit__()

    @property
    def env(self) -> dict[str, str]:
        """What makes a process use this way."""
        return {
            "REDIS_URI": _through(self._redis_url, self.redis.port),
            "DATABASE_URL": _through(self._postgres_url, self.postgres.port),
        }


def _port(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


def _through(url: str, port: int) -> str:
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    return urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{port}"))
