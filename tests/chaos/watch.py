"""Watches the commits from outside, by what the database says of the claims."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Self

import psycopg

_EVERY_S = 0.025
_SEEN = (
    "SELECT partition, epoch, owner, flush_number FROM stream_claims WHERE topic = %s AND consumer_group = %s"
)


@dataclass(frozen=True, slots=True)
class Held:
    """One partition as the database knows it."""

    epoch: int
    owner: str
    flushes: int


class CommitWatch:
    """What was seen of one topic and group, 40 times a second.

    ``recoveries``: for each partition whose owner was killed, the seconds until a newer owner's first commit.
    """

    def __init__(self, url: str, topic: str, group: str) -> None:
        self._url = url
        self.topic, self.group = topic, group
        self._task: asyncio.Task[None] | None = None
        self._flushes: defaultdict[tuple[int, int], int] = defaultdict(int)
        self._waiting: dict[int, tuple[float, int]] = {}
        self.held: dict[int, Held] = {}
        self.recoveries: list[float] = []

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    @property
    def flushes(self) -> int:
        """Commits seen so far; the last ones of a killed owner may be missing."""
        return sum(self._flushes.values())

    @property
    def unrecovered(self) -> list[int]:
        """Partitions whose owner was killed and that had no commit of a newer one yet."""
        return sorted(self._waiting)

    def of(self, pid: int) -> list[int]:
        """The partitions that were claimed last by the process ``pid``."""
        return sorted(p for p, held in self.held.items() if f"-{pid}-" in held.owner)

    def killed(self, pid: int) -> None:
        """Its partitions have no owner from now on; waiting for the next counts from here."""
        for partition in self.of(pid):
            self._waiting.setdefault(partition, (time.monotonic(), self.held[partition].epoch))

    def _note(self, rows: list[tuple[int, int, str, int]]) -> None:
        now = time.monotonic()
        for partition, epoch, owner, flushes in rows:
            self.held[partition] = Held(epoch, owner, flushes)
            self._flushes[partition, epoch] = max(self._flushes[partition, epoch], flushes)
            waiting = self._waiting.get(partition)
            if waiting is not None and epoch > waiting[1] and flushes > 0:
                self.recoveries.append(now - waiting[0])
                del self._waiting[partition]

    async def _run(self) -> None:
        connection: psycopg.AsyncConnection[Any] | None = None
        try:
            while True:
                try:
                    if connection is None:
                        connection = await psycopg.AsyncConnection.connect(
                            self._url, autocommit=True, connect_timeout=2, application_name="chaos"
                        )
                    self._note(await (await connection.execute(_SEEN, (self.topic, self.group))).fetchall())
                except psycopg.OperationalError:
                    if connection is not None:
                        await connection.close()
                    connection = None  # the database is down: look again
                await asyncio.sleep(_EVERY_S)
        finally:
            if connection is not None:
                await connection.close()
