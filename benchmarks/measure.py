"""One measured thing in one process of its own, so that its memory and CPU time are its own."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

ROOT: Final = Path(__file__).resolve().parent.parent
TIMEOUT: Final = 240.0


@dataclass(slots=True)
class Measured:
    """One run. ``events``: events or rows done in ``seconds``. ``cpu``: CPU seconds by process (``client`` is the one
    measured). ``peak_bytes``: the client's largest resident memory; ``base_bytes``: before the first record."""

    events: int
    seconds: float
    cpu: dict[str, float]
    base_bytes: int = 0
    peak_bytes: int = 0
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.events / self.seconds

    @property
    def cpu_per_million(self) -> float:
        """CPU seconds of the client for a million events."""
        return self.cpu["client"] / self.events * 1e6


class Stopwatch:
    """Wall time, and CPU time of this process and of the servers, from :meth:`start` to the last :meth:`lap`."""

    def __init__(self, servers: dict[str, int]) -> None:
        self._pids = servers
        self._servers: dict[str, list[psutil.Process]] = {}
        self._began = self._ended = (0.0, {})  # type: tuple[float, dict[str, float]]
        self.base_bytes = 0

    def start(self) -> None:
        """Begin; the first call counts."""
        if self._servers:
            return
        self.base_bytes = psutil.Process().memory_info().rss
        for name, pid in self._pids.items():
            server = psutil.Process(pid)
            self._servers[name] = [server, *server.children(recursive=True)]
        self._began = self._now()

    def lap(self) -> None:
        self._ended = self._now()

    def result(self, events: int, **more: Any) -> Measured:
        (began, before), (ended, after) = self._began, self._ended
        cpu = {name: round(after[name] - before[name], 4) for name in after}
        return Measured(events, ended - began, cpu, self.base_bytes, peak_bytes(), more)

    def _now(self) -> tuple[float, dict[str, float]]:
        cpu = {name: _cpu_of(server) for name, server in self._servers.items()}
        return time.perf_counter(), {"client": time.process_time(), **cpu}


def _cpu_of(server: list[psutil.Process]) -> float:
    """CPU seconds of a server's processes."""
    total = 0.0
    for process in server:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def peak_bytes() -> int:
    """The largest resident memory of this process so far."""
    try:
        # Not ru_maxrss, which on Linux a process inherits from the one that started it.
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


Task = Callable[[dict[str, Any]], Awaitable[Measured]]


def measure(task: str, **given: Any) -> Measured:
    """Run ``task`` (``module:function`` of this package) in a new process.

    Raises:
        RuntimeError: it failed; the message has what it said.
    """
    module, _, function = task.partition(":")
    command = [sys.executable, "-m", "benchmarks.measure", module, function, json.dumps(given)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{task} failed:\n{done.stderr.strip()}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _main(module: str, function: str, given: str) -> None:
    from importlib import import_module

    task: Task = getattr(import_module(f"benchmarks.{module}"), function)

    async def run() -> Measured:
        async with asyncio.timeout(TIMEOUT - 10):
            return await task(json.loads(given))

    print(json.dumps(asdict(asyncio.run(run()))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
