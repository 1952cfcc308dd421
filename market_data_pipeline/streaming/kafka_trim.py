"""Removing the beginning of partitions, never what a group still needs, short of the hard cap."""

from __future__ import annotations

import time

import structlog

from market_data_pipeline.streaming.bus import Offset, TrimResult
from market_data_pipeline.streaming.kafka_deletions import Deletions
from market_data_pipeline.streaming.kafka_groups import GroupState, KafkaGroups
from market_data_pipeline.streaming.kafka_link import KafkaLink
from market_data_pipeline.streaming.kafka_reading import KafkaReader

log = structlog.get_logger(__name__)


class KafkaTrim:
    """Trims topics over one link."""

    def __init__(self, link: KafkaLink, deletions: Deletions) -> None:
        self._reader = KafkaReader(link)
        self._groups = KafkaGroups(link)
        self._deletions = deletions

    async def topic(self, topic: str, count: int, *, retention_ms: int, max_records: int) -> TrimResult:
        """See :meth:`Bus.trim`. Kafka forgets a group that has had no member for ``offsets.retention.minutes``; what
        only that group needed may go then."""
        groups = (await self._groups.of([(topic, count)]))[topic]
        bounds = await self._reader.bounds(topic, range(count))
        young = await self._reader.since(topic, range(count), time.time_ns() // 1_000_000 - retention_ms)
        expired = forced = 0
        cuts: dict[int, Offset] = {}
        for partition, (first, end) in bounds.items():
            needed = min(max(_needed(groups, partition, first, end), first), end)
            first_young = young[partition]
            old = end if first_young is None else first_young
            cut = max(min(needed, old), end - max_records, first)
            if cut > first:
                cuts[partition] = cut
                expired += min(cut, needed) - first
                forced += max(0, cut - needed)
            if cut > needed:
                lost = cut - needed
                log.warning(
                    "records_lost_to_hard_cap",
                    topic=topic,
                    partition=partition,
                    records=lost,
                    cap=max_records,
                )
        if cuts:
            await self._deletions.remove_before(topic, cuts)
        return TrimResult(expired, forced)


def _needed(groups: list[GroupState], partition: int, first: Offset, end: Offset) -> Offset:
    """The first offset that some group may still want to read."""
    # A group that has kept nothing yet begins at the first record.
    marks = [group.marks.get(partition) for group in groups]
    return min((first if mark is None else mark.needed for mark in marks), default=end)
