"""Reading partitions of Kafka: where they begin and end, and ranges of their records, outside of any group."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiokafka import errors as kafka
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest

from market_data_core.errors import BusUnavailable
from market_data_pipeline.streaming.bus import Offset
from market_data_pipeline.streaming.kafka_errors import check
from market_data_pipeline.streaming.kafka_link import KafkaLink
from market_data_pipeline.streaming.kafka_records import after, batches

PARTITION_BYTES: Final = 1 << 20
"""What is taken of one partition at once, unless a single batch is larger."""
ANSWER_BYTES: Final = 8 << 20
_LATEST: Final = -1
_EARLIEST: Final = -2
_UNCOMMITTED: Final = 0


@dataclass(slots=True)
class Fetched:
    """What one fetch brought of a partition. ``end``: where the partition ended then. ``missed``: the offset asked for
    does not exist; ``buffer`` holds whole batches, of which the first may begin before that offset."""

    partition: int
    first: Offset
    buffer: bytes
    end: Offset
    began: int
    missed: bool = False

    @property
    def next(self) -> Offset:
        """Where the next fetch goes on."""
        return after(self.buffer, self.first)


async def fetch(
    link: KafkaLink,
    node: int,
    topic: str,
    wanted: Mapping[int, Offset],
    *,
    wait_ms: int = 0,
    partition_bytes: int = PARTITION_BYTES,
    began: int = 0,
) -> list[Fetched]:
    """Records of the partitions that ``node`` leads, each from its offset on; waits up to ``wait_ms`` for the first.

    Raises:
        BusUnavailable: the broker is away, or leads one of them no more.
        BusError: it refuses.
    """
    asked = [(partition, offset, partition_bytes) for partition, offset in wanted.items()]
    request = FetchRequest(wait_ms, 1, ANSWER_BYTES, _UNCOMMITTED, [(topic, asked)])
    response = await link.send(node, request)
    with link.translated():
        check(getattr(response, "error_code", 0), topic)
    out = []
    for _, partitions in response.topics:
        for partition, code, end, *_, buffer in partitions:
            missed = code == kafka.OffsetOutOfRangeError.errno
            if code and not missed:
                await refused(link, topic, code)
            out.append(Fetched(partition, wanted[partition], buffer or b"", end, began, missed))
    return out


async def refused(link: KafkaLink, topic: str, code: int) -> None:
    """Raise the error of one partition; where its leader is not the one it was, learn who is."""
    with link.translated():
        try:
            check(code, topic)
        except kafka.KafkaError as error:
            if getattr(error, "invalid_metadata", False) or error.retriable:
                await link.refresh(topic)
            raise


class KafkaReader:
    """Reads over one link."""

    def __init__(self, link: KafkaLink) -> None:
        self._link = link

    async def bounds(self, topic: str, partitions: Iterable[int]) -> dict[int, tuple[Offset, Offset]]:
        """Of each partition, its first offset and the one that the next record will get."""
        wanted = list(partitions)
        first, end = await asyncio.gather(
            self._offsets(topic, wanted, _EARLIEST), self._offsets(topic, wanted, _LATEST)
        )
        return {p: (first[p], end[p]) for p in wanted}

    async def since(
        self, topic: str, partitions: Iterable[int], timestamp_ms: int
    ) -> dict[int, Offset | None]:
        """Of each partition, the first offset of that time or later; None when there is none."""
        found = await self._offsets(topic, list(partitions), timestamp_ms)
        return {p: None if offset < 0 else offset for p, offset in found.items()}

    async def records(
        self,
        topic: str,
        partition: int,
        start: Offset,
        limit: int,
        end: Offset,
        gone: Collection[Offset] = (),
    ) -> list[Any]:
        """Up to ``limit`` records of aiokafka from ``start`` on and before ``end`` that are not ``gone``."""
        out: list[Any] = []
        while start < end and len(out) < limit:
            leaders = await self._link.leaders(topic, [partition])
            (found,) = await fetch(self._link, next(iter(leaders)), topic, {partition: start})
            if found.missed or found.next == start:
                break  # trimmed under our hands
            with self._link.translated():
                for some in batches(found.buffer, start, gone):
                    out += [record for record in some if record.offset < end]
                    if len(out) >= limit:
                        break
            start = found.next
        return out[:limit]

    async def ages(self, topic: str, offsets: Mapping[int, Offset]) -> dict[int, int]:
        """How long ago, in ms, the first record from each offset on was written."""
        now = time.time_ns() // 1_000_000
        leaders = await self._link.leaders(topic, offsets)
        found = await asyncio.gather(
            *(
                fetch(self._link, node, topic, {p: offsets[p] for p in parts}, partition_bytes=1)
                for node, parts in leaders.items()
            )
        )
        out = {}
        with self._link.translated():
            for fetched in (f for some in found for f in some):
                for records in batches(fetched.buffer, fetched.first):
                    out[fetched.partition] = max(0, now - records[0].timestamp)
                    break
        return out

    async def _offsets(self, topic: str, partitions: list[int], when: int) -> dict[int, Offset]:
        out: dict[int, Offset] = {}
        for node, some in (await self._link.leaders(topic, partitions)).items():
            request = OffsetRequest(-1, _UNCOMMITTED, [(topic, [(p, when) for p in some])])
            response = await self._link.send(node, request)
            for _, found in response.topics:
                for partition, code, *_, offset in found:
                    if code:
                        await refused(self._link, topic, code)
                    out[partition] = offset
        if len(out) < len(partitions):
            raise BusUnavailable(f"Kafka at {self._link.where} did not tell all offsets of {topic}")
        return out
