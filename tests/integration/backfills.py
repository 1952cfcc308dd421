"""The command as a process, and what it leaves in a database, for the tests of backfills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg.rows import tuple_row
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

VALUES = (
    "provider, symbol, interval, ts, open, high, low, close, volume, volume_lo, notional, notional_lo, vwap, "
    "n_events, first_ts, first_seq, last_ts, last_seq, revision"
)


@dataclass(frozen=True, slots=True)
class Command:
    """``mdp backfill`` in ``folder`` on the database at ``url``."""

    folder: Path
    url: str

    def start(self, *args: str) -> subprocess.Popen[str]:
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("MDP_", "REDIS_", "DATABASE_"))}
        env = keep | {
            "MDP_HOME": str(self.folder / "home"),
            "DATABASE_URL": self.url,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        command = [sys.executable, "-m", "market_data_pipeline.cli.app", "backfill", "--json", *args]
        return subprocess.Popen(
            command, env=env, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *args: str, code: int = 0) -> dict[str, Any]:
        """Its summary."""
        return self.end(self.start(*args), code)

    def end(self, process: subprocess.Popen[str], code: int = 0) -> dict[str, Any]:
        """The summary of a run that was started."""
        out, err = process.communicate(timeout=240)
        assert process.returncode == code, (out, err)
        summary: dict[str, Any] = json.loads(out.splitlines()[-1])
        return summary

    def rows(self, columns: str = VALUES) -> list[tuple[Any, ...]]:
        """All bars, in the order of their key."""
        with psycopg.connect(self.url, row_factory=tuple_row) as connection:
            query = f"SELECT {columns} FROM bars_ohlcv ORDER BY interval, symbol, ts, provider"
            return connection.execute(query.encode()).fetchall()

    def versions(self) -> list[tuple[Any, ...]]:
        """What changes when a row is written, even if its values do not."""
        return self.rows("interval, symbol, ts, provider, xmin::text, ctid::text")

    def finished(self) -> int:
        """How many tasks are marked."""
        with psycopg.connect(self.url, row_factory=tuple_row) as connection:
            found = connection.execute("SELECT count(*) FROM stream_positions WHERE lane = 'done'").fetchone()
        return int(found[0]) if found else 0

    def living_owners(self) -> int:
        """How many of the processes that have ever claimed a task on this machine live."""
        with psycopg.connect(self.url, row_factory=tuple_row) as connection:
            owners = connection.execute("SELECT DISTINCT owner FROM stream_claims").fetchall()
        return sum(_lives(int(owner.rpartition("-")[2])) for (owner,) in owners)

    @contextmanager
    def held(self, after: int, workers: int = 2) -> Iterator[None]:
        """Once ``after`` tasks are marked, the table of bars is locked until the end of the block, which begins when
        so many workers wait for it: they are in the middle of a task then, however fast the machine is."""
        until(lambda: self.finished() >= after)
        with psycopg.connect(self.url, row_factory=tuple_row) as connection:
            connection.execute("LOCK TABLE bars_ohlcv IN SHARE ROW EXCLUSIVE MODE")
            until(lambda: _waiting(connection) >= workers)
            yield


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; fail when it does not come true in time."""
    Retrying(retry=retry_if_result(lambda so: not so), wait=wait_fixed(0.02), stop=stop_after_delay(120))(
        condition
    )


def _waiting(connection: psycopg.Connection[Any]) -> int:
    """How many sessions wait for a lock."""
    query = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database WHERE NOT granted AND datname = %s"
    found = connection.execute(query, (connection.info.dbname,)).fetchone()
    return int(found[0]) if found else 0


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The worker processes of a run on this machine."""
    return [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if any("spawn_main" in word for word in _cmdline(child))
    ]


def _cmdline(process: psutil.Process) -> Sequence[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return ()
