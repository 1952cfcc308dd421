"""A real Prometheus: started on a configuration, asked over HTTP."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.servers import ServerMissing, free_port


def program(name: str) -> str:
    """The path of ``prometheus`` or ``promtool``.

    Raises:
        ServerMissing: it is not installed.
    """
    found = shutil.which(name)
    if found is None:
        raise ServerMissing(f"{name} is not installed (Debian package prometheus)")
    return found


class Prometheus:
    """Asks a server; every answer must be a success."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **query: str) -> Any:
        """``data`` of an answer of its HTTP API.

        Raises:
            AssertionError: it refused, with what it said.
        """
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - http only
                body = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode()}") from None
        assert body["status"] == "success"
        return body["data"]

    def values(self, expr: str) -> list[float]:
        """The value of each series of an instant query."""
        return [float(series["value"][1]) for series in self.get("query", query=expr)["result"]]


@contextmanager
def running(config: Path, folder: Path) -> Iterator[Prometheus]:
    """A server with ``config``, on a free port, until the end of the block.

    Raises:
        ServerMissing: it is not installed.
    """
    port = free_port()
    command = [
        program("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    said = folder / "prometheus.log"
    with said.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, cwd=folder) as process:
        try:
            server = Prometheus(f"http://127.0.0.1:{port}")
            _wait(server, process, said)
            yield server
        finally:
            process.kill()


def _wait(server: Prometheus, process: subprocess.Popen[bytes], said: Path) -> None:
    deadline = time.monotonic() + 15
    while True:
        try:
            with urllib.request.urlopen(f"{server.url}/-/ready", timeout=2):  # noqa: S310
                return
        except OSError:
            gave_up = process.poll() is not None or time.monotonic() > deadline
            assert not gave_up, f"Prometheus did not start: {said.read_text()[-800:]}"
            time.sleep(0.05)
