"""The Redis driver: one stream a partition. Redis 6.2 and later."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
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
from market_data_pipeline.streaming.partitions import check_partitions, check_topic, grouped, stream_of
from market_data_pipeline.streaming.redis_cluster import Remap, server_at
from market_data_pipeline.streaming.redis_consumer import RedisConsumer
from market_data_pipeline.streaming.redis_entries import additions, format_id, parse_id, stored
from market_data_pipeline.streaming.redis_health import OLDEST, RedisNodes
from market_data_pipeline.streaming.redis_repartition import RedisSwitch
from market_data_pipeline.streaming.redis_status import RedisStatus
from market_data_pipeline.streaming.redis_topics import Topics, stream_names
from market_data_pipeline.streaming.redis_trim import RedisTrim
from market_data_pipeline.streaming.redis_wire import Reply, pack

DELETE_RECORDS: Final = 2000
"""What one command deletes."""
REPLICATION_MS: Final = 2000
"""How long replicas may take to have what was published, where they must."""

log = structlog.get_logger(__name__)


class RedisBus(Bus):
    """See :class:`Bus`. ``uri``: one of :mod:`redis_url`'s forms, for a server, a cluster or Sentinels.

    ``remap`` is for a cluster whose nodes are reached at other addresses than those they give of themselves.
    """

    name = "redis"

    def __init__(
        self, uri: str | SecretUrl, *, clock: Clock | None = None, remap: Remap | None = None
    ) -> None:
        self._server = server_at(uri.reveal() if isinstance(uri, SecretUrl) else uri, remap)
        self._clock = clock or SystemClock()
        self._topics = Topics(self._server)
        self._publishing = self._server.wire()
        self._reading = self._server.wire()
        self._nodes = RedisNodes(self._server)
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
        parts = grouped(records, count, partition)
        # At once, so that they are one exchange.
        done = await asyncio.gather(
            *(self._append(stream_of(topic, part, count), some) for part, some in parts.items()),
            return_exceptions=True,
        )
        failures = [failure for failure in done if failure is not None]
        if any(isinstance(failure, BusUnavailable) for failure in failures):
            self._doubtful.add(topic)  # it may come back without its data
        for failure in failures:
            raise failure

    def consumer(
        self,
        topic: str,
        group: str,
        member: str,
        *,
        max_records: int = 5000,
        lease_ms: int = 10_000,
        static: bool = False,
    ) -> Consumer:
        return RedisConsumer(
            self._server,
            self._topics,
            check_topic(topic),
            group,
            member,
            max_records=max_records,
            lease_ms=lease_ms,
            static=static,
            clock=self._clock,
        )

    async def read(self, topic: str, partition: int, start: Offset | None, limit: int) -> list[StoredRecord]:
        stream = await self._stream(topic, partition)
        first = "-" if start is None or start <= 0 else format_id(start)
        return stored(await self._ask(stream, "XRANGE", first, "+", "COUNT", limit))

    async def newest(self, topic: str, partition: int, limit: int) -> list[StoredRecord]:
        stream = await self._stream(topic, partition)
        return stored(reversed(await self._ask(stream, "XREVRANGE", "+", "-", "COUNT", limit)))

    async def end_offset(self, topic: str, partition: int) -> Offset | None:
        stream = await self._stream(topic, partition)
        newest = await self._ask(stream, "XREVRANGE", "+", "-", "COUNT", 1)
        return parse_id(newest[0][0]) if newest else None

    async def delete(self, topic: str, partition: int, offsets: Sequence[Offset]) -> int:
        stream = await self._stream(topic, partition)
        removed = 0
        for i in range(0, len(offsets), DELETE_RECORDS):
            ids = map(format_id, offsets[i : i + DELETE_RECORDS])
            removed += await self._ask(stream, "XDEL", *ids)
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

    def topic_switch(self, topic: str, old: int, new: int) -> RedisSwitch:
        check_partitions(topic, new)
        return RedisSwitch(self._server, self._topics, self._append, self._ask, topic, old, new)

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
        nodes = await self._nodes.look()
        oldest = min(nodes, key=lambda node: node.number)
        if oldest.number < OLDEST:
            raise BusError(f"Redis at {self._server.where} is {oldest.version}: 6.2 or newer is needed")
        size = f", cluster of {len(nodes)} masters" if self._server.clustered else ""
        weakest = min(nodes, key=lambda node: node.safety)
        return {
            "server": f"Redis {oldest.version}{size}",
            "where": self._server.where,
            "durability": weakest.durability,
        }

    async def close(self) -> None:
        await self._publishing.close()
        await self._reading.close()
        await self._nodes.close()
        await self._server.close()

    async def _append(self, stream: str, records: Sequence[Record]) -> None:
        for command in additions(stream, records):
            self._server.check(await self._publishing.exchange(command, key=stream))
        await self._replicated(stream)

    async def _ask(self, stream: str, command: str, *rest: str | int) -> Reply:
        replies = await self._reading.exchange(pack(command, stream, *rest), key=stream)
        self._server.check(replies)
        return replies[0]

    async def _replicated(self, stream: str) -> None:
        """Wait until as many replicas have what was written as the URL asks for."""
        wanted = self._server.url.sync_replicas
        if not wanted:
            return
        replies = await self._publishing.exchange(pack("WAIT", wanted, REPLICATION_MS), key=stream)
        self._server.check(replies)
        if replies[0] < wanted:
            raise BusUnavailable(
                f"Redis at {self._server.where} has {replies[0]} of {wanted} replicas in step: "
                "look at its replicas, or lower bus.redis.sync_replicas"
            )

    async def _stream(self, topic: str, partition: int) -> str:
        count = await self._topics.existing(topic)
        if not 0 <= partition < count:
            raise BusError(f"topic {topic} has no partition {partition}: it has {count}, counted from 0")
        return stream_of(topic, partition, count)
