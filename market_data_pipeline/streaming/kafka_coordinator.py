"""What a member of a Kafka group asks of the broker that coordinates the group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import msgspec
from aiokafka import errors as kafka
from aiokafka.coordinator.protocol import ConsumerProtocol
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest, SyncGroupRequest

from market_data_core.errors import BusError
from market_data_pipeline.streaming.bus import Offset
from market_data_pipeline.streaming.kafka_errors import check
from market_data_pipeline.streaming.kafka_link import KafkaLink
from market_data_pipeline.streaming.kafka_shares import Claim

RULE: Final = "mdp"
"""The name of our rule of sharing out. Kafka lets only members of one rule into a group."""

_FENCED_INSTANCE: Final = 82
"""FENCED_INSTANCE_ID, which aiokafka has no exception for."""

_MOVED: Final = (
    kafka.NotCoordinatorForGroupError,
    kafka.GroupCoordinatorNotAvailableError,
    kafka.GroupLoadInProgressError,
)


@dataclass(frozen=True, slots=True)
class Joined:
    """An answer to a join. ``claims``, by member id, is for the leader alone, who shares out."""

    generation: int
    member_id: str
    claims: dict[str, Claim] | None


class Coordinator:
    """Requests for ``group``. A response's error is raised as aiokafka's exception: what it means depends on the state
    of the member, which is not known here."""

    def __init__(self, link: KafkaLink, joining: KafkaLink, group: str, instance: str | None = None) -> None:
        self._link = link
        # A join keeps its connection waiting, and heartbeats must go on.
        self._joining = joining
        self._group = group
        # Kafka knows a member that keeps its name by this, and by an id that is new whenever it joins anew.
        self._instance = instance
        self._node: int | None = None

    async def join(self, member_id: str, claim: Claim, session_ms: int) -> Joined:
        """Waits until every member has joined, or was missed for too long.

        Raises:
            MemberIdRequired: join again with the id that its text is.
        """
        metadata = ConsumerProtocol.METADATA(0, [claim.topic], claim.encode())
        protocols = [(RULE, metadata.encode())]
        kind = ConsumerProtocol.PROTOCOL_TYPE
        request = JoinGroupRequest(
            self._group, session_ms, session_ms, member_id, cast(str, self._instance), kind, protocols
        )
        response = await self._send(request, self._joining)
        if response.error_code == kafka.MemberIdRequired.errno:
            raise kafka.MemberIdRequired(response.member_id)
        self._check(response.error_code)
        claims = None
        if response.leader_id == response.member_id:
            claims = {member: _claim(data) for member, *_, data in response.members}
        return Joined(response.generation_id, response.member_id, claims)

    async def sync(
        self, joined: Joined, topics: Mapping[str, str], shares: Mapping[str, list[int]]
    ) -> dict[str, list[int]]:
        """What this member was given, by topic; ``shares``, by member id, is what the leader decided."""
        assignments = [
            (member, ConsumerProtocol.ASSIGNMENT(0, [(topics[member], partitions)], b"").encode())
            for member, partitions in shares.items()
        ]
        request = SyncGroupRequest(
            self._group, joined.generation, joined.member_id, cast(str, self._instance), assignments
        )
        response = await self._send(request, self._joining)
        self._check(response.error_code)
        if not response.member_assignment:
            return {}
        given = ConsumerProtocol.ASSIGNMENT.decode(response.member_assignment)
        return {topic: list(partitions) for topic, partitions in given.assignment}

    async def heartbeat(self, generation: int, member_id: str) -> None:
        self._check((await self._send(HeartbeatRequest(self._group, generation, member_id))).error_code)

    async def leave(self, member_id: str) -> None:
        self._check((await self._send(LeaveGroupRequest(self._group, member_id))).error_code)

    async def commit(
        self, generation: int, member_id: str, topic: str, offsets: Mapping[int, tuple[Offset, str]]
    ) -> None:
        """Keep an offset and a text of each partition for the group."""
        rows = [(partition, offset, text) for partition, (offset, text) in offsets.items()]
        forever = OffsetCommitRequest.DEFAULT_RETENTION_TIME
        request = OffsetCommitRequest(self._group, generation, member_id, forever, [(topic, rows)])
        response = await self._send(request)
        for _, partitions in response.topics:
            for _, code in partitions:
                self._check(code)

    async def committed(self, topic: str, partitions: Iterable[int]) -> dict[int, tuple[Offset, str]]:
        """What :meth:`commit` kept, of the partitions that have it."""
        request = OffsetFetchRequest(self._group, [(topic, list(partitions))])
        return offsets_of(await self._send(request), self._check).get(topic, {})

    async def _send(self, request: Any, link: KafkaLink | None = None) -> Any:
        if self._node is None:
            self._node = await self._link.coordinator(self._group)
        try:
            return await (link or self._link).send(self._node, request)
        except BaseException:
            self._node = None
            raise

    def _check(self, code: int) -> None:
        if code == _FENCED_INSTANCE:
            raise BusError(
                f"another process has joined group {self._group} of Kafka at {self._link.where} as {self._instance}: "
                "give each its own bus.member"
            )
        try:
            check(code, self._group)
        except _MOVED:
            self._node = None
            raise


def _claim(metadata: bytes) -> Claim:
    try:
        return Claim.decode(ConsumerProtocol.METADATA.decode(metadata).user_data)
    except (msgspec.DecodeError, ValueError) as error:
        raise kafka.InconsistentGroupProtocolError(str(error)) from None


def offsets_of(response: Any, check: Any) -> dict[str, dict[int, tuple[Offset, str]]]:
    """The offsets and texts of an OffsetFetchResponse, by topic and partition."""
    check(getattr(response, "error_code", 0))
    out: dict[str, dict[int, tuple[Offset, str]]] = {}
    for topic, partitions in response.topics:
        for partition, offset, text, code in partitions:
            check(code)
            if offset >= 0:
                out.setdefault(topic, {})[partition] = (offset, text or "")
    return out
