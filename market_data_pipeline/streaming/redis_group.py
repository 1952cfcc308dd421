"""One consumer group of one topic on Redis, as commands: what a member does to it besides reading."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, Final

import structlog
from redis.exceptions import ResponseError

from market_data_core.errors import BusUnavailable
from market_data_pipeline.streaming.bus import Offset
from market_data_pipeline.streaming.redis_entries import format_id, parse_id
from market_data_pipeline.streaming.redis_topics import Topics, keep_key
from market_data_pipeline.streaming.redis_wire import RedisServer, Reply, pack

_MISSING: Final = ("NOGROUP", "UNBLOCKED", "no such key")
_CLAIM_COUNT: Final = 1000
_ACK_COUNT: Final = 5000
_FOREVER_MS: Final = 2**53
_TIDY: Final = """
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local name, pending, idle = consumer[2], consumer[4], consumer[6]
    if pending == 0 and (name == ARGV[2] or idle > tonumber(ARGV[3])) then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], name)
    end
end
"""

log = structlog.get_logger(__name__)


class RedisGroup:
    """The group of one member, on a connection of its own. Safe for concurrent calls."""

    def __init__(self, server: RedisServer, topics: Topics, topic: str, name: str, member: str) -> None:
        self.topic = topic
        self.name = name
        self.member = member
        self._server = server
        self._topics = topics
        self._wire = server.wire()
        self._tidy = server.client.register_script(_TIDY)

    async def create(self, streams: Iterable[str]) -> None:
        """Make sure that ``streams`` and the group on each of them exist; a new group starts at the first entry."""
        await self._server.settle()
        for _, some in groupby(sorted(streams, key=self._server.place), self._server.place):
            together = list(some)
            commands = [pack("XGROUP", "CREATE", s, self.name, "0", "MKSTREAM") for s in together]
            replies = await self._wire.exchange(*commands, key=together[0])
            self._server.check(r for r in replies if not str(r).startswith("BUSYGROUP"))

    async def ask(self, stream: str, command: bytes) -> Reply:
        """What a command about ``stream`` is answered, wherever the stream is by now."""
        return (await self._wire.exchange(command, key=stream))[0]

    async def look(self, stream: str) -> tuple[Offset, Offset]:
        """The last offset that ``stream`` gave and the last one that the group was handed of it.

        A stream or a group that is gone, since somebody removed it or the server lost data, is made anew.
        """
        commands = pack("XINFO", "STREAM", stream), pack("XINFO", "GROUPS", stream)
        for _ in range(2):
            about, groups = await self._wire.exchange(*commands, key=stream)
            self._server.check(r for r in (about, groups) if not missing(r))
            handed = None if missing(groups) else last_delivered(groups, self.name)
            if handed is not None and not missing(about):
                return parse_id(pairs(about)[b"last-generated-id"]), handed
            log.warning("group_created_again", stream=stream, group=self.name)
            await self._topics.restore(self.topic)
            await self.create([stream])
        raise BusUnavailable(f"group {self.name} of {stream} vanishes as soon as it is created")

    async def go_to(self, stream: str, position: Offset, *, end: Offset) -> None:
        """Have the group go on after ``position``, which is past what it was handed; ``end`` is the stream's."""
        commands = [pack("XGROUP", "SETID", stream, self.name, format_id(position))]
        if position > end:
            # The server lost data, or it is another server. No new entry may come to lie before the position.
            log.warning(
                "position_past_stream", stream=stream, position=format_id(position), end=format_id(end)
            )
            commands.insert(0, pack("XSETID", stream, format_id(position)))
        self._server.check(await self._wire.exchange(*commands, key=stream))

    async def claim(self, stream: str, start: Offset) -> list[list[bytes]]:
        """Make every entry from ``start`` on that is pending this member's; their ids, ascending, in chunks."""
        chunks = []
        cursor = format_id(start)
        head = ("XAUTOCLAIM", stream, self.name, self.member, 0)
        while True:
            reply = await self.ask(stream, pack(*head, cursor, "COUNT", _CLAIM_COUNT, "JUSTID"))
            self._server.check([reply])
            following, ids = reply[:2]
            if ids:
                chunks.append(ids)
            if following == b"0-0":
                return chunks
            cursor = following.decode()

    async def acknowledge(self, stream: str, ids: Sequence[bytes], keep_from: Offset | None) -> None:
        """Take ``ids`` off what is pending, and note from where on the group may want to read again."""
        commands = []
        if keep_from is not None:
            # First: between the two, the entries are kept for being pending.
            commands.append(pack("HSET", keep_key(stream), self.name, format_id(keep_from)))
        starts = range(0, len(ids), _ACK_COUNT)
        commands += [pack("XACK", stream, self.name, *ids[i : i + _ACK_COUNT]) for i in starts]
        if commands:
            self._server.check(await self._wire.exchange(*commands, key=stream))

    async def forget_absent(self, stream: str, absent_ms: int) -> None:
        """Take members that have not been seen for so long, and have nothing pending, out of the group."""
        with self._server.translated():
            await self._tidy(keys=[stream], args=[self.name, "", absent_ms])

    async def leave(self, streams: Iterable[str]) -> None:
        """Take this member out where it has nothing pending; what is pending waits for the next owner."""
        with self._server.translated():
            for stream in streams:
                await self._tidy(keys=[stream], args=[self.name, self.member, _FOREVER_MS])

    async def close(self) -> None:
        await self._wire.close()


def missing(reply: Reply) -> bool:
    """Whether a refusal says that the stream or the group is not there."""
    return isinstance(reply, ResponseError) and str(reply).startswith(_MISSING)


def last_delivered(groups: Sequence[Any], group: str) -> Offset | None:
    """What a group was handed last, from the reply of ``XINFO GROUPS``; None when it is not there."""
    for one in map(pairs, groups):
        if one[b"name"] == group.encode():
            return parse_id(one[b"last-delivered-id"])
    return None


def pairs(flat: Sequence[Any]) -> dict[bytes, Any]:
    """The names and values of a reply that lists them in turn."""
    return dict(zip(flat[::2], flat[1::2], strict=True))
