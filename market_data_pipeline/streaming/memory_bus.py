"""The driver without a server, for tests and for pipelines of one process.

Buses of one name share their topics as long as one of them exists. Nothing outlives the process, everything is of
one event loop, and what a server does with time is done by the clock that is passed in.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections.abc import Mapping, Sequence

from market_data_core.clock import Clock, SystemClock
from market_data_core.errors import BusUnavailable
from market_data_core.redact import SecretUrl
from market_data_pipeline.streaming.bus import (
    Bus,
    Consumer,
    GroupPartition,
    GroupStatus,
    Offset,
    Record,
    StoredRecord,
    TopicStatus,
    TrimResult,
)
from market_data_pipeline.streaming.memory_broker import Broker, Link, Log, Topic
from market_data_pipeline.streaming.memory_consumer import MemoryConsumer
from market_data_pipeline.streaming.partitions import (
    check_clash,
    check_partitions,
    check_topic,
    grouped,
)

_brokers: weakref.WeakValueDictionary[str, Broker] = weakref.WeakValueDictionary()


class MemoryBus(Bus):
    """See :class:`Bus`. ``uri``: ``memory://NAME``; buses of one name share everything."""

    name = "memory"

    def __init__(self, uri: str | SecretUrl = "memory://default", *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._broker = _brokers.setdefault(str(uri), Broker())
        self._link = Link()

    def cut(self) -> None:
        """Take the broker away from this bus, as a network does: every call raises BusUnavailable, and the
        members of this bus are not heard of."""
        if self._link.cut_at is None:
            self._link.cut_at = self._clock.monotonic()

    def heal(self) -> None:
        """Undo :meth:`cut`. What a member lost meanwhile, its next poll tells."""
        self._broker.expire(self._clock.monotonic())
        self._link.cut_at = None

    def remove(self, topic: str) -> None:
        """Delete ``topic`` as an operator of a server does, with its groups and without a word to them."""
        del self._broker.topics[topic]

    async def ensure_topic(self, topic: str, partitions: int) -> int:
        topics = self._reach().topics
        check_topic(topic)
        check_partitions(topic, partitions)
        if topic not in topics:
            check_clash(topic, partitions, ((name, len(t.logs)) for name, t in topics.items()))
            # A store outlives this bus: offsets must lie after those of any process before.
            first = self._clock.now()
            topics[topic] = Topic([Log(next_offset=first) for _ in range(partitions)])
        return len(topics[topic].logs)

    async def partitions(self, topic: str) -> int:
        found = self._reach().topics.get(check_topic(topic))
        return 0 if found is None else len(found.logs)

    async def publish(self, topic: str, records: Sequence[Record], *, partition: int | None = None) -> None:
        broker = self._reach()
        logs = broker.topic(topic).logs
        now = self._now_ms()
        for number, some in grouped(records, len(logs), partition).items():
            log = logs[number]
            for offset, r in enumerate(some, log.next_offset):
                log.records.append(StoredRecord(offset, r.key, r.value, r.lane, now, r.traceparent))
            log.next_offset += len(some)
        broker.wake()

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
        return MemoryConsumer(
            self._reach,
            self._link,
            self._clock,
            check_topic(topic),
            group,
            member,
            max_records=max_records,
            lease_ms=lease_ms,
            static=static,
        )

    async def read(self, topic: str, partition: int, start: Offset | None, limit: int) -> list[StoredRecord]:
        return self._reach().log(topic, partition).since(start or 0, limit)

    async def newest(self, topic: str, partition: int, limit: int) -> list[StoredRecord]:
        return self._reach().log(topic, partition).records[-limit:]

    async def end_offset(self, topic: str, partition: int) -> Offset | None:
        records = self._reach().log(topic, partition).records
        return records[-1].offset if records else None

    async def delete(self, topic: str, partition: int, offsets: Sequence[Offset]) -> int:
        log = self._reach().log(topic, partition)
        gone = set(offsets)
        before = len(log.records)
        log.records = [r for r in log.records if r.offset not in gone]
        return before - len(log.records)

    async def status(self, topics: Sequence[str] | None = None) -> list[TopicStatus]:
        broker = self._reach()
        broker.expire(self._clock.monotonic())
        names = sorted(broker.topics) if topics is None else topics
        return [self._topic_status(name, broker.topics.get(name) or Topic([])) for name in names]

    async def trim(self, topic: str, *, retention_ms: int, max_records: int) -> TrimResult:
        found = self._reach().topic(topic)
        cutoff = self._now_ms() - retention_ms
        expired = forced = 0
        for number, log in enumerate(found.logs):
            groups = [group.logs[number] for group in found.groups.values()]
            unneeded = log.index(min((g.needed_from for g in groups), default=log.next_offset))
            old = bisect_left(log.records, cutoff, key=lambda record: record.timestamp_ms)
            gone = max(min(unneeded, old), len(log.records) - max_records)
            expired += min(gone, unneeded)
            forced += max(0, gone - unneeded)
            del log.records[:gone]
        return TrimResult(expired, forced)

    def format_offset(self, offset: Offset) -> str:
        return str(offset)

    def parse_offset(self, text: str) -> Offset:
        if not (text.isascii() and text.isdecimal()):
            raise ValueError(f"{text!r} is not an offset of the memory bus, such as 17")
        return int(text)

    async def ping(self) -> Mapping[str, str]:
        self._reach()
        return {"server": "memory", "durability": "none: it ends with the process"}

    async def close(self) -> None:
        """As :meth:`cut`, for good: members that were not closed are gone when their leases end."""
        self.cut()

    def _reach(self) -> Broker:
        if self._link.cut_at is not None:
            raise BusUnavailable("the memory bus is cut off or closed")
        return self._broker

    def _now_ms(self) -> int:
        return self._clock.now() // 1_000_000

    def _topic_status(self, name: str, topic: Topic) -> TopicStatus:
        now = self._now_ms()
        groups = []
        for group_name, group in sorted(topic.groups.items()):
            parts = []
            for number, (log, mine) in enumerate(zip(topic.logs, group.logs, strict=True)):
                waiting = log.records[log.index(mine.delivered + 1) :]
                parts.append(
                    GroupPartition(
                        number,
                        None if mine.owner is None else mine.owner.name,
                        lag=len(waiting),
                        lag_ms=now - waiting[0].timestamp_ms if waiting else 0,
                        pending=len(mine.pending),
                        oldest_pending_ms=now - next(iter(mine.pending.values())) if mine.pending else 0,
                    )
                )
            groups.append(GroupStatus(group_name, sorted(m.name for m in group.members), parts))
        sizes = [len(log.records) for log in topic.logs]
        return TopicStatus(name, len(topic.logs), sum(sizes), groups, sizes)
