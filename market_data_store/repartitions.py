"""What the store keeps of topics whose number of partitions changes: who may write, and the positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString

from psycopg import AsyncConnection

from market_data_core.errors import Fenced
from market_data_core.protocols import Claim, Position
from market_data_store import positions

DONE: Final = "repartitioned"

_TAKE: Final[LiteralString] = """
    UPDATE stream_claims SET epoch = epoch + 1, owner = %s, claimed_at = now(), flush_number = 0, last_flush = NULL
    WHERE topic = %s
"""
_ENTER: Final[LiteralString] = """
    INSERT INTO stream_claims (topic, consumer_group, partition, epoch, owner)
    SELECT DISTINCT topic, consumer_group, partition, 1, %s FROM stream_positions WHERE topic = %s
    ON CONFLICT (topic, consumer_group, partition) DO NOTHING
"""
_CLAIMS: Final[LiteralString] = """
    SELECT consumer_group, partition, epoch, owner, topic_id FROM stream_claims WHERE topic = %s
    ORDER BY consumer_group, partition
"""
_POSITIONS: Final[LiteralString] = """
    SELECT consumer_group, partition, lane, watermark, read_offset, restart_offset, dedupe_offset
    FROM stream_positions WHERE topic = %s
"""
_LOCK: Final[LiteralString] = """
    SELECT topic, consumer_group, partition, owner FROM stream_claims
    WHERE topic = %s AND owner <> %s ORDER BY consumer_group, partition
"""
_PUT: Final[LiteralString] = """
    INSERT INTO stream_positions
        (topic, consumer_group, partition, lane, watermark, read_offset, restart_offset, dedupe_offset)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
"""
_DONE: Final[LiteralString] = "UPDATE stream_claims SET owner = %s, topic_id = %s WHERE topic = %s"


@dataclass(frozen=True, slots=True)
class GroupPosition:
    """A position of one partition in one group."""

    group: str
    partition: int
    position: Position


async def look(connection: AsyncConnection[Any], topic: str) -> list[Claim]:
    """Every claim on ``topic``, of all groups, with its positions and outbox. Claims nothing."""
    lanes: dict[tuple[str, int], dict[str, Position]] = {}
    for group, partition, lane, *rest in await (await connection.execute(_POSITIONS, (topic,))).fetchall():
        lanes.setdefault((group, partition), {})[lane] = Position(lane, *rest)
    out = []
    rows = await (await connection.execute(_CLAIMS, (topic,))).fetchall()
    for group, partition, epoch, owner, topic_id in rows:
        outbox = await positions.outbox(connection, (topic, group, partition))
        found = lanes.get((group, partition), {})
        out.append(Claim(topic, group, partition, epoch, owner, found, outbox, topic_id))
    return out


async def begin(connection: AsyncConnection[Any], marks: dict[str, str]) -> None:
    """Raise the epoch of every partition of each topic, in all groups, and make its mark the owner."""
    for topic, mark in marks.items():
        await connection.execute(_ENTER, (mark, topic))
        await connection.execute(_TAKE, (mark, topic))


async def finish(
    connection: AsyncConnection[Any],
    marks: dict[str, str],
    moved: Mapping[str, Sequence[GroupPosition]],
    topic_ids: Mapping[str, str],
) -> None:
    """Put the positions ``moved``, of the topics with ``topic_ids``, in the place of all that each topic had, and empty
    its outbox.

    Epochs stay: whoever wakes up from before must find a newer one.

    Raises:
        Fenced: somebody has claimed a partition since :func:`begin`; nothing was changed.
    """
    for topic, mark in marks.items():
        # Claims are rows that only updates change, so with the table locked none can come in between.
        await connection.execute("LOCK TABLE stream_claims IN SHARE ROW EXCLUSIVE MODE")
        row = await (await connection.execute(_LOCK, (topic, mark))).fetchone()
        if row is not None:
            raise Fenced(
                f"{row[3]} has claimed partition {row[2]} of {topic} for group {row[1]} meanwhile: "
                "stop it, and run the same command again"
            )
        await connection.execute("DELETE FROM stream_positions WHERE topic = %s", (topic,))
        await connection.execute("DELETE FROM stream_outbox WHERE topic = %s", (topic,))
        for row_of in moved[topic]:
            p = row_of.position
            values = (p.lane, p.watermark, p.read_offset, p.restart_offset, p.dedupe_offset)
            await connection.execute(_PUT, (topic, row_of.group, row_of.partition, *values))
        await connection.execute(_DONE, (DONE, topic_ids[topic], topic))
