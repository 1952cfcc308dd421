"""Reads back what the run has left: the table, the topic of bars, the dead letters."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl
import psycopg

from market_data_core.batch import BarBatch
from market_data_core.frames import decode_bars
from market_data_pipeline.streaming.bus import Bus

_PAGE = 500
COLUMNS = ("symbol", "ts", "open", "high", "low", "close", "volume", "vwap", "n_events", "revision")
_TABLE = """
    SELECT symbol, (extract(epoch FROM ts) * 1000000)::int8 * 1000 AS ts, open, high, low, close, volume, vwap,
           n_events, revision
    FROM bars_ohlcv WHERE provider = %s AND "interval" = '1s'
"""
_SCHEMA = {
    "symbol": pl.String,
    "ts": pl.Int64,
    **dict.fromkeys(("open", "high", "low", "close", "volume", "vwap"), pl.Float64),
    "n_events": pl.Int64,
    "revision": pl.Int64,
}


@dataclass(frozen=True, slots=True)
class Published:
    """``newest``: the highest revision of each bar. ``records``: on the topic. ``contradictions``: bars of which one
    revision was published with different values."""

    newest: pl.DataFrame
    records: int
    contradictions: int


async def stored(url: str, provider: str) -> pl.DataFrame:
    """The bars of ``provider`` in the table."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        rows = await (await connection.execute(_TABLE, (provider,))).fetchall()
    return pl.DataFrame(rows, schema=_SCHEMA, orient="row").sort("symbol", "ts")


async def published(bus: Bus, topic: str, partitions: int, provider: str) -> Published:
    """The bars of ``provider`` on the topic."""
    frames = [pl.DataFrame(schema=_SCHEMA)]
    records = 0
    for partition in range(partitions):
        start = None
        while found := await bus.read(topic, partition, start, _PAGE):
            records += len(found)
            frames += [_frame(decode_bars(r.value), provider) for r in found]
            start = found[-1].offset + 1
    distinct = pl.concat(frames).unique()
    contradictions = int(distinct.select("symbol", "ts", "revision").is_duplicated().sum())
    newest = distinct.sort("revision").unique(["symbol", "ts"], keep="last").sort("symbol", "ts")
    return Published(newest, records, contradictions)


async def dead_letters(bus: Bus, topic: str) -> int:
    """Records in the dead letter topic."""
    (status,) = await bus.status([f"{topic}.dlq"])
    return status.records


def _frame(bars: BarBatch, provider: str) -> pl.DataFrame:
    rows = [
        (b.symbol, b.ts, b.open, b.high, b.low, b.close, b.volume, b.vwap, b.n_events, b.revision)
        for b in bars.bars()
        if b.provider == provider
    ]
    return pl.DataFrame(rows, schema=_SCHEMA, orient="row")
