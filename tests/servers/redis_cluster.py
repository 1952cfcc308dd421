"""A Redis Cluster of this machine: masters with an equal share of the slots each, and replicas if wanted."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Final, Self

import pytest
import redis

from tests.servers import ServerMissing, free_port
from tests.servers.redis import RedisServer

SLOTS: Final = 16_384
PATIENCE: Final = 30.0


class RedisCluster:
    """``nodes`` are the masters, then one replica for each of the first ``replicas`` masters."""

    def __init__(
        self,
        masters: int = 3,
        *,
        replicas: int = 0,
        password: str | None = None,
        options: Sequence[str] = (),
        node_timeout_ms: int = 1000,
    ) -> None:
        settings = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(node_timeout_ms)]
        settings += ["--repl-diskless-sync-delay", "0"]
        login = ["--masterauth", password] if password else []
        self._masters = masters
        self.nodes = [
            RedisServer(
                "7",
                password=password,
                options=[*settings, "--cluster-port", str(free_port()), *login, *options],
            )
            for _ in range(masters + replicas)
        ]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(node)
            self._form()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        for node in self.nodes:
            # A replica that is about to write its first file does not end on request.
            node.kill9()
        self._stack.close()

    @property
    def uri(self) -> str:
        return self.url([node.port for node in self.nodes])

    def url(self, ports: Sequence[int], scheme: str = "redis+cluster") -> str:
        """The cluster's URI by nodes at ``ports``."""
        password = self.nodes[0].password
        user = f":{password}@" if password else ""
        return f"{scheme}://{user}" + ",".join(f"127.0.0.1:{port}" for port in ports)

    def client(self) -> redis.RedisCluster:
        """A plain client, to look at the cluster as an operator would."""
        node = next(node for node in self.nodes if node.alive)
        return redis.RedisCluster(host="127.0.0.1", port=node.port, password=node.password)

    def owner(self, key: str) -> RedisServer:
        """The master that has ``key``."""
        with self.client() as client:
            found = client.get_node_from_key(key)
        assert found is not None
        return next(node for node in self.nodes if node.port == found.port)

    def settled(self) -> None:
        """Wait until every node that lives says that all slots are served, and replicas follow."""

        def ok() -> bool:
            alive = [node for node in self.nodes if node.alive]
            told_of = [told(node, "CLUSTER", "INFO") for node in alive]
            # Without the need of full coverage the state alone is well also while a master is taken for dead.
            states = {(info["cluster_state"], int(info["cluster_slots_ok"])) for info in told_of}
            links = {told(node, "INFO", "replication").get("master_link_status", "up") for node in alive}
            return states == {("ok", SLOTS)} and links == {"up"}

        until(ok, "the cluster is not in order")

    def move(self, key: str, target: RedisServer, *, between: Callable[[], None] = lambda: None) -> None:
        """Move the slot of ``key``, with all that is in it, as ``redis-cli --cluster reshard`` does.

        ``between`` is called when the slot is open at both ends, before and after its keys are moved.
        """
        source = self.owner(key)
        if source is target:
            return
        with source.client() as out, target.client() as into:
            slot = int(out.execute_command("CLUSTER KEYSLOT", key))
            into.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", identity(source))
            out.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", identity(target))
            between()
            while keys := out.execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
                login = ("AUTH", target.password) if target.password else ()
                out.execute_command(
                    *("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "REPLACE"), *login, "KEYS", *keys
                )
            between()
            for node in (into, out):
                node.execute_command("CLUSTER SETSLOT", slot, "NODE", identity(target))

    def _form(self) -> None:
        first = self.nodes[0]
        bounds = [SLOTS * i // self._masters for i in range(self._masters + 1)]
        for epoch, node in enumerate(self.nodes, start=1):
            with node.client() as client:
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", epoch)
                if epoch <= self._masters:
                    client.execute_command("CLUSTER ADDSLOTSRANGE", bounds[epoch - 1], bounds[epoch] - 1)
                if node is not first:
                    bus = first.option("--cluster-port")
                    client.execute_command("CLUSTER MEET", "127.0.0.1", first.port, bus)
        everybody = {identity(node) for node in self.nodes}
        until(lambda: all(known(node) >= everybody for node in self.nodes), "the nodes do not meet")
        pairs = list(
            zip(self.nodes[self._masters :], itertools.cycle(self.nodes[: self._masters]), strict=False)
        )
        for replica, master in pairs:
            with replica.client() as client:
                client.execute_command("CLUSTER REPLICATE", identity(master))
        until(
            lambda: all(told(r, "INFO", "replication")["role"] == "slave" for r, _ in pairs),
            "a replica does not follow",
        )
        self.settled()


def identity(node: RedisServer) -> str:
    with node.client() as client:
        return str(client.execute_command("CLUSTER MYID"), "ascii")


def known(node: RedisServer) -> set[str]:
    """The nodes that ``node`` has shaken hands with."""
    with node.client() as client:
        lines = _raw(client, "CLUSTER", "NODES").splitlines()
    return {line.split()[0] for line in lines if "handshake" not in line and "noaddr" not in line}


def told(node: RedisServer, *command: str) -> dict[str, str]:
    """The names and values of an answer such as that to INFO."""
    with node.client() as client:
        lines = _raw(client, *command).splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def until(condition: Callable[[], bool], complaint: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.02)


def running(cluster: Callable[[], RedisCluster]) -> Iterator[RedisCluster]:
    """The body of a fixture: a cluster while the fixture lives. On a laptop without Redis 7 the test is skipped;
    in CI it fails."""
    try:
        made = cluster()
    except ServerMissing as reason:
        if os.environ.get("CI") == "true":
            pytest.fail(str(reason))
        pytest.skip(str(reason))
    with made:
        yield made


def _raw(client: Any, *command: str) -> str:
    """An answer as the server wrote it."""
    client.response_callbacks.clear()
    return str(client.execute_command(*command), "utf-8")
