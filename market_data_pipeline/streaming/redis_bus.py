"""The Redis driver: one stream a partition. Redis 6.2 and later."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import structlog

from market_data_core.clock import Clock, SystemClock
from market_data_core.errors import BusError, BusUnavailable
from market_data_core.redact import SecretUrl
from market_data_pipeline.streaming.bus import (
    Bus,
    Consumer,
    Offset,
    Record,
    StoredRecord,
    TopicStatus,
    TrimResult,
)
from market_data_pipeline.streaming.partitions import check_topic, grouped, stream_of
from market_data_pipeline.streaming.redis_consumer import RedisConsumer
from market_data_pipeline.streaming.redis_entries import format_id, parse_id, stored
from market_data_pipeline.streaming.redis_status import RedisStatus
from market_data_pipeline.streaming.redis_topics import Topics, stream_names
from market_data_pipeline.streaming.redis_trim import RedisTrim
from market_data_pipeline.streaming.redis_wire import RedisServer, pack

PUBLISH_RECORDS: Final = 2000
PUBLISH_BYTES: Final = 4 << 20
"""Bounds of what is sent before its replies are awaited."""
OLDEST: Final = (6, 2)

log = structlog.get_logger(__name__)


class RedisBus(Bus):
    """See :class:`Bus`. ``uri``: ``redis://[user:password@]host:port/db``, ``rediss://`` or ``unix://``."""

    name = "redis"

    def __init__(self, uri: str | SecretUrl, *, clock: Clock | None = None) -> None:
        self._server = RedisServer(uri.reveal() if isinstance(uri, SecretUrl) else uri)
        self._clock = clock or SystemClock()
        self._topics = Topics(self._server)
        self._publishing = self._server.wire()
        self._reading = self._server.wire()
        self._doubtful: set[str] = set()

    async def ensure_topic(self, topic: str, partitions: int) -> int:
        return await self._topics.ensure(topic, partitions)

    async def partitions(self, topic: str) -> int:
        return await self._topics.count(topic)

    async def publish(self, topic: str, records: Sequence[Record], *, partition: int | None = None) -> None:
        if topic in self._doubtful:
            await self._topics.restore(topic)
            self._doubtful.discard(topic)
        count = await self._topics.existing(topic)
        try:
            for part, some in grouped(records, count, partition).items():
                for commands in _additions(stream_of(topic, part, count), some):
                    self._server.check(await self._publishing.exchange(*commands))
        except BusUnavailable:
            # It may come back without its data.
            self._doubtful.add(topic)
            raise

    def consumer(
        self, topic: str, group: str, member: str, *, max_records: int = 5000, lease_ms: int = 10_000
    ) -> Consumer:
        return RedisConsumer(
            self._server,
            self._topics,
            check_topic(topic),
            group,
            member,
            max_records=max_records,
            lease_ms=lease_ms,
            clock=self._clock,
        )

    async def read(self, topic: str, partition: int, start: Offset | None, limit: int) -> list[StoredRecord]:
        stream = await self._stream(topic, partition)
        first = "-" if start is None or start <= 0 else format_id(start)
        replies = await self._reading.exchange(pack("XRANGE", stream, first, "+", "COUNT", limit))
        self._server.check(replies)
        return stored(replies[0])

    async def newest(self, topic: str, partition: int, limit: int) -> list[StoredRecord]:
        stream = await self._stream(topic, partition)
        replies = await self._reading.exchange(pack("XREVRANGE", stream, "+", "-", "COUNT", limit))
        self._server.check(replies)
        return stored(reversed(replies[0]))

    async def end_offset(self, topic: str, partition: int) -> Offset | None:
        stream = await self._stream(topic, partition)
        replies = await self._reading.exchange(pack("XREVRANGE", stream, "+", "-", "COUNT", 1))
        self._server.check(replies)
        return parse_id(replies[0][0][0]) if replies[0] else None

    async def delete(self, topic: str, partition: int, offsets: Sequence[Offset]) -> int:
        stream = await self._stream(topic, partition)
        removed = 0
        for i in range(0, len(offsets), PUBLISH_RECORDS):
            ids = map(format_id, offsets[i : i + PUBLISH_RECORDS])
            replies = await self._reading.exchange(pack("XDEL", stream, *ids))
            self._server.check(replies)
            removed += replies[0]
        return removed

    async def status(self, topics: Sequence[str] | None = None) -> list[TopicStatus]:
        if topics is None:
            known = await self._topics.all()
        else:
            known = {topic: await self._topics.count(topic) for topic in topics}
        status = RedisStatus(self._server, self._reading)
        return [await status.topic(topic, count) for topic, count in known.items()]

    async def trim(self, topic: str, *, retention_ms: int, max_records: int) -> TrimResult:
        expired = forced = 0
        trim = RedisTrim(self._server, self._reading)
        for stream in stream_names(topic, await self._topics.existing(topic)):
            done = await trim.stream(stream, retention_ms=retention_ms, max_records=max_records)
            expired += done.expired
            forced += done.forced
            if done.forced:
                log.warning("records_lost_to_hard_cap", stream=stream, records=done.forced, cap=max_records)
        return TrimResult(expired, forced)

    def format_offset(self, offset: Offset) -> str:
        return format_id(offset)

    def parse_offset(self, text: str) -> Offset:
        return parse_id(text)

    async def ping(self) -> Mapping[str, str]:
        """Facts about the server.

        Raises:
            BusUnavailable: it does not answer.
            BusError: it refuses us, or is older than 6.2.
        """
        with self._server.translated():
            about = await self._server.client.info("server") | await self._server.client.info("persistence")
        version = str(about["redis_version"])
        if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
            raise BusError(f"Redis at {self._server.where} is {version}: 6.2 or newer is needed")
        if not about.get("aof_enabled"):
            durability = "no append-only file: what was written last is lost when the server dies"
        else:
            policy = await self._fsync()
            durability = f"append-only file, fsync {policy}"
            if policy != "always":
                # Also by a kill -9: while a sync runs, Redis puts off writing the file at all.
                durability += ": what was written last can be lost when the server dies"
        return {"server": f"Redis {version}", "where": self._server.where, "durability": durability}

    async def close(self) -> None:
        await self._publishing.close()
        await self._reading.close()
        await self._server.close()

    async def _fsync(self) -> str:
        replies = await self._reading.exchange(pack("CONFIG", "GET", "appendfsync"))
        # Hosted servers keep CONFIG to themselves.
        hidden = not isinstance(replies[0], list) or len(replies[0]) != 2
        return "policy not shown" if hidden else replies[0][1].decode()

    async def _stream(self, topic: str, partition: int) -> str:
        count = await self._topics.existing(topic)
        if not 0 <= partition < count:
            raise BusError(f"topic {topic} has no partition {partition}: it has {count}, counted from 0")
        return stream_of(topic, partition, count)


def _additions(stream: str, records: Sequence[Record]) -> Iterator[list[bytes]]:
    """The XADDs of ``records``, in bounded pieces."""
    commands: list[bytes] = []
    size = 0
    for r in records:
        lane = () if r.lane is None else ("l", r.lane)
        commands.append(pack("XADD", stream, "*", "v", r.value, "k", r.key, *lane))
        size += len(r.value)
        if len(commands) == PUBLISH_RECORDS or size >= PUBLISH_BYTES:
            yield commands
            commands, size = [], 0
    if commands:
        yield commands
