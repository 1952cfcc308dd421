"""A TCP proxy between a client and a server of the test, to cut, silence or trip at a given word."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Literal, Self


class Wire:
    """Listens on ``port`` of the loopback (0: any that is free) and passes bytes to ``target`` on and back."""

    def __init__(self, target: int, port: int = 0) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._links: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._trip: tuple[bytes, Literal["request", "reply"]] | None = None
        self._refuse = False
        self.port = port
        self.tripped = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._link, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        self._open.set()
        self.cut()
        await self._server.wait_closed()

    @property
    def ports(self) -> list[int]:
        """The ports from which the server sees the open connections come."""
        return [out.get_extra_info("sockname")[1] for _, out in self._links]

    def cut(self, *, refuse: bool = False) -> None:
        """End every connection now; ``refuse``: and new ones at once, until :meth:`mend`."""
        self._refuse = refuse
        for link in list(self._links):
            for end in link:
                end.transport.abort()

    def silence(self) -> None:
        """Pass nothing on any more, and keep the connections open, until :meth:`mend`."""
        self._open.clear()

    def mend(self) -> None:
        """Work again."""
        self._refuse = False
        self._open.set()

    def trip_at(self, word: bytes, lose: Literal["request", "reply"]) -> None:
        """Cut the next connection on which the client sends ``word``: before the server gets it, or after,
        when the server's answer is on its way."""
        self._trip = (word, lose)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuse:
            writer.transport.abort()
            return
        try:
            there, out = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        link = (writer, out)
        self._links.add(link)
        answered: asyncio.Event = asyncio.Event()
        lost: list[bool] = []
        up = asyncio.create_task(self._up(reader, out, link, lost, answered))
        down = asyncio.create_task(self._down(there, writer, lost, answered))
        await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)
        self._links.discard(link)
        for end in link:
            end.close()
            # Cancelled when the test ends: asyncio of Python 3.11 would report it as an error of its own.
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await end.wait_closed()

    async def _up(
        self,
        reader: asyncio.StreamReader,
        out: asyncio.StreamWriter,
        link: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
        lost: list[bool],
        answered: asyncio.Event,
    ) -> None:
        while data := await reader.read(65_536):
            await self._open.wait()
            if self._trip is not None and self._trip[0] in data:
                lose = self._trip[1]
                self._trip = None
                self.tripped += 1
                if lose == "reply":
                    lost.append(True)
                    out.write(data)
                    await out.drain()
                    await answered.wait()
                for end in link:
                    end.transport.abort()
                return
            out.write(data)
            await out.drain()

    async def _down(
        self,
        there: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        lost: list[bool],
        answered: asyncio.Event,
    ) -> None:
        while data := await there.read(65_536):
            await self._open.wait()
            if lost:
                answered.set()
                return
            writer.write(data)
            await writer.drain()


class Bundle:
    """The wires of one client to all servers of a cluster, harmed as one."""

    def __init__(self, wires: Sequence[Wire]) -> None:
        self._wires = wires
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        for wire in self._wires:
            await self._stack.enter_async_context(wire)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    @property
    def doors(self) -> list[int]:
        """The port of each wire."""
        return [wire.port for wire in self._wires]

    @property
    def tripped(self) -> int:
        return sum(wire.tripped for wire in self._wires)

    def cut(self, *, refuse: bool = False) -> None:
        for wire in self._wires:
            wire.cut(refuse=refuse)

    def silence(self) -> None:
        for wire in self._wires:
            wire.silence()

    def mend(self) -> None:
        for wire in self._wires:
            wire.mend()

    def trip_at(self, word: bytes, lose: Literal["request", "reply"]) -> None:
        for wire in self._wires:
            wire.trip_at(word, lose)
