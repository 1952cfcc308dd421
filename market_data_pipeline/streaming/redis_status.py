"""What an operator wants to know about topics and groups on Redis."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

from market_data_pipeline.streaming.bus import GroupPartition, GroupStatus, TopicStatus
from market_data_pipeline.streaming.leases import owner_of
from market_data_pipeline.streaming.redis_entries import parse_id
from market_data_pipeline.streaming.redis_group import missing, pairs
from market_data_pipeline.streaming.redis_topics import lease_key, members_key, stream_names
from market_data_pipeline.streaming.redis_wire import RedisServer, Reply, Wire, pack

_COUNTED: Final = 1000
"""Entries that are counted one by one, which takes the server 3 ms, and it does nothing else meanwhile."""
_NO_KEY: Final = -2
"""What PTTL says of a key that is not there."""
_COUNT: Final = """
local entries = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])
if #entries < tonumber(ARGV[2]) then return {#entries} end
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
return {#entries, redis.call('XLEN', KEYS[1]), first[1][1], last[1][1]}
"""


class RedisStatus:
    """Reads the state of topics over one connection."""

    def __init__(self, server: RedisServer, wire: Wire) -> None:
        self._server = server
        self._wire = wire

    async def topic(self, topic: str, partitions: int) -> TopicStatus:
        """Topic, groups, owners, lag and what is pending; all zero for a topic that does not exist."""
        sizes = [0] * partitions
        groups: defaultdict[str, list[GroupPartition]] = defaultdict(list)
        for number, stream in enumerate(stream_names(topic, partitions)):
            commands = pack("XLEN", stream), pack("XINFO", "GROUPS", stream), pack("TIME")
            length, found, time = await self._wire.exchange(*commands, key=stream)
            if missing(found):
                continue  # Nobody has published or joined yet.
            self._server.check([length, found, time])
            now = _ms(time)
            sizes[number] = length
            for about in map(pairs, found):
                part = await self._partition(number, stream, about, now)
                groups[about[b"name"].decode()].append(part)
        statuses = [
            GroupStatus(name, await self._members(topic, name), parts)
            for name, parts in sorted(groups.items())
        ]
        return TopicStatus(topic, partitions, sum(sizes), statuses, sizes)

    async def _ask(self, key: str, *commands: bytes) -> list[Reply]:
        replies = await self._wire.exchange(*commands, key=key)
        self._server.check(replies)
        return replies

    async def _members(self, topic: str, group: str) -> list[str]:
        key = members_key(topic, group)
        now = _ms((await self._ask(key, pack("TIME")))[0])
        (found,) = await self._ask(key, pack("ZRANGEBYSCORE", key, f"({now}", "+inf"))
        return sorted(map(owner_of, found))

    async def _partition(self, number: int, stream: str, about: dict[bytes, Any], now: int) -> GroupPartition:
        group = about[b"name"]
        after = b"(" + about[b"last-delivered-id"]
        lease = lease_key(stream, group.decode())
        token, left, pending, following = await self._ask(
            stream,
            pack("GET", lease),
            pack("PTTL", lease),
            pack("XPENDING", stream, group),
            pack("XRANGE", stream, after, "+", "COUNT", 1),
        )
        count, oldest = pending[:2]
        if left == _NO_KEY:  # it ended between the two
            token = None
        return GroupPartition(
            partition=number,
            owner=None if token is None else owner_of(token),
            lag=await self._lag(stream, about) if following else 0,
            lag_ms=_age(now, following[0][0]) if following else 0,
            pending=count,
            oldest_pending_ms=_age(now, oldest) if oldest else 0,
            lease_left_ms=None if token is None else left,
        )

    async def _lag(self, stream: str, about: dict[bytes, Any]) -> int:
        """How many entries the group was not handed yet.

        Redis 7 mostly knows. Else a few are counted, and of many it is estimated by their times: to count a backlog
        again and again would take more of the server than to read it.
        """
        known = about.get(b"lag")
        if known is not None:
            return int(known)
        after = about[b"last-delivered-id"]
        (found,) = await self._ask(stream, pack("EVAL", _COUNT, 1, stream, b"(" + after, _COUNTED))
        return found[0] if len(found) == 1 else _estimate(after, *found)


def _estimate(after: bytes, counted: int, length: int, first: bytes, last: bytes) -> int:
    """How many of ``length`` entries from ``first`` to ``last`` come after an id, if they came evenly; ``counted`` or
    more. Right when the group was handed none of them yet."""
    at, begin, end = map(parse_id, (after, first, last))
    if at < begin:
        return length
    share = (end - at) / max(end - begin, 1)
    return min(length, max(counted, round(length * share)))


def _ms(time: Reply) -> int:
    """The time of a server in ms, in which its entries' ids and its members' beats are."""
    seconds, micros = time
    return int(seconds) * 1000 + int(micros) // 1000


def _age(now: int, entry: bytes) -> int:
    return max(0, now - (parse_id(entry) >> 64))
