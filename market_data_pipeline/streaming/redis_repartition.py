"""Another number of partitions on Redis: new streams, one entry in the list of topics, and streams that expire."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from market_data_core.errors import BusError
from market_data_pipeline.streaming.bus import Offset, Record, StoredRecord
from market_data_pipeline.streaming.partitions import check_clash, stream_of
from market_data_pipeline.streaming.redis_entries import format_id, parse_id, stored
from market_data_pipeline.streaming.redis_topics import REGISTRY, Topics, keep_key, stream_names
from market_data_pipeline.streaming.redis_wire import RedisServer, Reply
from market_data_pipeline.streaming.repartition import TopicSwitch

_LASTING: Final = -1
_SWITCH: Final = """
local found = redis.call('HGET', KEYS[1], ARGV[1])
if found == ARGV[2] or not found then redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) return ARGV[3] end
return found
"""

Append = Callable[[str, Sequence[Record]], Awaitable[None]]
Ask = Callable[..., Awaitable[Reply]]


class RedisSwitch(TopicSwitch):
    """``append`` adds records to a stream, ``ask`` answers a command about one: both are the bus's."""

    def __init__(
        self, server: RedisServer, topics: Topics, append: Append, ask: Ask, topic: str, old: int, new: int
    ) -> None:
        super().__init__(topic, old, new)
        self._server = server
        self._topics = topics
        self._append = append
        self._ask = ask

    async def check(self) -> None:
        check_clash(self.topic, self.new, (await self._topics.all()).items())
        for stream in self._only(self.new, self.old):
            if await self._ask(stream, "PTTL") == _LASTING:
                # A stream that an earlier switch has left expires; any other is somebody's.
                raise BusError(
                    f"the key {stream} in Redis at {self._server.where} is in the place of a new partition and was "
                    "not left by an earlier repartition: look what it is, and rename or delete it"
                )

    async def prepare(self, *, resumed: bool) -> None:
        if not resumed:
            for stream in self._only(self.new, self.old):
                await self._ask(stream, "DEL")
                await self._ask(keep_key(stream), "DEL")

    async def read(self, partition: int, start: Offset, limit: int) -> list[StoredRecord]:
        stream = stream_of(self.topic, partition, self.old)
        return stored(await self._ask(stream, "XRANGE", format_id(start), "+", "COUNT", limit))

    async def append(self, partition: int, records: Sequence[Record]) -> None:
        await self._append(stream_of(self.topic, partition, self.new), records)

    async def newest(self, partition: int) -> Offset | None:
        stream = stream_of(self.topic, partition, self.new)
        found = await self._ask(stream, "XREVRANGE", "+", "-", "COUNT", 1)
        return parse_id(found[0][0]) if found else None

    async def first_after(self, partition: int, offset: Offset | None) -> Offset | None:
        stream = stream_of(self.topic, partition, self.new)
        start = "-" if offset is None else format_id(offset + 1)
        found = await self._ask(stream, "XRANGE", start, "+", "COUNT", 1)
        return parse_id(found[0][0]) if found else None

    async def switch(self) -> None:
        script = self._server.client.register_script(_SWITCH)
        with self._server.translated():
            found = int(await script(keys=[REGISTRY], args=[self.topic, self.old, self.new]))
        if found != self.new:
            raise BusError(
                f"topic {self.topic} had {self.old} partitions and has {found} now: somebody else has changed it"
            )
        self._topics.forget(self.topic)

    async def retire(self, keep_ms: int) -> None:
        for stream in self._only(self.old, self.new):
            await self._ask(stream, "PEXPIRE", keep_ms)
            await self._ask(keep_key(stream), "PEXPIRE", keep_ms)

    def _only(self, one: int, other: int) -> list[str]:
        """Streams of the topic in ``one`` partitions that it has not in ``other``."""
        others = set(stream_names(self.topic, other))
        return [stream for stream in stream_names(self.topic, one) if stream not in others]
