"""A Redis master with a replica, and a Sentinel that makes the replica master when the master dies."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

from tests.servers import free_port
from tests.servers.redis import RedisServer
from tests.servers.redis_cluster import told, until

SERVICE: Final = "market"


class SentinelService:
    """``password`` is that of the servers and of the Sentinel alike."""

    def __init__(self, folder: Path, password: str) -> None:
        login = ["--masterauth", password, "--repl-diskless-sync-delay", "0"]
        self.password = password
        self.master = RedisServer("7", password=password, options=login)
        self.replica = RedisServer(
            "7", password=password, options=[*login, "--replicaof", f"127.0.0.1 {self.master.port}"]
        )
        self._file = folder / "sentinel.conf"
        self._file.write_text(
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.master.port} 1\n"
            f"sentinel auth-pass {SERVICE} {password}\n"
            f"sentinel down-after-milliseconds {SERVICE} 500\n"
            f"sentinel failover-timeout {SERVICE} 2000\n"
        )
        self.sentinel = RedisServer("7", password=password, first=[str(self._file), "--sentinel"])
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.master)
            stack.enter_context(self.replica)
            until(
                lambda: told(self.replica, "INFO", "replication").get("master_link_status") == "up",
                "the replica does not follow",
            )
            stack.enter_context(self.sentinel)
            until(
                lambda: "slaves=1" in told(self.sentinel, "INFO", "sentinel")["master0"],
                "the Sentinel does not see the replica",
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        for server in (self.master, self.replica, self.sentinel):
            server.kill9()
        self._stack.close()

    @property
    def uri(self) -> str:
        # The first of the Sentinels is not there.
        sentinels = f"127.0.0.1:{free_port()},127.0.0.1:{self.sentinel.port}"
        options = f"sentinel_password={self.password}"
        return f"redis+sentinel://:{self.password}@{sentinels}/{SERVICE}/0?{options}"
