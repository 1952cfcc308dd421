"""Which process has the name of a member that keeps its name over restarts."""

from __future__ import annotations

from typing import Any, cast

from market_data_pipeline.streaming.redis_topics import names_key
from market_data_pipeline.streaming.redis_wire import RedisServer


class Name:
    """``member`` of a group, while ``process`` has its name: whoever comes last."""

    def __init__(self, server: RedisServer, topic: str, group: str, member: str, process: str) -> None:
        self._server = server
        self._key = names_key(topic, group)
        self._member = member
        self._process = process
        self.taken = (
            f"another process has joined group {group} of {topic} as {member.rpartition('#')[0]}: "
            "give each its own bus.member"
        )

    async def take(self) -> None:
        """From now on it is this process's."""
        with self._server.translated():
            await cast(Any, self._server.client.hset(self._key, self._member, self._process))

    async def mine(self) -> bool:
        """Whether nobody has taken it since. A server that lost it is told again."""
        found = await cast(Any, self._server.client.hget(self._key, self._member))
        if found is None:
            await self.take()
        return found is None or found == self._process.encode()
