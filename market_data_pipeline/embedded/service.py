"""The life of one embedded server, whatever it serves.

On disk, for a service NAME: ``NAME.json`` (port, password and last process id, mode 0600), ``NAME.lock``
(held while one process starts or stops it), ``NAME.running`` (locked by the server itself for as long as any of
its processes lives), ``NAME.log``, ``NAME/`` (its data) and ``NAME.new/`` (data in the making). The truth about what
runs is the process table: a server is ours when its working directory is that data folder. So a stale id, a killed
starter or a lost file never leads to a second server on the same data; and neither does another container with the same
volume, whose processes cannot be seen, since the lock can.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO, ClassVar, Final

import psutil
from filelock import FileLock, Timeout

from market_data_core.errors import EmbeddedError
from market_data_pipeline.embedded import spawn

LOCK_SECONDS: Final = 180.0
"""How long to wait for another process that starts or stops the same server."""
READY_SECONDS: Final = 120.0
"""How long a server may take to recover what a crash left."""
UNSEEN_SECONDS: Final = 5.0
"""How long a process of a killed starter may take to become the server program that it is to run."""
LEAST_FREE_BYTES: Final = 128 * 1024 * 1024
LOG_BYTES: Final = 16 * 1024 * 1024
# Below the range from which systems hand out ports by themselves, so that a server that is down keeps its own.
PORTS: Final = range(20_000, 32_000)


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered of a service from one start to the next."""

    port: int
    password: str
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """One service, for people."""

    name: str
    running: bool
    pid: int | None
    port: int | None
    uptime_s: float | None
    data_bytes: int
    path: str


