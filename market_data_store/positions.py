"""Claims, positions and the outbox: the bookkeeping that commits with the bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, LiteralString

import msgspec
from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from market_data_core.errors import Fenced, StoreError
from market_data_core.protocols import Claim, Flush, OutboxRecord, Position
from market_data_store.arrays import Blobs
from market_data_store.connection import one_row

IDLE_LIMIT: Final = "10s"
"""How long a transaction that holds a claim may wait for its client: one that was stopped, or whose wire is dead, would
keep the next owner out for as long as it lasts. The server ends the session, and the flush is tried again."""

_CLAIM: Final[LiteralString] = """
    INSERT INTO stream_claims AS c (topic, consumer_group, partition, epoch, owner, topic_id)
    VALUES (%s, %s, %s, 1, %s, %s)
    ON CONFLICT (topic, consumer_group, partition) DO UPDATE
    SET epoch = c.epoch + 1, owner = EXCLUDED.owner, claimed_at = now(), flush_number = 0, last_flush = NULL,
        topic_id = CASE WHEN c.topic_id <> '' AND EXISTS (
            SELECT FROM stream_positions p
            WHERE (p.topic, p.consumer_group, p.partition) = (c.topic, c.consumer_group, c.partition)
              AND p.read_offset <> '') THEN c.topic_id ELSE EXCLUDED.topic_id END
    RETURNING epoch, topic_id, set_config('idle_in_transaction_session_timeout', %s, true)
"""
_POSITIONS: Final[LiteralString] = """
    SELECT lane, watermark, read_offset, restart_offset, dedupe_offset FROM stream_positions
    WHERE topic = %s AND consumer_group = %s AND partition = %s ORDER BY lane
"""
_READ_OFFSETS: Final[LiteralString] = """
    SELECT consumer_group, partition, read_offset FROM stream_positions WHERE topic = %s AND lane = %s
"""
_OUTBOX: Final[LiteralString] = """
    SELECT id, target_topic, target_partition, key, lane, value FROM stream_outbox
    WHERE topic = %s AND consumer_group = %s AND partition = %s ORDER BY id
"""
_LOCK: Final[LiteralString] = """
    SELECT epoch, owner, flush_number, last_flush, set_config('idle_in_transaction_session_timeout', %s, true)
    FROM stream_claims
    WHERE topic = %s AND consumer_group = %s AND partition = %s FOR UPDATE
"""
_PUT: Final[LiteralString] = """
    INSERT INTO stream_outbox
        (topic, consumer_group, partition, target_topic, target_partition, key, lane, value)
    SELECT %s, %s, %s, i.topic, i.partition, i.key, i.lane, i.value
    FROM unnest(%s::text[], %s::int4[], %s::text[], %s::text[], %s::bytea[]) WITH ORDINALITY
      AS i(topic, partition, key, lane, value, place) ORDER BY i.place
    RETURNING id
"""
_SAVE: Final[LiteralString] = """
    WITH claim AS (SELECT %s::text AS topic, %s::text AS consumer_group, %s::int4 AS partition),
    published AS (
        DELETE FROM stream_outbox o USING claim c WHERE o.id = ANY(%s::int8[])
          AND (o.topic, o.consumer_group, o.partition) = (c.topic, c.consumer_group, c.partition)),
    forgotten AS (
        DELETE FROM stream_positions p USING claim c WHERE p.lane = ANY(%s::text[])
          AND (p.topic, p.consumer_group, p.partition) = (c.topic, c.consumer_group, c.partition)),
    numbered AS (
        UPDATE stream_claims s SET flush_number = %s::int8, last_flush = %s::jsonb FROM claim c
        WHERE (s.topic, s.consumer_group, s.partition) = (c.topic, c.consumer_group, c.partition)
          AND %s::int8 > 0)
    INSERT INTO stream_positions AS p
        (topic, consumer_group, partition, lane, watermark, read_offset, restart_offset, dedupe_offset)
    SELECT c.topic, c.consumer_group, c.partition, i.*
    FROM claim c, unnest(%s::text[], %s::int8[], %s::text[], %s::text[], %s::text[]) AS i
    ON CONFLICT (topic, consumer_group, partition, lane) DO UPDATE
    SET watermark = EXCLUDED.watermark, read_offset = EXCLUDED.read_offset,
        restart_offset = EXCLUDED.restart_offset, dedupe_offset = EXCLUDED.dedupe_offset
    WHERE (p.watermark, p.read_offset, p.restart_offset, p.dedupe_offset)
          IS DISTINCT FROM (EXCLUDED.watermark, EXCLUDED.read_offset, EXCLUDED.restart_offset,
                            EXCLUDED.dedupe_offset)
