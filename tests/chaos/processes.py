"""The processes under test: started in the background, watched, hit, and ended whatever happens."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.waiting import until

_FENCED = "a newer owner holds the partition"


STOPPED_AT_ITS_START = (143, -signal.SIGTERM)
"""Exit codes of a command that had nothing to give back yet."""


class Process:
    """One process of the deployment, with its output in files."""

    def __init__(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], folder: Path, *, talks: bool = False
    ) -> None:
        self.name = name
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        self.killed_at: float | None = None
        self.dismissed = False
        with self.out.open("wb") as out, self.err.open("wb") as err:
            stdin = subprocess.PIPE if talks else subprocess.DEVNULL
            self._popen = subprocess.Popen(
                [sys.executable, *argv], stdin=stdin, stdout=out, stderr=err, env=dict(env)
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._popen.poll()

    def tell(self, line: str) -> None:
        """Write a line to its stdin."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(f"{line}\n".encode())
        self._popen.stdin.flush()

    def kill(self) -> None:
        """``kill -9``."""
        self.killed_at = time.monotonic()
        self._popen.kill()
        self._popen.wait()

    async def pause(self) -> None:
        """SIGSTOP, and wait until it stands."""
        self._popen.send_signal(signal.SIGSTOP)
        process = psutil.Process(self.pid)
        await until(f"{self.name} stops", 5, lambda: process.status() == psutil.STATUS_STOPPED)

    def go_on(self) -> None:
        """SIGCONT."""
        self._popen.send_signal(signal.SIGCONT)

    def dismiss(self) -> None:
        """SIGTERM: it may leave in order."""
        self.dismissed = True
        self._popen.terminate()

    async def gone(self, seconds: float, *, codes: tuple[int, ...] = (0,)) -> None:
        """Wait for its end, which must be a good one.

        Raises:
            AssertionError: it did not end in time, or with another code than ``codes``.
        """
        await until(f"{self.name} ends", seconds, lambda: self.code is not None)
        assert self.code in codes, f"{self.name} ended with {self.code}: {self.last_words()}"

    def result(self) -> dict[str, Any]:
        """The JSON object that it printed at its end."""
        lines = self.out.read_text().splitlines()
        assert lines, f"{self.name} printed no result: {self.last_words()}"
        found: dict[str, Any] = json.loads(lines[-1])
        return found

    def fenced(self) -> int:
        """Writes that were refused to it, by its log."""
        return self.err.read_text().count(_FENCED)

    def last_words(self) -> str:
        """The end of its log."""
        return " / ".join(self.err.read_text().splitlines()[-6:])[-1500:] or "nothing was logged"

    def end(self) -> None:
        """Make sure that it is gone, stopped or not."""
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.wait()
        if self._popen.stdin is not None:
            self._popen.stdin.close()
