"""One run of one program, watched from outside: when it began and ended, its CPU time and its memory.

It begins when the first record is consumed: a program says so itself, in one line on stdout; of mdp it is when it takes
the partition, which is just before. It ends when the last bar was committed, by PostgreSQL's own note of the time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

import psutil

from benchmarks.measure import Measured
from benchmarks.peers import oracle
from benchmarks.peers.contenders import Contender, start_of
from benchmarks.peers.given import FIRST, LAST
from benchmarks.peers.stage import Stage, Topic

POLL: Final = 0.05
STALL: Final = 60.0
"""A program that stores nothing new for so long does not go on."""


class ProgramFailed(Exception):
    """It ended with an error, or did nothing; the message has what it said."""


class Watched:
    """A process. ``marks``: what it has told, by name: the time it named, and its CPU seconds then."""

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path) -> None:
        self._log = folder / "stderr"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                env=os.environ | environment,
                text=True,
            )
        self._about = psutil.Process(self._process.pid)
        self.marks: dict[str, tuple[float, float]] = {}
        self.peak_bytes = 0
        self.seconds = 0.0
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            name, _, at = line.partition(" ")
            if name in (FIRST, LAST):
                self.look()
                self.marks[name] = (float(at), self.seconds)

    @property
    def alive(self) -> bool:
        """Asked without reaping it: what it used is there until :meth:`end`."""
        try:
            return self._about.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def look(self) -> None:
        """Note its CPU time and memory so far."""
        try:
            times = self._about.cpu_times()
            # Not ru_maxrss, which on Linux a process inherits from the one that started it.
            status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        except (psutil.Error, OSError):
            return
        self.seconds = max(self.seconds, times.user + times.system)
        if "VmHWM:" in status:
            self.peak_bytes = int(status.split("VmHWM:")[1].split()[0]) * 1024

    def end(self) -> int:
        """Stop it, if it has not ended; its exit code."""
        if self.alive:
            self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._listener.join()
        return code

    def said(self) -> str:
        """The end of what it wrote to stderr."""
        return self._log.read_text(encoding="utf-8", errors="replace").strip()[-1500:]


def run(contender: Contender, python: Path, stage: Stage, topic: Topic) -> Measured:
    """Run it once; ``more["differences"]``: what is wrong with its bars.

    Raises:
        ProgramFailed: it did not get to the end of the topic.
    """
    stage.clear()
    start = start_of(contender, python, stage, topic)
    with tempfile.TemporaryDirectory(prefix="mdp-peer-") as name:
        watched = Watched(start.command, start.environment, Path(name))
        try:
            began = postgres = None
            counted, news = 0, time.monotonic()
            while counted < topic.events and LAST not in watched.marks:
                alive = watched.alive
                watched.look()
                if began is None:
                    at = start.began() if start.began else watched.marks.get(FIRST, (None,))[0]
                    if at is not None:
                        cpu = watched.marks[FIRST][1] if FIRST in watched.marks else watched.seconds
                        began, postgres = (at, cpu), stage.postgres_seconds()
                if contender.kind != "floor":
                    now = stage.counted(contender.table, topic)
                    if now != counted:
                        counted, news = now, time.monotonic()
                if not alive or time.monotonic() - news > STALL:
                    break
                time.sleep(POLL if began else 0.005)
            watched.look()
            postgres_after = stage.postgres_seconds()
        finally:
            code = watched.end()
        said = watched.said()
    last = watched.marks.get(LAST)
    ended = last[0] if last else stage.committed_at(contender.table, topic)
    if began is None or postgres is None or ended is None:
        raise ProgramFailed(f"{contender.label} made nothing (exit code {code}): {said or 'it said nothing'}")
    events = topic.events if contender.kind == "floor" else stage.counted(contender.table, topic)
    cpu_seconds = (last[1] if last else watched.seconds) - began[1]
    wrong = [] if contender.kind == "floor" else oracle.differences(stage.bars(contender.table), topic.bars)
    spent = {"client": round(cpu_seconds, 4), "postgres": round(postgres_after - postgres, 4)}
    return Measured(events, ended - began[0], spent, 0, watched.peak_bytes, {"differences": wrong})
