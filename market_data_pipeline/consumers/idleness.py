"""Whether a topic still has something for a member of a group."""

from __future__ import annotations

from collections.abc import Collection

from market_data_pipeline.streaming.bus import GroupPartition, TopicStatus


def waits(topic: TopicStatus, group: str, member: str, owned: Collection[int]) -> bool:
    """Whether ``topic`` has something for ``member`` of ``group``, which owns the partitions ``owned``: now, or as
    soon as the lease of a dead member ends."""
    groups = [g for g in topic.groups if g.group == group]
    known = {p.partition for g in groups for p in g.partitions}
    # A partition that no member of the group has come to yet is not among those of the group.
    if any(size and p not in known for p, size in enumerate(topic.sizes)):
        return True
    return any(_waits(p, g.members, member, owned) for g in groups for p in g.partitions)


def _waits(p: GroupPartition, members: list[str], member: str, owned: Collection[int]) -> bool:
    if p.partition in owned:
        return p.lag > 0
    # Ours by its lease may not have been told by a poll yet.
    theirs = p.owner in members and p.owner != member
    # What an owner was handed and did not finish is no lag any more, but still pending.
    return not theirs and (p.lag > 0 or p.pending > 0)
