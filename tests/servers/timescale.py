"""TimescaleDB in WebAssembly: the real extension, one connection at a time, no COPY, no background workers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Self

import psycopg
from psycopg import sql

from tests.servers import ServerMissing, cache_folder, cached, free_port, install

_OWN_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
_SOURCE = Path(__file__).parent / "timescale"


def _installed() -> Path:
    """The folder with the server's packages and script."""
    with cached("timescale-2.23") as (folder, scratch):
        if scratch is not None:
            shutil.copy(_SOURCE / "package.json", scratch)
            command = ["npm", "install", "--force", "--no-audit", "--no-fund", "--ignore-scripts"]
            install(command, scratch, "TimescaleDB")
    shutil.copy(_SOURCE / "server.mjs", folder)
    return folder


class TimescaleServer:
    """One server process, its data in memory."""

    def __init__(self) -> None:
        if shutil.which("node") is None:
            raise ServerMissing("TimescaleDB runs in node, which is not installed")
        self.port = free_port()
        self._folder = _installed()
        self._process: subprocess.Popen[str] | None = None

    def url(self) -> str:
        return f"postgresql://postgres:postgres@127.0.0.1:{self.port}/postgres?sslmode=disable"

    def __enter__(self) -> Self:
        command = ["node", "server.mjs", str(self.port)]
        self._process = subprocess.Popen(
            command, cwd=self._folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self._process.stdout is not None
        lines = []
        for line in self._process.stdout:
            if line.strip() == "ready":
                return self
            lines.append(line)
        self.__exit__()
        raise AssertionError(f"TimescaleDB did not start: {''.join(lines)[-2000:]}")

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=30)
            assert self._process.stdout is not None
            self._process.stdout.close()

    def reset(self) -> None:
        """Back to an empty database with the extension, which one session cannot create twice."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            aggregates = "SELECT view_name FROM timescaledb_information.continuous_aggregates"
            for (name,) in connection.execute(aggregates).fetchall():
                drop = sql.SQL("DROP MATERIALIZED VIEW IF EXISTS {} CASCADE")
                connection.execute(drop.format(sql.Identifier(name)))
            for (name,) in connection.execute(_OWN_TABLES).fetchall():
                connection.execute(sql.SQL("DROP TABLE {} CASCADE").format(sql.Identifier(name)))


def warm_cache() -> None:
    """Fetch the packages now; a CI job calls this before its tests."""
    _installed()
    print(cache_folder())


if __name__ == "__main__":
    warm_cache()
