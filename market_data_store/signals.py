"""The table ``signals``: one row a decision, keyed by (provider, symbol, ts, name).

``ts`` is kept in microseconds, rounded down; of two signals with one key the later in the list counts. A row that was
changed has its ``revision`` in its meta, from 2 on: a worker that was stopped between its commit and publishing may
publish what is old by then, and readers of the topic take the highest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, LiteralString, Protocol

import msgspec
import numpy as np
from psycopg import AsyncConnection

from market_data_core.events import Signal
from market_data_store.arrays import Documents, Texts, timestamps
from market_data_store.bars import moment
from market_data_store.connection import one_row

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
# float, since jsonb holds numbers that are too large for one, and those are infinite then.
_meta: Final = msgspec.json.Decoder(dict[str, Any], float_hook=float).decode

_UPSERT: Final[LiteralString] = """
    WITH given AS (
        SELECT * FROM unnest(%s::text[], %s::text[], %s::timestamptz[], %s::text[], %s::float8[], %s::float8[],
                             %s::jsonb[]) WITH ORDINALITY AS i(provider, symbol, ts, name, value, score, meta, place)),
    written AS (
        INSERT INTO signals AS s (provider, symbol, ts, name, value, score, meta, writer, updated_at)
        SELECT provider, symbol, ts, name, value, score, meta, %s::text, now() FROM given ORDER BY place
        ON CONFLICT (symbol, ts, provider, name) DO UPDATE
        SET value = EXCLUDED.value, score = EXCLUDED.score, writer = EXCLUDED.writer, updated_at = EXCLUDED.updated_at,
            meta = EXCLUDED.meta || jsonb_build_object('revision', coalesce((s.meta ->> 'revision')::int4, 1) + 1)
        WHERE (s.value, s.score, s.meta - 'revision') IS DISTINCT FROM (EXCLUDED.value, EXCLUDED.score, EXCLUDED.meta)
        RETURNING provider, symbol, ts, name, coalesce((s.meta ->> 'revision')::int4, 1) AS revision)
    SELECT coalesce(array_agg(place ORDER BY place), '{}'), coalesce(array_agg(revision ORDER BY place), '{}')
    FROM given JOIN written USING (provider, symbol, ts, name)
"""
_WITHDRAW: Final[LiteralString] = """
    UPDATE signals AS s
    SET updated_at = now(), meta = s.meta || jsonb_build_object(
        'withdrawn', true, 'revision', coalesce((s.meta ->> 'revision')::int4, 1) + 1)
    FROM unnest(%s::text[], %s::text[], %s::timestamptz[]) AS r(provider, symbol, ts)
    WHERE (s.symbol, s.ts, s.provider) = (r.symbol, r.ts, r.provider)
      AND s.writer = %s AND NOT s.meta @> '{"withdrawn": true}'
      AND NOT EXISTS (
        SELECT FROM unnest(%s::text[], %s::text[], %s::timestamptz[], %s::text[]) AS k(provider, symbol, ts, name)
        WHERE (s.symbol, s.ts, s.provider, s.name) = (k.symbol, k.ts, k.provider, k.name))
    RETURNING s.provider, s.symbol, s.ts, s.name, s.value, s.score, s.meta
"""


class Sessions(Protocol):
    """Whoever hands out transactions: each is committed when its block ends without an error."""

    def session(self) -> AbstractAsyncContextManager[AsyncConnection[Any]]: ...


class SignalsStoreClient:
    """Writes and reads signals through the connections of ``sessions``, a StoreClient."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def upsert(self, signals: Sequence[Signal]) -> list[Signal]:
        """Store ``signals``; return those that were new or changed.

        Raises:
            StoreUnavailable: try again later. StoreError: the database refuses a row.
        """
        async with self._sessions.session() as connection:
            return await upsert(connection, signals)

    async def read(
        self,
        *,
        symbols: Sequence[str] | None = None,
        provider: str | None = None,
        name: str | None = None,
        start: int | None = None,
        end: int | None = None,
        limit: int | None = None,
    ) -> list[Signal]:
        """Signals of ``[start, end)`` (ns UTC), ordered by (symbol, ts, provider, name)."""
        async with self._sessions.session() as connection:
            rows = read(connection, symbols, provider, name, start, end, limit)
            return [signal async for signal in rows]

    async def pages(
        self,
        *,
        symbols: Sequence[str] | None = None,
        provider: str | None = None,
        name: str | None = None,
        start: int | None = None,
        end: int | None = None,
        page: int = 20_000,
    ) -> AsyncIterator[list[Signal]]:
        """:meth:`read` in lists of up to ``page`` signals, for ranges of any size.

        No connection is held between lists; each list is what is stored when it is read.
        """
        after: Signal | None = None
        while True:
            async with self._sessions.session() as connection:
                # The primary key has this order; see bars.read.
                await connection.execute("SET LOCAL enable_sort = off")
                rows = read(connection, symbols, provider, name, start, end, page, after)
                found = [signal async for signal in rows]
            if found:
                after = found[-1]
                yield found
            if len(found) < page:
                return


