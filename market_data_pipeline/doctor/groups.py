"""Consumer groups, on any bus: who is behind, what nobody reads, and what is held without getting on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from market_data_pipeline.doctor.finding import Finding, State
from market_data_pipeline.streaming.bus import GroupPartition, GroupStatus, TopicStatus
from market_data_pipeline.streaming.partitions import stream_of
from market_data_pipeline.streaming.redis_topics import lease_key

BEHIND_MS: Final = 30_000
"""Lag from which it is worth a word, as in the alert MdpConsumerLag."""


def groups(topics: Sequence[TopicStatus], *, lease_ms: int, patience_ms: int) -> Iterator[Finding]:
    """What is to be said of every group of ``topics``, at least one line of each.

    ``lease_ms``: how long a member that died keeps its partitions. ``patience_ms``: how long records may be out with a
    member that lives; those of an open window are, until it closes.
    """
    found = [(topic, group) for topic in topics for group in topic.groups]
    if not found:
        yield Finding("groups", "ok", "no consumer group yet")
    for topic, group in found:
        problems = [
            *_leases(topic, group, lease_ms),
            *_unread(topic, group, lease_ms),
            *_standing(topic, group, patience_ms),
            *_behind(topic, group),
        ]
        lag = sum(part.lag for part in group.partitions)
        members = f"{len(group.members)} member{'s' * (len(group.members) != 1)}"
        yield from problems or [_finding(topic, group, "ok", f"{members}, {lag:,} records behind")]


def _leases(topic: TopicStatus, group: GroupStatus, lease_ms: int) -> Iterator[Finding]:
    """Partitions held for somebody who does not beat."""
    for part in group.partitions:
        if part.owner is None or part.owner in group.members:
            continue
        held = f"partition {part.partition} is held for {part.owner}, who does not beat"
        left = part.lease_left_ms
        if left is not None and 0 <= left <= lease_ms:
            fix = "wait: another member takes it then"
            yield _finding(topic, group, "warn", f"{held}, for another {left / 1000:.1f} s", fix)
        elif left is not None:
            long = "for ever" if left < 0 else f"for another {left / 1000:,.0f} s"
            key = lease_key(stream_of(topic.topic, part.partition, topic.partitions), group.group)
            fix = f"when that process is gone: redis-cli DEL '{key}'"
            yield _finding(topic, group, "fail", f"{held}, {long}", fix)


def _unread(topic: TopicStatus, group: GroupStatus, lease_ms: int) -> Iterator[Finding]:
    """Records in partitions that nobody owns."""
    parts = [part for part in group.partitions if part.owner is None and part.lag + part.pending]
    if not parts:
        return
    lag, pending = sum(part.lag for part in parts), sum(part.pending for part in parts)
    found = f"{lag:,} records wait and {pending:,} are unacknowledged in {_names(parts)}"
    if not group.members:
        fix = "start a worker of it, or remove the group if nobody needs it: what it has not read is not trimmed"
        yield _finding(topic, group, "warn", f"{found}, and no member runs", fix)
        return
    long = max(max(part.lag_ms, part.oldest_pending_ms) for part in parts) > 3 * lease_ms
    fix = "see /readyz and the log of its members: who cannot reach the store claims nothing"
    yield _finding(topic, group, "fail" if long else "warn", f"{found}, which no member owns", fix)


def _standing(topic: TopicStatus, group: GroupStatus, patience_ms: int) -> Iterator[Finding]:
    """Members that live and do not finish what they were handed."""
    for part in group.partitions:
        if part.owner in group.members and part.oldest_pending_ms > patience_ms:
            age = part.oldest_pending_ms / 1000
            found = f"{part.owner} has had records of partition {part.partition} for {age:,.0f} s"
            fix = "see its log and /readyz: mostly it waits for the store; else restart it"
            yield _finding(topic, group, "warn", found, fix)


def _behind(topic: TopicStatus, group: GroupStatus) -> Iterator[Finding]:
    parts = [part for part in group.partitions if part.owner is not None and part.lag_ms > BEHIND_MS]
    if parts:
        worst = max(part.lag_ms for part in parts) / 1000
        lag = sum(part.lag for part in parts)
        fix = "start more workers, or see why the store is slow: docs/operations.md, MdpConsumerLag"
        yield _finding(
            topic, group, "warn", f"{lag:,} records and {worst:,.0f} s behind in {_names(parts)}", fix
        )


def _names(parts: Sequence[GroupPartition]) -> str:
    numbers = [str(part.partition) for part in parts]
    return f"partition{'s' * (len(numbers) > 1)} {', '.join(numbers)}"


def _finding(topic: TopicStatus, group: GroupStatus, state: State, found: str, fix: str = "") -> Finding:
    return Finding(f"group {group.group}", state, f"{topic.topic}: {found}", fix)
