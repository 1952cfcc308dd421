"""Ends what a run has started, should the harness itself be killed.

Started with the home of the servers, it waits for the end of its stdin, which comes with the harness's, however that
ends. What runs with that home then is ended, and counted on stdout: nothing, after an orderly end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

import psutil

from market_data_pipeline import embedded


class Reaper:
    """A process of its own, in a session of its own, so that no signal meant for the harness ends it too."""

    def __init__(self, home: Path) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", __name__, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        out, _ = self._popen.communicate(timeout=120)
        if exc[0] is None:
            assert out.strip() == b"0", f"{out.decode().strip()} processes were left behind"


def _users(home: Path) -> list[psutil.Process]:
    """Processes that work with this home, without this one."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("MDP_HOME") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _reap(home: Path) -> int:
    left = _users(home)
    for process in left:
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs(left, timeout=10)
    return len(left) + sum(service.stop() for service in embedded.services(home))


if __name__ == "__main__":
    sys.stdin.buffer.read()
    count = _reap(Path(sys.argv[1]))
    with contextlib.suppress(BrokenPipeError):  # nobody may be left to read it
        os.write(1, f"{count}\n".encode())
