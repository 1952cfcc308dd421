"""Names of partitions and the spreading of them over members: pure functions, shared by the drivers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from market_data_core.errors import BusError
from market_data_core.partitioner import partition_of
from market_data_pipeline.streaming.bus import Record

MAX_PARTITIONS: Final = 4096
_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")


def check_topic(topic: str) -> str:
    """``topic`` when it is a name that every driver takes (Kafka's rule).

    Raises:
        BusError: it is not.
    """
    if _TOPIC.fullmatch(topic) is None or topic in (".", ".."):
        raise BusError(
            f"{topic!r} cannot be a topic: use 1 to 249 letters, digits, dots, dashes or underscores"
        )
    return topic


def check_partitions(topic: str, partitions: int) -> int:
    """``partitions`` when a topic can have that many.

    Raises:
        BusError: it cannot.
    """
    if not 1 <= partitions <= MAX_PARTITIONS:
        raise BusError(f"topic {topic} cannot have {partitions} partitions: use 1 to {MAX_PARTITIONS}")
    return partitions


def stream_of(topic: str, partition: int, partitions: int) -> str:
    """The stream that holds ``partition``: the topic's own name when it is the only one, else ``topic.p``."""
    return topic if partitions == 1 else f"{topic}.{partition}"


def check_clash(topic: str, partitions: int, known: Iterable[tuple[str, int]]) -> None:
    """See that no stream of the new ``topic`` is a stream of one of the ``known`` topics and their counts.

    Raises:
        BusError: topic ``a`` in four partitions and topic ``a.1`` in one would be the same stream.
    """
    streams = {stream_of(topic, p, partitions) for p in range(partitions)}
    for other, count in known:
        if other == topic:
            continue
        shared = streams & {stream_of(other, p, count) for p in range(count)}
        if shared:
            raise BusError(
                f"topic {topic} and topic {other} would share the stream {min(shared)}: rename one of them"
            )


def grouped(records: Sequence[Record], partitions: int, partition: int | None) -> dict[int, Sequence[Record]]:
    """``records`` by partition, each partition's in the order given: all in ``partition`` when it is named.

    Raises:
        BusError: there is no such partition.
    """
    if partition is not None and not 0 <= partition < partitions:
        raise BusError(f"there is no partition {partition}: the topic has {partitions}, counted from 0")
    if partition is not None or partitions == 1:
        return {partition or 0: records} if records else {}
    parts: dict[int, list[Record]] = {}
    for record in records:
        parts.setdefault(partition_of(record.key, partitions), []).append(record)
    return dict(parts)


def quota(members: Collection[str], me: str, partitions: int) -> int:
    """How many partitions ``me`` should own: ``partitions`` spread evenly, the rest going to the first by name.

    The quotas of all members add up to ``partitions`` as soon as the members see each other.
    """
    ranked = sorted(members)
    share, rest = divmod(partitions, len(ranked))
    return share + (ranked.index(me) < rest)


def preference(members: Collection[str], me: str, partitions: int) -> list[int]:
    """All partitions in the order in which ``me`` tries to get them: members start at different ones, so
    that they rarely try for the same."""
    ranked = sorted(members)
    start = partitions * ranked.index(me) // len(ranked)
    return [(start + i) % partitions for i in range(partitions)]
