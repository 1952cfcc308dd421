"""The table ``bars_ohlcv``: writing bars by the column, and reading them.

One statement writes a batch: ``unnest`` of binary arrays, since it takes columns as they are, works inside of
any transaction with ``ON CONFLICT``, and measures half of a raw COPY, which checks no conflict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, LiteralString

import numpy as np
from numpy.typing import NDArray
from psycopg import AsyncConnection

from market_data_core.batch import I32, I64, BarBatch
from market_data_core.events import BarSeries
from market_data_store.arrays import Names, timestamps
from market_data_store.bars_sql import AMEND, COLUMNS, FIND, INSERT_NEW, REFUSED, ROW, UPSERT, VALUES
from market_data_store.connection import one_row


@dataclass(frozen=True, slots=True)
class Upserted:
    """``changed``: rows inserted or changed, with their revisions; what each of the others was."""

    changed: BarBatch
    refused: int
    unchanged: int


@dataclass(frozen=True, slots=True)
class Found:
    """Stored bars. ``row[i]`` is which of the asked rows ``bars`` row ``i`` is, ``writer[i]`` who wrote it."""

    row: I64
    writer: list[str]
    bars: BarBatch


@dataclass(frozen=True, slots=True)
class BarQuery:
    """Which bars to read: ``start`` inclusive and ``end`` exclusive in ns UTC, ``interval`` canonical."""

    interval: str
    symbols: list[str] | None = None
    provider: str | None = None
    start: int | None = None
    end: int | None = None


def key_order(bars: BarBatch) -> BarBatch:
    """Rows in an order that is the same for everybody who writes, so that no two writers wait for each other."""
    return bars.take(np.lexsort((bars.ts, _rank(bars.series)[bars.code])))


@lru_cache(maxsize=8)
def _rank(series: tuple[BarSeries, ...]) -> NDArray[np.int32]:
    """The place of each series in the order of the table's key."""
    ranking = sorted(range(len(series)), key=lambda i: _key(series[i]))
    rank = np.empty(len(ranking), np.int32)
    rank[ranking] = np.arange(len(ranking), dtype=np.int32)
    return rank


async def upsert(
    connection: AsyncConnection[Any], bars: BarBatch, writer: str, *, force: bool = False
) -> Upserted:
    """Store ``bars``; one stored already stays when it is equal, or made of more events and not ``force``.

    Raises:
        psycopg.DataError, psycopg.IntegrityError: the server does not take a row; the transaction is over.
    """
    done: list[Upserted] = []
    for part in _distinct(key_order(_first(bars))):
        changed = await _write(connection, UPSERT, part, writer, (force,))
        missed = len(part) - len(changed)
        refused = 0 if force or not missed else await _count_refused(connection, part)
        done.append(Upserted(changed, refused, missed - refused))
    if len(done) == 1:
        return done[0]
    changed = BarBatch.concat([d.changed for d in done]) if done else BarBatch.empty()
    return Upserted(changed, sum(d.refused for d in done), sum(d.unchanged for d in done))


async def insert_new(connection: AsyncConnection[Any], bars: BarBatch, writer: str) -> BarBatch:
    """Store those of ``bars``, with distinct keys, that no row exists for; return them."""
    return await _write(connection, INSERT_NEW, key_order(_first(bars)), writer, ())


async def find(connection: AsyncConnection[Any], bars: BarBatch) -> Found:
    """The stored rows with the keys of ``bars``, in the order of ``bars``."""
    keys = [*_keys(bars), np.arange(len(bars), dtype=np.int64)]
    found = await one_row(await connection.execute(FIND, keys, binary=True))
    if found[0] is None:
        return Found(np.empty(0, np.int64), [], BarBatch.empty())
    row, writer, *columns = found
    return Found(row, writer, _batch(bars.series, bars.code[row], columns))


async def amend(connection: AsyncConnection[Any], bars: BarBatch, found: I32, writer: str) -> BarBatch:
    """Replace the stored rows that are still ``writer``'s at the revisions ``found``; return those that were.

    This compares instead of locking what was read, because TimescaleDB cannot lock a compressed row.
    """
    return await _write(connection, AMEND, key_order(_revised(bars, found + np.int32(1))), writer, ())


