"""The table ``job_runs``: which command ran where, when, how it ended, and how much it did.

A run writes a heartbeat with its counters. One that says ``running`` but has not been heard of for
``stale_after`` is marked ``abandoned`` by whoever looks next; should it only have been asleep, its next
heartbeat makes it ``running`` again.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Final, LiteralString, Self

import structlog
from psycopg.types.json import Jsonb

from market_data_core import __version__
from market_data_core.clock import Clock, SystemClock
from market_data_core.ending import end
from market_data_core.errors import StoreError
from market_data_store.bars import moment
from market_data_store.connection import one_row
from market_data_store.positions import printable
from market_data_store.signals import Sessions

OUTCOMES: Final = ("running", "done", "failed", "interrupted", "abandoned")
HEARTBEAT_S: Final = 10.0
STALE_AFTER: Final = timedelta(seconds=60)

_log = structlog.get_logger(__name__)

_START: Final[LiteralString] = """
    INSERT INTO job_runs (job, command, args, host, pid, version, started_at, heartbeat_at)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s) RETURNING id
"""
_BEAT: Final[LiteralString] = """
    UPDATE job_runs SET heartbeat_at = %s, counters = %s, outcome = 'running'
    WHERE id = %s AND finished_at IS NULL
"""
_FINISH: Final[LiteralString] = """
    UPDATE job_runs SET heartbeat_at = %s, finished_at = %s, outcome = %s, error = %s, counters = %s
    WHERE id = %s AND finished_at IS NULL
"""
_ABANDON: Final[LiteralString] = """
    UPDATE job_runs SET outcome = 'abandoned' WHERE outcome = 'running' AND heartbeat_at < %s RETURNING id
"""
_LIST: Final[LiteralString] = """
    SELECT id, job, command, args, host, pid, version, started_at, heartbeat_at, finished_at, outcome, error,
           counters
    FROM job_runs WHERE (%s::text IS NULL OR outcome = %s::text) AND (%s::text IS NULL OR job = %s::text)
    ORDER BY started_at DESC, id DESC LIMIT %s
"""


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One run as it is stored."""

    id: int
    job: str
    command: str
    args: list[str]
    host: str
    pid: int
    version: str
    started_at: datetime
    heartbeat_at: datetime
    finished_at: datetime | None
    outcome: str
    error: str | None
    counters: dict[str, Any]


class JobRunTracker:
    """Records one run, as a context manager around it.

    ``counters`` is asked for the numbers of each heartbeat. ``command`` and ``args`` are stored as given: the
    caller takes secrets out. The outcome is ``done``; ``interrupted`` after a cancellation or Ctrl-C;
    ``failed`` with the error's text after any other exception, which goes on. A store that is away delays
    heartbeats and may leave the outcome unwritten, but never fails the job.
    """

    def __init__(
        self,
        sessions: Sessions,
        job: str,
        *,
        command: str = "",
        args: Sequence[str] = (),
        counters: Callable[[], Mapping[str, Any]] = dict,
        clock: Clock | None = None,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._sessions = sessions
        self._job = job
        self._command = command
        self._args = list(args)
        self._counters = counters
        self._clock = clock or SystemClock()
        self._every = heartbeat_s
        self._beating: asyncio.Task[None] | None = None
        self._id: int | None = None

    @property
    def id(self) -> int:
        """The run's number in ``job_runs``."""
        if self._id is None:
            raise RuntimeError("the run is not started: use `async with`")
        return self._id

    async def __aenter__(self) -> Self:
        now = moment(self._clock.now())
        values = (self._job, self._command, Jsonb(self._args), socket.gethostname(), os.getpid(), __version__)
        await abandon(self._sessions, self._clock.now())
        async with self._sessions.session() as connection:
            cursor = await connection.execute(_START, (*values, now, now))
            (self._id,) = await one_row(cursor)
        self._beating = asyncio.create_task(self._beat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._beating is not None:
            await end(self._beating)
            if not self._beating.cancelled():
                self._beating.result()
        if error is None:
            outcome, text = "done", None
        elif isinstance(error, (asyncio.CancelledError, KeyboardInterrupt)):
            outcome, text = "interrupted", None
        else:
            outcome, text = "failed", printable(f"{type(error).__name__}: {error}")
        # Also when this task is being cancelled: the outcome is what the audit is for.
        await asyncio.shield(self._finish(outcome, text))

    async def heartbeat(self) -> None:
        """Write a heartbeat with the present counters.

        Raises:
            StoreUnavailable, StoreError: it could not be written.
        """
        now = moment(self._clock.now())
        async with self._sessions.session() as connection:
            await connection.execute(_BEAT, (now, Jsonb(dict(self._counters())), self.id))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            try:
                await self.heartbeat()
            except StoreError as error:
                _log.warning("job.heartbeat_missed", job=self._job, run=self._id, reason=str(error))

    async def _finish(self, outcome: str, text: str | None) -> None:
        now = moment(self._clock.now())
        values = (now, now, outcome, text, Jsonb(dict(self._counters())), self.id)
        try:
            async with self._sessions.session() as connection:
                await connection.execute(_FINISH, values)
        except StoreError as error:
            _log.warning(
                "job.outcome_not_stored", job=self._job, run=self._id, outcome=outcome, reason=str(error)
            )


async def abandon(sessions: Sessions, now: int, stale_after: timedelta = STALE_AFTER) -> list[int]:
    """Mark the runs that have not been heard of for ``stale_after`` before ``now`` (ns UTC); their ids."""
    async with sessions.session() as connection:
        rows = await (await connection.execute(_ABANDON, (moment(now) - stale_after,))).fetchall()
    return [run for (run,) in rows]


async def jobs(
    sessions: Sessions, *, outcome: str | None = None, job: str | None = None, limit: int = 50
) -> list[JobRecord]:
    """The newest runs first."""
    async with sessions.session() as connection:
        rows = await (await connection.execute(_LIST, (outcome, outcome, job, job, limit))).fetchall()
    return [JobRecord(*row) for row in rows]
