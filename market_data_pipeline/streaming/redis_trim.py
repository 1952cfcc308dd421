"""Taking old entries out of a stream, never one that a group still needs, short of the hard cap."""

from __future__ import annotations

from typing import Final

from market_data_pipeline.streaming.bus import Offset, TrimResult
from market_data_pipeline.streaming.redis_entries import format_id, parse_id
from market_data_pipeline.streaming.redis_group import missing, pairs
from market_data_pipeline.streaming.redis_topics import keep_key
from market_data_pipeline.streaming.redis_wire import RedisServer, Reply, Wire, pack

_STEP: Final = 100_000
"""Entries removed by one command, so that others get their turn."""
_NODE: Final = 1000
"""More than one node of a stream holds (100 entries or 4 KiB, if nobody changed it)."""
_END: Final = (1 << 128) - 1


class RedisTrim:
    """Trims streams over one connection."""

    def __init__(self, server: RedisServer, wire: Wire) -> None:
        self._server = server
        self._wire = wire

    async def stream(self, stream: str, *, retention_ms: int, max_records: int) -> TrimResult:
        """See :meth:`Bus.trim`, for one partition."""
        groups, keeps, told = await self._wire.exchange(
            pack("XINFO", "GROUPS", stream), pack("HGETALL", keep_key(stream)), pack("TIME"), key=stream
        )
        if missing(groups):
            return TrimResult(0, 0)
        self._server.check([groups, keeps, told])
        seconds, micros = told
        needed = await self._needed(stream, groups, pairs(keeps))
        cutoff = max(0, int(seconds) * 1000 + int(micros) // 1000 - retention_ms) << 64
        expired = await self._remove_before(stream, min(needed, cutoff))
        excess = await self._ask(stream, "XLEN") - max_records
        if excess <= 0:
            return TrimResult(expired, 0)
        # Of what is over the cap first whole nodes that nobody needs, then exactly, counting who needs what.
        while excess > 0 and (gone := await self._trim(stream, needed, min(excess, _STEP))):
            expired += gone
            excess -= gone
        if excess <= 0:
            return TrimResult(expired, 0)
        bound = f"({format_id(needed)}"
        unneeded = len(await self._ask(stream, "XRANGE", "-", bound, "COUNT", min(excess, _NODE)))
        removed = await self._ask(stream, "XTRIM", "MAXLEN", "=", max_records)
        return TrimResult(expired + min(unneeded, removed), max(0, removed - unneeded))

    async def _needed(self, stream: str, groups: Reply, keeps: dict[bytes, bytes]) -> Offset:
        """The first offset that some group was not handed, has pending, or asked to keep."""
        needed = _END
        for about in map(pairs, groups):
            name = about[b"name"]
            candidates = [parse_id(about[b"last-delivered-id"]) + 1]
            if about[b"pending"]:
                first = (await self._ask(stream, "XPENDING", name))[1]
                candidates += [parse_id(first)] if first else []
            if name in keeps:
                candidates.append(parse_id(keeps[name]))
            needed = min(needed, *candidates)
        return needed

    async def _remove_before(self, stream: str, offset: Offset) -> int:
        removed = 0
        while gone := await self._trim(stream, offset, _STEP):
            removed += gone
        return removed + int(await self._ask(stream, "XTRIM", "MINID", "=", format_id(offset)))

    async def _trim(self, stream: str, before: Offset, limit: int) -> int:
        """Remove up to ``limit`` entries before an offset, as far as they fill whole nodes."""
        return int(await self._ask(stream, "XTRIM", "MINID", "~", format_id(before), "LIMIT", limit))

    async def _ask(self, stream: str, command: str, *rest: str | bytes | int) -> Reply:
        replies = await self._wire.exchange(pack(command, stream, *rest), key=stream)
        self._server.check(replies)
        return replies[0]
