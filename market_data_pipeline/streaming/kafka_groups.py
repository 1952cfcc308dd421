"""The groups of topics as the brokers know them: members, who owns what, and how far each group is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any, Final

from aiokafka.coordinator.protocol import ConsumerProtocol
from aiokafka.protocol.admin import DescribeGroupsRequest, ListGroupsRequest
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.metadata import MetadataRequest

from market_data_pipeline.streaming.kafka_coordinator import offsets_of
from market_data_pipeline.streaming.kafka_errors import check
from market_data_pipeline.streaming.kafka_link import KafkaLink
from market_data_pipeline.streaming.kafka_marks import Mark

_OFFSETS: Final = "__consumer_offsets"
"""Where Kafka keeps its groups. The leader of a partition coordinates the groups in it."""


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
        offset committed in it.

        Raises:
            BusUnavailable: some group may be missing now.
        """
        wanted = dict(topics)
        out: dict[str, list[GroupState]] = {topic: [] for topic in wanted}
        for node in await self._coordinators():
            for name in await self._names(node):
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

    async def _coordinators(self) -> list[int]:
        """The brokers that coordinate groups, all of which know theirs.

        A broker that has just come back lists the groups that it has read so far, and does not say that there are
        more; who trims by such a list removes what a group has not read. But it refuses to tell the offsets of a group
        as long as it has not read the partition that the group is in. So each partition is asked for one.
        """
        metadata = await self._link.ask(MetadataRequest([_OFFSETS], allow_auto_topic_creation=False))
        leaders = {p: leader for row in metadata.topics for _, p, leader, *_ in row[3]}
        answers = await asyncio.gather(
            *(
                self._link.send(leaders[p], OffsetFetchRequest(name, [(_OFFSETS, [0])]))
                for p, name in enumerate(_probes(len(leaders)))
            )
        )
        with self._link.translated():
            for answer in answers:
                offsets_of(answer, check)
        return sorted(set(leaders.values()))

    async def _names(self, node: int) -> list[str]:
        listed = await self._link.send(node, ListGroupsRequest())
        with self._link.translated():
            check(listed.error_code)
        kinds = (ConsumerProtocol.PROTOCOL_TYPE, "")
        return sorted(name for name, kind in listed.groups if kind in kinds)

    async def _marks(self, node: int, group: str, topics: Mapping[str, int]) -> dict[str, dict[int, Mark]]:
        request = OffsetFetchRequest(group, [(topic, list(range(size))) for topic, size in topics.items()])
        response = await self._link.send(node, request)
        with self._link.translated():
            found = offsets_of(response, check)
        return {topic: {p: Mark.of(row) for p, row in rows.items()} for topic, rows in found.items()}


@cache
def _probes(partitions: int) -> list[str]:
    """For each partition of Kafka's topic of groups, the name of a group that would be in it."""
    found: dict[int, str] = {}
    numbers = count()
    while len(found) < partitions:
        name = f"mdp-probe-{next(numbers)}"
        found.setdefault(group_partition(name, partitions), name)
    return [found[p] for p in range(partitions)]


def group_partition(group: str, partitions: int) -> int:
    """The partition of Kafka's topic of groups that keeps ``group``: the absolute value of Java's hash of its name, 0
    for the one hash that has none, modulo their number
    (``org.apache.kafka.coordinator.group.GroupCoordinatorService.partitionFor``)."""
    hashed = 0
    units = group.encode("utf-16-be")
    for high, low in zip(units[::2], units[1::2], strict=True):
        hashed = (31 * hashed + (high << 8 | low)) & 0xFFFFFFFF
    if hashed >= 1 << 31:  # it is negative in Java, and its lowest number has no positive one
        hashed = ((1 << 32) - hashed) % (1 << 31)
    return hashed % partitions


def _member(row: tuple[Any, ...]) -> tuple[str, list[str], dict[str, list[int]]]:
    """Name, subscription and assignment of a member."""
    _, name, _, metadata, assignment, *_ = row
    topics = ConsumerProtocol.METADATA.decode(metadata).subscription if metadata else []
    given = ConsumerProtocol.ASSIGNMENT.decode(assignment).assignment if assignment else []
    return name, list(topics), {topic: list(partitions) for topic, partitions in given}
