"""The way to a Redis Cluster: which node has a key, and exchanges that follow keys as they move.

redis-py's RedisCluster keeps the table of slots and takes the commands of leases and topics. Entries are read
and written on connections of our own, one a node, as on a single server (see :mod:`redis_wire`).

A node answers MOVED when a key lives elsewhere, and ASK while it is being moved; in both cases it has done
nothing, so the command is sent on. A node that cannot be reached is an outage like any other: what was sent may
have been done, the caller is told, and the table is read anew before the next use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from itertools import groupby
from typing import Final

from redis.asyncio import Connection, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, RedisClusterException

from market_data_core.errors import BusError, ConfigError
from market_data_pipeline.streaming import redis_wire
from market_data_pipeline.streaming.redis_errors import FAILURES
from market_data_pipeline.streaming.redis_url import Address, RedisUrl, parse
from market_data_pipeline.streaming.redis_wire import (
    RedisServer,
    Reply,
    Wire,
    connection_options,
    lasting,
    pack,
)

Remap = Callable[[Address], Address]

_ASKING: Final = pack("ASKING")
_HOPS: Final = 5
"""How often a command is sent on before the cluster is taken to be in disorder."""


def server_at(uri: str, remap: Remap | None = None) -> RedisServer:
    """The server or cluster at ``uri``. ``remap`` turns the address that a node of a cluster gives of itself into
    the one to reach it at, where the two differ (forwarded ports, NAT).

    Raises:
        ConfigError: the URL is not one of a Redis.
    """
    url = parse(uri)
    return ClusterServer(url, remap) if url.kind == "cluster" else RedisServer(url)


class ClusterServer(RedisServer):
    """See :class:`RedisServer`; a place is ``host:port`` of a master."""

    clustered = True

    def __init__(self, url: RedisUrl, remap: Remap | None = None) -> None:
        self._remap = remap
        self._options = connection_options() | dict(url.options)
        self._slots: dict[str, int] = {}
        self._settling = asyncio.Lock()
        self._doubts = 1
        self._settled = 0
        super().__init__(url)

    def _connect(self) -> RedisCluster:
        options = self._options | {"retry": Retry(NoBackoff(), 1)}
        seeds = [ClusterNode(host, port) for host, port in self.url.addresses]
        try:
            cluster = RedisCluster(
                startup_nodes=seeds,
                # What has a master can be used while something else has none.
                require_full_coverage=False,
                address_remap=self._remap,
                ssl=self.url.tls,
                **options,
            )
        except (TypeError, RedisClusterException) as error:
            raise ConfigError(f"{self.where} cannot be the URL of a cluster: {error}") from None
        # redis-py forgets them for those that the cluster tells of, which may all be gone one day.
        self._seeds = dict(cluster.nodes_manager.startup_nodes)
        self._cluster = cluster
        return cluster

    def wire(self) -> Wire:
        return ClusterWire(self)

    def wire_at(self, place: str) -> Wire:
        return Wire(self, lambda: self._connection_to(place))

    def place(self, key: str) -> str:
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = key_slot(key.encode())
        with self.translated():
            node: ClusterNode = self._cluster.nodes_manager.get_node_from_slot(slot)
        return str(node.name)

    def places(self) -> list[str]:
        return sorted(str(node.name) for node in self._cluster.get_primaries())

    async def settle(self) -> None:
        while self._settled < self._doubts:
            async with self._settling:
                if self._settled < self._doubts:
                    await self._look()

    def doubt(self) -> None:
        """The table of slots is not to be trusted any more."""
        self._doubts += 1

    def explain(self, error: BaseException) -> BusError:
        meaning = super().explain(error)
        if meaning.retriable:
            self.doubt()
        return meaning

    def redirected(self, error: AskError, asked: str) -> str:
        """The place that ``error`` sends to; a node that does not know its own name means itself."""
        host, port = error.host or asked.rpartition(":")[0], error.port
        return "{}:{}".format(*(self._remap((host, port)) if self._remap else (host, port)))

    async def close(self) -> None:
        await self._cluster.aclose()
        # It closes nothing when it was about to read the table anew. Two objects of one node count as equal.
        manager = self._cluster.nodes_manager
        for nodes in (manager.nodes_cache, manager.startup_nodes, self._seeds):
            for node in nodes.values():
                await node.disconnect()

    async def _look(self) -> None:
        doubts = self._doubts
        manager = self._cluster.nodes_manager
        with self.translated():
            async with asyncio.timeout(redis_wire.TIMEOUT):
                for name, seed in self._seeds.items():
                    manager.startup_nodes.setdefault(name, seed)
                await manager.initialize()
                # The client begins with a certain node, which may be the one away; then it begins on its next use.
                with suppress(*FAILURES):
                    await self._cluster.initialize()
        self._settled = doubts

    def _connection_to(self, place: str) -> Connection:
        host, _, port = place.rpartition(":")
        options = {name: value for name, value in self._options.items() if name != "max_connections"}
        return lasting(self.url.connection_class(host=host, port=int(port), **options))


class ClusterWire(Wire):
    """A connection to each node, used as one. Commands of one exchange are about keys of one node.

    Only :meth:`exchange` and :meth:`close` are of use; who reads ahead does so on a wire of one place.
    """

    def __init__(self, cluster: ClusterServer) -> None:
        self._cluster = cluster
        self._wires: dict[str, Wire] = {}

    async def exchange(self, *commands: bytes, key: str = "") -> list[Reply]:
        await self._cluster.settle()
        place = self._cluster.place(key)
        replies = await self._at(place).exchange(*commands)
        asked = dict.fromkeys(range(len(commands)), place)
        for _ in range(_HOPS):
            away = [i for i, reply in enumerate(replies) if isinstance(reply, AskError)]
            if not away:
                break
            if any(isinstance(replies[i], MovedError) for i in away):
                self._cluster.doubt()
            targets = {i: self._target(replies[i], asked[i]) for i in away}
            # In order, since entries must be added in order.
            for (place, asking), some in groupby(away, targets.__getitem__):
                numbers = list(some)
                sent = [c for i in numbers for c in ((_ASKING, commands[i]) if asking else (commands[i],))]
                got = await self._at(place).exchange(*sent)
                for i, reply in zip(numbers, got[1::2] if asking else got, strict=True):
                    replies[i], asked[i] = reply, place
        return replies

    async def close(self) -> None:
        for wire in self._wires.values():
            await wire.close()

    def _target(self, error: AskError, asked: str) -> tuple[str, bool]:
        return self._cluster.redirected(error, asked), not isinstance(error, MovedError)

    def _at(self, place: str) -> Wire:
        if place not in self._wires:
            self._wires[place] = self._cluster.wire_at(place)
        return self._wires[place]


def redirects(reply: Reply) -> bool:
    """Whether a node says that the key is elsewhere."""
    return isinstance(reply, AskError)
