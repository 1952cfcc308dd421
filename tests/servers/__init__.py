"""Real servers for tests: each on a free loopback port, in a folder of its own, stopped at the end."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


class ServerMissing(Exception):
    """The server's program is not on this machine and could not be had; the message says why."""


def cache_folder() -> Path:
    """Where downloaded servers are kept between runs, outside of the repository.

    Root has it where an unprivileged user can read it, since PostgreSQL refuses to run as root.
    """
    override = os.environ.get("MDP_TEST_SERVERS")
    if override:
        folder = Path(override)
    elif os.geteuid() == 0:
        folder = Path("/var/cache/mdp-test-servers")
    else:
        folder = Path.home() / ".cache" / "mdp-test-servers"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def cached(name: str) -> Iterator[tuple[Path, Path | None]]:
    """``(folder, None)`` when ``name`` is in the cache, else ``(folder, scratch)``: what the block leaves in
    ``scratch`` becomes ``folder``, whole or not at all. Several test runs may come at the same time."""
    folder = cache_folder() / name
    with FileLock(folder.with_name(f"{name}.lock")):
        if folder.is_dir():
            yield folder, None
            return
        scratch = folder.with_name(f"{name}.part")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        yield folder, scratch
        scratch.rename(folder)


def freeze(pid: int) -> None:
    """SIGSTOP, and wait until every thread stands: one that runs on another core may still answer somebody."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while not all(_state(task) in "TZX" for task in Path(f"/proc/{pid}/task").iterdir()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {pid} does not stand still")
        time.sleep(0.001)


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def install(command: Sequence[str], cwd: Path, what: str) -> None:
    """Run a package client.

    Raises:
        ServerMissing: the client is not installed, or it failed.
    """
    if shutil.which(command[0]) is None:
        raise ServerMissing(f"{what} needs {command[0]}, which is not installed")
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        tail = (done.stdout + done.stderr).strip()[-400:]
        raise ServerMissing(f"{what} could not be installed with {command[0]}: {tail}")


_given: set[int] = set()


def free_port() -> int:
    """A loopback port that nobody listens on now, below those that connections are given: one of them might take it
    before the server does."""
    for _ in range(1000):
        port = 12_000 + secrets.randbelow(20_000)
        if port in _given:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port
    raise AssertionError("no loopback port is free")
