"""Which topics a Redis server has, and the keys that belong to them.

Everything of one partition lies in the slot of its stream, and everything of one group of a topic in the
topic's slot, so that each command touches one slot:

    mdp:topics                       hash     topic -> number of partitions
    TOPIC or TOPIC.P                 stream   the records of one partition, with their consumer groups
    {STREAM}:lease:GROUP             string   who owns the partition in that group; expires
    {STREAM}:keep                    hash     group -> the first id it may still want to read
    {TOPIC}:members:GROUP            zset     members alive, by the time (server's clock, ms) they expire
    {TOPIC}:names:GROUP              hash     member that keeps its name -> the process that has it now
"""

from __future__ import annotations

from typing import Final

from redis.asyncio import Redis, RedisCluster

from market_data_core.errors import BusError
from market_data_pipeline.streaming.partitions import check_clash, check_partitions, check_topic, stream_of
from market_data_pipeline.streaming.redis_wire import RedisServer

REGISTRY: Final = "mdp:topics"


def lease_key(stream: str, group: str) -> str:
    return f"{{{stream}}}:lease:{group}"


def keep_key(stream: str) -> str:
    return f"{{{stream}}}:keep"


def members_key(topic: str, group: str) -> str:
    return f"{{{topic}}}:members:{group}"


def names_key(topic: str, group: str) -> str:
    return f"{{{topic}}}:names:{group}"


class Topics:
    """The registry of topics. Counts are remembered, since the count changes only while nobody uses a topic."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._known: dict[str, int] = {}

    async def ensure(self, topic: str, partitions: int) -> int:
        check_topic(topic)
        check_partitions(topic, partitions)
        with self._server.translated():
            found = await self._look(topic)
            if not found:
                check_clash(topic, partitions, (await self._all()).items())
                found = partitions
            # Whoever comes first decides; a plain stream of another program is entered as it is.
            await self._client.hsetnx(REGISTRY, topic, str(found))
            self._known[topic] = int(await self._client.hget(REGISTRY, topic) or found)
        return self._known[topic]

    async def count(self, topic: str) -> int:
        """How many partitions ``topic`` has; a stream of another program has one; 0 when there is none."""
        if topic not in self._known:
            with self._server.translated():
                found = await self._look(check_topic(topic))
            if not found:
                return 0
            self._known[topic] = found
        return self._known[topic]

    async def existing(self, topic: str) -> int:
        """As :meth:`count`.

        Raises:
            BusError: there is no such topic.
        """
        count = await self.count(topic)
        if not count:
            raise BusError(f"there is no topic {topic} in Redis at {self._server.where}: create it first")
        return count

    async def all(self) -> dict[str, int]:
        """Every topic entered, with its partitions, by name."""
        with self._server.translated():
            return await self._all()

    def forget(self, topic: str) -> None:
        """Look again next time."""
        self._known.pop(topic, None)

    async def restore(self, topic: str) -> None:
        """Enter ``topic`` again, should the server have lost its data.

        Raises:
            BusError: it was created again meanwhile, with another number of partitions.
        """
        known = self._known.get(topic)
        if known is not None and await self.ensure(topic, known) != known:
            raise BusError(
                f"topic {topic} had {known} partitions and was created again with {self._known[topic]}: "
                "restart what uses it"
            )

    @property
    def _client(self) -> Redis | RedisCluster:
        return self._server.client

    async def _all(self) -> dict[str, int]:
        found = await self._client.hgetall(REGISTRY)
        names = (name if isinstance(name, str) else name.decode() for name in found)
        return dict(sorted(zip(names, map(int, found.values()), strict=True)))

    async def _look(self, topic: str) -> int:
        entered = await self._client.hget(REGISTRY, topic)
        if entered is not None:
            return int(entered)
        return int(await self._client.type(topic) == b"stream")


def stream_names(topic: str, partitions: int) -> list[str]:
    """The streams of a topic, by partition; none for no partitions."""
    return [stream_of(topic, p, partitions) for p in range(partitions)]
