"""A bus and the embedded PostgreSQL of a home of their own, with ways to harm them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

import psutil

from market_data_pipeline import embedded
from market_data_pipeline.streaming import drivers
from market_data_pipeline.streaming.bus import Bus
from market_data_store import schema
from tests.chaos.buses import BUSES, DOORS, kill, through
from tests.chaos.reaper import Reaper
from tests.servers.wire import Wire

PostgresDeath = Literal["all", "postmaster", "backend"]


class Servers:
    """Started on entry, stopped on exit; what they hold stays in ``home``. ``wired``: there is a way to each through a
    proxy."""

    def __init__(self, home: Path, bus: str = "redis", *, wired: bool = False) -> None:
        self.home = home
        self.bus, self.postgres = BUSES[bus](home, DOORS if wired else 0), embedded.postgres(home)
        self.postgres_url = ""
        self._reaper: Reaper | None = None

    async def __aenter__(self) -> Self:
        self._reaper = Reaper(self.home)
        try:
            await self.bus.start()
            self.postgres_url = await asyncio.to_thread(self.postgres.start)
            await asyncio.to_thread(schema.upgrade, self.postgres_url)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._reaper is not None
        with self._reaper:
            await self.bus.stop()
            await asyncio.to_thread(self.postgres.stop)

    def open_bus(self) -> Bus:
        """A connection of the harness's own, which nobody cuts."""
        return drivers.open_bus(self.bus.name, self.bus.url)

    async def kill_postgres(self, how: PostgresDeath) -> None:
        """``kill -9`` of every process of it, of the postmaster alone, or of one that serves a client."""
        head = _pid(self.postgres)
        children = [p.pid for p in psutil.Process(head).children()]
        if how == "all":
            await kill([head, *children])
        elif how == "postmaster":
            await kill([head])
        else:
            serving = [p.pid for p in psutil.Process(head).children() if _serves(p)]
            await kill(serving[:1])

    async def revive(self) -> None:
        """Start what is down, on the same port and data, as an init system would."""
        await self.bus.revive()
        assert await asyncio.to_thread(self.postgres.start) == self.postgres_url, (
            "PostgreSQL came back elsewhere"
        )


def _pid(service: embedded.Service) -> int:
    pid = service.status().pid
    assert pid is not None, f"{service.name} does not run"
    return pid


def _serves(process: psutil.Process) -> bool:
    try:
        return "127.0.0.1(" in " ".join(process.cmdline())
    except psutil.Error:
        return False


class Wires:
    """The way of one process to both servers: a proxy each."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self.bus = servers.bus.wire()
        self.postgres = Wire(_port(servers.postgres_url))

    async def __aenter__(self) -> Self:
        await self.bus.__aenter__()
        await self.postgres.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.postgres.__aexit__()
        await self.bus.__aexit__()

    @property
    def env(self) -> dict[str, str]:
        """What makes a process use this way."""
        database = through(self._servers.postgres_url, self.postgres.port)
        return self._servers.bus.environment(self.bus) | {"DATABASE_URL": database}


def _port(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port
