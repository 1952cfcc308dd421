"""What an operator wants to know about topics and groups on Kafka."""

from __future__ import annotations

from market_data_pipeline.streaming.bus import GroupPartition, GroupStatus, Offset, TopicStatus
from market_data_pipeline.streaming.kafka_groups import GroupState, KafkaGroups
from market_data_pipeline.streaming.kafka_link import KafkaLink
from market_data_pipeline.streaming.kafka_marks import Mark
from market_data_pipeline.streaming.kafka_reading import KafkaReader


class KafkaStatus:
    """Reads the state of topics over one link."""

    def __init__(self, link: KafkaLink) -> None:
        self._reader = KafkaReader(link)
        self._groups = KafkaGroups(link)

    async def topics(self, counts: dict[str, int]) -> list[TopicStatus]:
        """Topics, groups, owners, lag and what is pending; all zero for a topic that does not exist. Ages are by this
        machine's clock."""
        states = await self._groups.of((topic, count) for topic, count in counts.items() if count)
        out = []
        for topic, count in counts.items():
            bounds = await self._reader.bounds(topic, range(count))
            sizes = [bounds[p][1] - bounds[p][0] for p in range(count)]
            groups = [await self._group(topic, state, bounds) for state in states.get(topic, [])]
            out.append(TopicStatus(topic, count, sum(sizes), groups, sizes))
        return out

    async def _group(
        self, topic: str, state: GroupState, bounds: dict[int, tuple[Offset, Offset]]
    ) -> GroupStatus:
        marks = {}
        for partition, (first, end) in bounds.items():
            mark = state.marks.get(partition, Mark(first, first))
            done = min(max(mark.done, first), end)
            marks[partition] = Mark(done, min(max(mark.handed, done), end))
        lagging = {p: mark.handed for p, mark in marks.items() if mark.handed < bounds[p][1]}
        pending = {p: mark.done for p, mark in marks.items() if mark.done < mark.handed}
        lag_ages = await self._reader.ages(topic, lagging)
        pending_ages = await self._reader.ages(topic, pending)
        parts = [
            GroupPartition(
                partition=p,
                owner=state.owners.get(p),
                lag=bounds[p][1] - mark.handed,
                lag_ms=lag_ages.get(p, 0),
                pending=mark.handed - mark.done,
                oldest_pending_ms=pending_ages.get(p, 0),
            )
            for p, mark in marks.items()
        ]
        return GroupStatus(state.name, state.members, parts)