class Service(ABC):
    """One embedded server of one home."""

    name: ClassVar[str]
    programs: ClassVar[frozenset[str]]
    """Names of its processes in the process table."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.data = home / self.name
        self._new = home / f"{self.name}.new"
        self.log = home / f"{self.name}.log"
        self._state_file = home / f"{self.name}.json"
        self._running = home / f"{self.name}.running"

    # --- what a server has to say for itself --------------------------------------------------------------

    @abstractmethod
    def _prepare(self, state: State, account: spawn.Account | None, forgotten: bool, lock: int) -> None:
        """Make the data folder usable, if it is not; when the password was ``forgotten``, make it the new one. All
        programs that this takes inherit ``lock``."""

    @abstractmethod
    def _command(self, state: State, account: spawn.Account | None) -> tuple[list[str], bytes]:
        """The server's command line, without secrets, and what it reads on stdin."""

    @abstractmethod
    def _ready(self, state: State, pid: int) -> bool:
        """Whether the server answers; never blocks for more than a second."""

    @abstractmethod
    def _ask_to_stop(self, server: psutil.Process) -> float:
        """Begin an orderly stop; return how many seconds it may take."""

    @abstractmethod
    def _url(self, state: State) -> str: ...

    # --- life cycle ---------------------------------------------------------------------------------------

    def start(self) -> str:
        """The URL of the running server, started if it was not. Holds the password.

        Raises:
            EmbeddedError: it cannot run here, and why.
        """
        try:
            state = self._load()
            if state is not None and (server := self._server(state)) and self._ready(state, server.pid):
                return self._url(state)
            self._make_home()
            with self.lock():
                return self._url(self._start_locked())
        except OSError as error:
            raise EmbeddedError(self._explain(error)) from error

    def stop(self) -> bool:
        """Stop the server and wait until none of its processes is left; whether one was running.

        Raises:
            EmbeddedError: a process could not be stopped.
        """
        if not self.home.exists():
            return False
        try:
            with self.lock():
                return self._stop_locked()
        except OSError as error:
            raise EmbeddedError(self._explain(error)) from error

    def status(self) -> Status:
        """How it is, without starting anything."""
        state = self._load()
        server = self._server(state)
        size = _tree_bytes(self.data)
        port = state.port if state else None
        if server is None:
            return Status(self.name, False, None, port, None, size, str(self.data))
        return Status(
            self.name, True, server.pid, port, time.time() - server.create_time(), size, str(self.data)
        )

    def url(self) -> str | None:
        """The URL while the server runs; None while it does not."""
        state = self._load()
        return self._url(state) if state is not None and self._server(state) else None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold what only one process of this home may do at a time to this service."""
        try:
            with FileLock(self.home / f"{self.name}.lock", timeout=LOCK_SECONDS, mode=0o600):
                yield
        except Timeout:
            raise EmbeddedError(
                f"another mdp process has been starting the embedded {self.name} for {LOCK_SECONDS:.0f} s; "
                f"stop it, or read {self.log}"
            ) from None

    def _start_locked(self) -> State:
        state = self._load()
        if state is not None and (server := self._server(state)):
            self._wait_ready(state, server.pid)
            return state
        self._end_strays()
        self._require_space()
        account = spawn.account()
        forgotten = state is None
        state = state or State(port=0, password=secrets.token_urlsafe(24))
        for _ in range(5):
            state = replace(state, port=_free_port(state.port), pid=None)
            self._save(state)  # before the server has it: a starter that dies here leaves nothing unknown
            with self._sole() as lock:
                self._prepare(state, account, forgotten, lock.fileno())
                pid = self._spawn(state, account, lock.fileno())
            state = replace(state, pid=pid)
            self._save(state)
            if self._wait_ready(state, pid):
                return state
        raise EmbeddedError(
            f"no free port was found for the embedded {self.name} on 127.0.0.1; free one and try again"
        )

    def _spawn(self, state: State, account: spawn.Account | None, lock: int) -> int:
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        argv, stdin = self._command(state, account)
        return spawn.detached(argv, cwd=self.data, stdin=stdin, log=self.log, account=account, lock=lock)

    def _wait_ready(self, state: State, pid: int) -> bool:
        """True when it answers; False when its port was taken in between; raises when it gave up."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if self._ready(state, pid):
                return True
            if not _alive(pid):
                said = _last_words(self.log)
                if "in use" in said:
                    return False
                if "o space left" in said:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.data))
                raise EmbeddedError(
                    f"the embedded {self.name} did not start: {said or 'it said nothing'}; see {self.log}"
                )
            time.sleep(0.01)
        raise EmbeddedError(
            f"the embedded {self.name} has not been ready for {READY_SECONDS:.0f} s; see {self.log}, then try again"
        )

    def _stop_locked(self) -> bool:
        server = self._server(self._load())
        found = server is not None
        if server is not None:
            seconds = self._ask_to_stop(server)
            _wait_gone([server], seconds)
        found = self._end_strays() or found
        self._sole().close()
        return found

    # --- processes ----------------------------------------------------------------------------------------

    def _server(self, state: State | None) -> psutil.Process | None:
        """The main process of the running server: the remembered one, or else found by its folder."""
        if not self.data.is_dir():
            return None
        if state is not None and state.pid is not None and self._is_ours(state.pid):
            return psutil.Process(state.pid)
        ours = self._processes()
        ids = {process.pid for process in ours}
        heads = [process for process in ours if _parent(process) not in ids]
        return next((p for p in heads if self._works_here(p) and self._is_server(p, state)), None)

    @abstractmethod
    def _is_server(self, process: psutil.Process, state: State | None) -> bool:
        """Whether a process found by its folder is the server itself, not a child that a killed one left."""

    def _is_ours(self, pid: int) -> bool:
        try:
            process = psutil.Process(pid)
            return process.name() in self.programs and _alive(pid) and self._works_here(process)
        except psutil.Error:
            return False

    def _works_here(self, process: psutil.Process) -> bool:
        if not Path("/proc/self/cwd").exists():
            return process.cwd() == str(self.data.resolve())
        try:  # by identity: the folder may have been deleted and made again under the same name
            return os.path.samefile(f"/proc/{process.pid}/cwd", self.data)
        except OSError:
            return False

    def _processes(self) -> list[psutil.Process]:
        """Every process of this service in its data folders, also when these were deleted under them."""
        found = []
        paths = {str(folder.resolve()) for folder in (self.data, self._new)}
        for process in psutil.process_iter(["name"]):
            if process.info["name"] not in self.programs:
                continue
            try:
                if process.cwd() in paths and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def _sole(self) -> BinaryIO:
        """The lock that says that no process of this service is left, to be inherited by those that come.

        Who was started by a killed starter is not to be known by its name at first, only by the lock it holds.
        """
        deadline = time.monotonic() + UNSEEN_SECONDS
        while (lock := spawn.lock(self._running)) is None:
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"{self.data} is used by a server that cannot be seen from here, as in another container; "
                    "stop it there, or set MDP_HOME to another directory"
                )
            if not self._end_strays():
                time.sleep(0.01)
        return lock

    def _end_strays(self) -> bool:
        """Wait for what is left of a killed server to go, and end what does not; whether there was any."""
        left = self._processes()
        if not left:
            return False
        left = _wait_gone(left, 1)
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        if left := _wait_gone(left, 10):
            ids = ", ".join(str(process.pid) for process in left)
            raise EmbeddedError(
                f"the embedded {self.name} left processes that cannot be ended ({ids}); end them by hand"
            )
        return True

    # --- files --------------------------------------------------------------------------------------------

    def _make_home(self) -> None:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _load(self) -> State | None:
        try:
            return State(**json.loads(self._state_file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise EmbeddedError(self._explain(error)) from error
        except (ValueError, TypeError):
            raise EmbeddedError(
                f"{self._state_file} is damaged; run `mdp dev down` if it still runs, delete that file and try again"
            ) from None

    def _save(self, state: State) -> None:
        new = self._state_file.with_suffix(".json.new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(state), file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._state_file)

    def _require_space(self) -> None:
        free = psutil.disk_usage(str(self.home)).free
        if free < LEAST_FREE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.home))

    def _explain(self, error: OSError) -> str:
        where = error.filename or self.home
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"the disk of {self.home} is full, and the embedded {self.name} needs {LEAST_FREE_BYTES >> 20} MB; "
                "free some, or set MDP_HOME to a directory on another disk"
            )
        return (
            f"the embedded {self.name} cannot use {where} ({error.strerror}); set MDP_HOME to a directory of yours, "
            "or REDIS_URI and DATABASE_URL to servers of your own"
        )


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False


def _wait_gone(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait until they have ended, zombies included; those that have not."""
    deadline = time.monotonic() + seconds
    while (
        left := [p for p in processes if p.is_running() and _alive(p.pid)]
    ) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None


def _free_port(preferred: int) -> int:
    """The preferred port if nobody has it, else another at random."""
    candidates = [preferred] if preferred else []
    candidates += [secrets.choice(PORTS) for _ in range(200)]
    for port in candidates:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise EmbeddedError(
        f"no port from {PORTS.start} to {PORTS.stop - 1} is free on 127.0.0.1; free one and try again"
    )


def _last_words(log: Path) -> str:
    """The last line in a server's log that says what went wrong, or just the last."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    lines = [" ".join(line.split()) for line in lines if line.strip()]
    telling = [
        line
        for line in lines
        if any(word in line for word in ("FATAL", "PANIC", "rror", "in use", "space left"))
    ]
    return (telling or lines or [""])[-1][:300]


def _tree_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; files that vanish meanwhile do not count."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                continue
    return total