async def upsert(
    connection: AsyncConnection[Any], signals: Sequence[Signal], writer: str = ""
) -> list[Signal]:
    """:meth:`SignalsStoreClient.upsert` within a transaction of the caller's; ``writer`` is noted with each row."""
    latest = {(s.symbol, s.ts // 1000, s.provider, s.name): s for s in signals}
    # In key order, so that no two writers wait for each other.
    rows = [latest[key] for key in sorted(latest)]
    if not rows:
        return []
    columns = (
        Texts([s.provider for s in rows]),
        Texts([s.symbol for s in rows]),
        timestamps(np.array([s.ts for s in rows], np.int64)),
        Texts([s.name for s in rows]),
        np.array([s.value for s in rows], np.float64),
        np.array([s.score for s in rows], np.float64),
        Documents([_json(s.meta) for s in rows]),
    )
    cursor = await connection.execute(_UPSERT, (*columns, writer), binary=True)
    written, revisions = await one_row(cursor)
    pairs = zip(written.tolist(), revisions.tolist(), strict=True)
    return [_revised(rows[place - 1], revision) for place, revision in pairs]


def _json(meta: dict[str, Any]) -> bytes:
    """``meta`` without the revision that it had when it was read."""
    return msgspec.json.encode(
        {k: v for k, v in meta.items() if k != "revision"} if "revision" in meta else meta
    )


def _revised(signal: Signal, revision: int) -> Signal:
    return signal if revision == 1 else replace(signal, meta=signal.meta | {"revision": revision})


async def withdraw(
    connection: AsyncConnection[Any],
    revised: Sequence[tuple[str, str, int]],
    kept: Sequence[Signal],
    writer: str,
) -> list[Signal]:
    """Mark what ``writer`` stored at the (provider, symbol, ts) of ``revised`` and is not in ``kept`` as withdrawn.

    The rows stay, since somebody may have acted on them. Returns those that were marked now.
    """
    at = sorted(set(revised), key=lambda key: (key[1], key[2], key[0]))
    columns = (
        Texts([provider for provider, _, _ in at]),
        Texts([symbol for _, symbol, _ in at]),
        timestamps(np.array([ts for _, _, ts in at], np.int64)),
    )
    still = (
        Texts([s.provider for s in kept]),
        Texts([s.symbol for s in kept]),
        timestamps(np.array([s.ts for s in kept], np.int64)),
        Texts([s.name for s in kept]),
    )
    rows = await (await connection.execute(_WITHDRAW, (*columns, writer, *still))).fetchall()
    return [Signal(p, symbol, _ns(ts), *rest) for p, symbol, ts, *rest in sorted(rows, key=lambda r: r[:4])]


async def read(
    connection: AsyncConnection[Any],
    symbols: Sequence[str] | None,
    provider: str | None,
    name: str | None,
    start: int | None,
    end: int | None,
    limit: int | None,
    after: Signal | None = None,
) -> AsyncIterator[Signal]:
    """:meth:`SignalsStoreClient.read` within a transaction of the caller's, from behind the key of ``after`` on."""
    query: LiteralString = (
        "SELECT provider, symbol, ts, name, value, score, meta::text FROM signals WHERE true"
    )
    values: list[Any] = []
    conditions: tuple[tuple[LiteralString, Any], ...] = (
        (" AND symbol = ANY(%s)", None if symbols is None else list(symbols)),
        (" AND provider = %s", provider),
        (" AND name = %s", name),
        (" AND ts >= %s", None if start is None else moment(start)),
        (" AND ts < %s", None if end is None else moment(end)),
    )
    for condition, value in conditions:
        if value is not None:
            query += condition
            values.append(value)
    if after is not None:
        query += " AND (symbol, ts, provider, name) > (%s, %s, %s, %s)"
        values += [after.symbol, moment(after.ts), after.provider, after.name]
    query += " ORDER BY symbol, ts, provider, name LIMIT %s"
    cursor = await connection.execute(query, [*values, limit], binary=True)
    for source, symbol, ts, called, value, score, meta in await cursor.fetchall():
        yield Signal(source, symbol, _ns(ts), called, value, score, _meta(meta))


def _ns(at: datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND * 1000