"""


class Summary(msgspec.Struct, frozen=True):
    """What a flush did, kept with the claim until the next one: the answer to a flush that comes again.

    The bars and signals themselves are in the outbox: ``bars`` and ``signals`` are the rows that hold them.
    """

    outbox: list[int]
    bars: int | None
    refused: int
    unchanged: int
    amended: int
    stale: int
    rejected: list[tuple[str, str]] = field(default_factory=list)
    signals: int | None = None
    withdrawn: int = 0
    created: int = 0


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A record for the outbox, not numbered yet."""

    topic: str
    key: str
    value: bytes


async def take_claim(
    connection: AsyncConnection[Any], topic: str, group: str, partition: int, owner: str, topic_id: str
) -> Claim:
    """Raise the epoch. A flush of the owner before that is under way is waited for, and seen."""
    cursor = await connection.execute(_CLAIM, (topic, group, partition, owner, topic_id, IDLE_LIMIT))
    epoch, known_id, _ = await one_row(cursor)
    of = (topic, group, partition)
    lanes = await (await connection.execute(_POSITIONS, of)).fetchall()
    positions = {lane: Position(lane, *rest) for lane, *rest in lanes}
    return Claim(topic, group, partition, epoch, owner, positions, await outbox(connection, of), known_id)


async def read_offsets(connection: AsyncConnection[Any], topic: str, lane: str) -> dict[tuple[str, int], str]:
    """How far one lane is read, by (group, partition), without a claim."""
    rows = await (await connection.execute(_READ_OFFSETS, (topic, lane))).fetchall()
    return {(group, partition): offset for group, partition, offset in rows}


async def outbox(connection: AsyncConnection[Any], of: tuple[str, str, int]) -> list[OutboxRecord]:
    """What a partition of a group has still to publish, in the order in which it was written."""
    rows = await (await connection.execute(_OUTBOX, of, binary=True)).fetchall()
    return [OutboxRecord(*row) for row in rows]


async def lock_claim(connection: AsyncConnection[Any], flush: Flush) -> Summary | None:
    """Make sure that the claim is still the newest, and keep it so until the transaction ends.

    Returns what ``flush`` did when it was applied before, else None.

    Raises:
        Fenced: another claim came after.
        StoreError: a later flush of this claim was applied already.
    """
    claim = flush.claim
    cursor = await connection.execute(_LOCK, (IDLE_LIMIT, claim.topic, claim.group, claim.partition))
    row = await cursor.fetchone()
    what = f"partition {claim.partition} of {claim.topic} for group {claim.group}"
    if row is None:
        raise Fenced(f"{what} has no claim any more: claim it again")
    epoch, owner, number, last, _ = row
    if epoch != claim.epoch:
        raise Fenced(
            f"{what} is at epoch {epoch} of {owner}: epoch {claim.epoch} may write nothing more, drop its state"
        )
    if flush.number and number > flush.number:
        raise StoreError(
            f"{what}: flush {flush.number} comes after {number} was applied: number them in order"
        )
    return msgspec.convert(last, Summary) if flush.number and number == flush.number else None


async def put(
    connection: AsyncConnection[Any], claim: Claim, records: Sequence[Outgoing]
) -> list[OutboxRecord]:
    """Write ``records`` to the outbox of the claim's partition, to go to the same partition of their topics."""
    if not records:
        return []
    columns = (
        [r.topic for r in records],
        [claim.partition] * len(records),
        [printable(r.key) for r in records],
        [None] * len(records),
        Blobs([r.value for r in records]),
    )
    of = (claim.topic, claim.group, claim.partition)
    ids = await (await connection.execute(_PUT, (*of, *columns))).fetchall()
    numbered = zip(sorted(i for (i,) in ids), records, strict=True)
    return [OutboxRecord(i, r.topic, claim.partition, r.key, None, r.value) for i, r in numbered]


async def save(connection: AsyncConnection[Any], flush: Flush, summary: Summary) -> None:
    """Everything of ``flush`` that is no bar: published outbox rows, forgotten lanes, positions, its number."""
    claim = flush.claim
    gone = set(flush.forget)
    kept = [p for p in flush.positions if p.lane not in gone]
    positions = (
        [p.lane for p in kept],
        [p.watermark for p in kept],
        [p.read_offset for p in kept],
        [p.restart_offset for p in kept],
        [p.dedupe_offset for p in kept],
    )
    did = Jsonb(msgspec.to_builtins(summary)) if flush.number else None
    fixed = (claim.topic, claim.group, claim.partition, list(flush.published), list(flush.forget))
    await connection.execute(_SAVE, (*fixed, flush.number, did, flush.number, *positions))


def printable(text: str) -> str:
    """``text`` as PostgreSQL can keep it: without NUL and without halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