async def read(
    connection: AsyncConnection[Any], query: BarQuery, limit: int, after: tuple[str, int, str] | None = None
) -> BarBatch:
    """Up to ``limit`` bars ordered by (symbol, ts, provider), from behind the key ``after`` on."""
    where: list[LiteralString] = ['"interval" = %s']
    values: list[Any] = [query.interval]
    if query.symbols is not None:
        where.append("symbol = ANY(%s)")
        values.append(query.symbols)
    if query.provider is not None:
        where.append("provider = %s")
        values.append(query.provider)
    if query.start is not None:
        where.append("ts >= %s")
        values.append(moment(query.start))
    if query.end is not None:
        where.append("ts < %s")
        values.append(moment(query.end))
    if after is not None:
        where.append("(symbol, ts, provider) > (%s, %s, %s)")
        values += [after[0], moment(after[1]), after[2]]
    page: LiteralString = (
        "WITH page AS MATERIALIZED (SELECT symbol, provider," + ROW + "FROM bars_ohlcv WHERE "
        " " + " AND ".join(where) + " ORDER BY symbol, ts, provider LIMIT %s)"
        " SELECT array_agg(symbol), array_agg(provider)," + COLUMNS + "FROM page"
    )
    # The primary key has this order. A planner without statistics would rather sort the whole rest of the
    # table for each page.
    await connection.execute("SET LOCAL enable_sort = off")
    found = await one_row(await connection.execute(page, [*values, limit], binary=True))
    if found[0] is None:
        return BarBatch.empty()
    symbols, providers, *columns = found
    table: dict[tuple[str, str], int] = {}
    code = [table.setdefault(pair, len(table)) for pair in zip(providers, symbols, strict=True)]
    series = tuple(BarSeries(provider, symbol, query.interval) for provider, symbol in table)
    return _batch(series, np.array(code, np.int32), columns)


def moment(ns: int) -> datetime:
    """``ns`` as timestamptz has it: rounded up to microseconds, which keeps ``>=`` and ``<`` true."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=-(-ns // 1000))


def _key(series: BarSeries) -> tuple[str, str, str]:
    return series.interval, series.symbol, series.provider


def _keys(bars: BarBatch) -> list[Any]:
    """The key columns of ``bars``."""
    columns = zip(*bars.series, strict=True) if bars.series else ((), (), ())
    return [*(_names(table, bars.code) for table in columns), timestamps(bars.ts)]


def _names(table: Sequence[str], code: NDArray[np.int32]) -> Names:
    """A column of names; one name in all rows, as provider and interval often are, is one long run."""
    if table.count(table[0] if table else "") == len(table):
        return Names(table[:1], np.zeros_like(code))
    return Names(table, code)


def _distinct(bars: BarBatch) -> list[BarBatch]:
    """``bars``, in key order, as batches without a key that comes twice: a statement cannot write a row twice."""
    parts = []
    while len(bars):
        again = np.zeros(len(bars), np.bool_)
        again[1:] = (bars.code[1:] == bars.code[:-1]) & (bars.ts[1:] == bars.ts[:-1])
        if not again.any():
            parts.append(bars)
            break
        parts.append(bars.take(~again))
        bars = bars.take(again)
    return parts


async def _write(
    connection: AsyncConnection[Any],
    statement: LiteralString,
    bars: BarBatch,
    writer: str,
    more: tuple[Any, ...],
) -> BarBatch:
    """Run an insert on ``bars``, in key order; return what was written, with revisions."""
    n = len(bars)
    values = [*_keys(bars), *(getattr(bars, name) for name in VALUES), bars.revision]
    cursor = await connection.execute(statement, [writer, *values, *more, n], binary=True)
    count, highest, *keys = await one_row(cursor)
    if count == n and highest <= 1:
        return bars
    if count == 0:
        return bars.take(slice(0, 0))
    providers, symbols, intervals, ts, revision = keys
    codes = {series: code for code, series in enumerate(bars.series)}
    places = {pair: i for i, pair in enumerate(zip(bars.code.tolist(), bars.ts.tolist(), strict=True))}
    rows = [
        places[codes[BarSeries(*series)], at]
        for *series, at in zip(providers, symbols, intervals, ts.tolist(), strict=True)
    ]
    return _revised(bars.take(np.array(rows, np.int64)), revision)


async def _count_refused(connection: AsyncConnection[Any], bars: BarBatch) -> int:
    cursor = await connection.execute(REFUSED, [*_keys(bars), bars.n_events], binary=True)
    return int((await one_row(cursor))[0])


def _first(bars: BarBatch) -> BarBatch:
    return _revised(bars, np.ones(len(bars), np.int32))


def _revised(bars: BarBatch, revision: NDArray[np.int32]) -> BarBatch:
    return _batch(bars.series, bars.code, [bars.ts, *(getattr(bars, name) for name in VALUES), revision])


def _batch(series: tuple[BarSeries, ...], code: NDArray[np.int32], columns: list[Any]) -> BarBatch:
    """A batch of columns in the order ts, :data:`VALUES`, revision."""
    names = ("ts", *VALUES, "revision")
    return BarBatch(series=series, code=code, **dict(zip(names, columns, strict=True)))
