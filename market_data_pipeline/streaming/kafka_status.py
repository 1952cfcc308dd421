"""What an operator wants to know about topics and groups on Kafka."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from aiokafka.coordinator.protocol import ConsumerProtocol
from aiokafka.protocol.admin import DescribeGroupsRequest, ListGroupsRequest
from aiokafka.protocol.commit import OffsetFetchRequest

from market_data_pipeline.streaming.bus import GroupPartition, GroupStatus, Offset, TopicStatus
from market_data_pipeline.streaming.kafka_coordinator import offsets_of
from market_data_pipeline.streaming.kafka_errors import check
from market_data_pipeline.streaming.kafka_link import KafkaLink
from market_data_pipeline.streaming.kafka_marks import Mark
from market_data_pipeline.streaming.kafka_reading import KafkaReader


@dataclass(frozen=True, slots=True)
class GroupState:
    """One group as its coordinator knows it, for one topic. ``owners``: member names by partition."""

    name: str
    members: list[str]
    owners: dict[int, str]
    marks: dict[int, Mark]


class KafkaGroups:
    """Asks the brokers about groups over one link."""

    def __init__(self, link: KafkaLink) -> None:
        self._link = link

    async def of(self, topics: Iterable[tuple[str, int]]) -> dict[str, list[GroupState]]:
        """The groups of topics, given with their partitions: those with a member that subscribes to it, or with an
        offset committed in it."""
        wanted = dict(topics)
        out: dict[str, list[GroupState]] = {topic: [] for topic in wanted}
        for node in await self._link.brokers():
            listed = await self._link.send(node, ListGroupsRequest())
            with self._link.translated():
                check(listed.error_code)
            names = sorted(
                name for name, kind in listed.groups if kind == ConsumerProtocol.PROTOCOL_TYPE or not kind
            )
            for name in names:
                marks = await self._marks(node, name, wanted)
                # One at a time: aiokafka 0.14 does not know of a field that follows each group in an answer.
                described = await self._link.send(node, DescribeGroupsRequest([name]))
                ((_, _, _, _, _, members, *_),) = described.groups
                for topic in wanted:
                    mine = [m for m in map(_member, members) if topic in m[1]]
                    if mine or topic in marks:
                        owners = {p: owner for owner, _, given in mine for p in given.get(topic, ())}
                        state = GroupState(name, sorted(m[0] for m in mine), owners, marks.get(topic, {}))
                        out[topic].append(state)
        return {topic: sorted(states, key=lambda state: state.name) for topic, states in out.items()}

    async def _marks(self, node: int, group: str, topics: dict[str, int]) -> dict[str, dict[int, Mark]]:
        request = OffsetFetchRequest(group, [(topic, list(range(count))) for topic, count in topics.items()])
        response = await self._link.send(node, request)
        with self._link.translated():
            found = offsets_of(response, check)
        return {topic: {p: Mark.of(row) for p, row in rows.items()} for topic, rows in found.items()}


def _member(row: tuple[Any, ...]) -> tuple[str, list[str], dict[str, list[int]]]:
    """Name, subscription and assignment of a member."""
    _, name, _, metadata, assignment, *_ = row
    topics = ConsumerProtocol.METADATA.decode(metadata).subscription if metadata else []
    given = ConsumerProtocol.ASSIGNMENT.decode(assignment).assignment if assignment else []
    return name, list(topics), {topic: list(partitions) for topic, partitions in given}


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
            records = sum(end - first for first, end in bounds.values())
            groups = [await self._group(topic, state, bounds) for state in states.get(topic, [])]
            out.append(TopicStatus(topic, count, records, groups))
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
