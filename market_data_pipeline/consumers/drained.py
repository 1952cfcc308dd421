"""Whether a topic is at rest: nobody reads it, nobody writes to it, and everything in it is done with."""

from __future__ import annotations

from collections.abc import Iterable

from market_data_core.protocols import Claim
from market_data_pipeline.streaming.bus import Bus, Offset, TopicStatus


def in_the_way(status: TopicStatus, claims: Iterable[Claim]) -> str:
    """What keeps a topic from being moved, in one sentence with the fix; empty when nothing does."""
    topic = status.topic
    for group in status.groups:
        if group.members:
            return (
                f"group {group.group} of {topic} has members alive ({', '.join(group.members[:3])}): "
                "end them with --until-idle, so that no window stays open"
            )
        lag, pending = sum(p.lag for p in group.partitions), sum(p.pending for p in group.partitions)
        if lag or pending:
            return (
                f"group {group.group} of {topic} has {lag} records to read and {pending} to finish: "
                "stop the producers and run the group's command with --until-idle"
            )
    for claim in claims:
        held = sorted(lane for lane, p in claim.positions.items() if p.restart_offset)
        if held:
            return (
                f"group {claim.group} has open windows in partition {claim.partition} of {topic} (lane {held[0]}): "
                "run mdp stream micro-batch --until-idle once more, which closes them"
            )
    return ""


async def unread(bus: Bus, status: TopicStatus, claims: Iterable[Claim]) -> str:
    """What a group has not read by its positions in the store, in one sentence; empty when nothing.

    A bus tells the lag of the groups that it knows, and it may never have seen one that has positions.
    """
    read: dict[str, dict[int, Offset]] = {}
    for claim in claims:
        offsets = [bus.parse_offset(p.read_offset) for p in claim.positions.values() if p.read_offset]
        of = read.setdefault(claim.group, {})
        if offsets:
            of[claim.partition] = max(offsets)
    for group, of in read.items():
        for partition in range(status.partitions):
            start = of[partition] + 1 if partition in of else None
            if await bus.read(status.topic, partition, start, 1):
                return (
                    f"group {group} has not read partition {partition} of {status.topic} to its end: "
                    "run the group's command with --until-idle"
                )
    return ""


async def ends(bus: Bus, topic: str, partitions: int) -> list[Offset | None]:
    """The newest offset of each partition: where it has moved, somebody publishes."""
    return [await bus.end_offset(topic, p) for p in range(partitions)]
