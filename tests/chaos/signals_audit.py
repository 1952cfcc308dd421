"""Reads back the signals that the run has left: the table, and the newest record of each on the topic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import polars as pl
import psycopg

from market_data_core.events import Signal
from market_data_core.signal_codec import decode_signal
from market_data_pipeline.streaming.bus import Bus
from tests.chaos.signals_oracle import KEY

_PAGE = 5000
_TABLE = """
    SELECT symbol, (extract(epoch FROM ts) * 1000000)::int8 * 1000 AS ts, name, value, score, meta
    FROM signals WHERE provider = %s
"""
_SCHEMA = {
    "symbol": pl.String,
    "at": pl.Int64,
    "name": pl.String,
    **dict.fromkeys(("value", "score", "price"), pl.Float64),
    "withdrawn": pl.Boolean,
    "meta": pl.String,
}


@dataclass(frozen=True, slots=True)
class PublishedSignals:
    """``newest``: of each signal the record of the highest revision. ``records``: on the topic."""

    newest: pl.DataFrame
    records: int


async def stored(url: str, provider: str) -> pl.DataFrame:
    """The signals of ``provider`` in the table."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        rows = await (await connection.execute(_TABLE, (provider,))).fetchall()
    return _frame(rows)


async def published(bus: Bus, topic: str, partitions: int, provider: str) -> PublishedSignals:
    """The signals of ``provider`` on the topic. A worker that was stopped may publish an old one after a newer one."""
    newest: dict[tuple[str, int, str], Signal] = {}
    records = 0
    for partition in range(partitions):
        start = None
        while found := await bus.read(topic, partition, start, _PAGE):
            start = found[-1].offset + 1
            for signal in map(decode_signal, (r.value for r in found)):
                records += 1
                key = (signal.symbol, signal.ts, signal.name)
                if signal.provider == provider and (
                    key not in newest or _revision(signal) >= _revision(newest[key])
                ):
                    newest[key] = signal
    rows = [(s.symbol, s.ts, s.name, s.value, s.score, s.meta) for s in newest.values()]
    return PublishedSignals(_frame(rows), records)


def _frame(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    flat = [(*row[:5], row[5].get("price"), "withdrawn" in row[5], _canonical(row[5])) for row in rows]
    return pl.DataFrame(flat, schema=_SCHEMA, orient="row").sort(*KEY)


def _revision(signal: Signal) -> int:
    revision: int = signal.meta.get("revision", 1)
    return revision


def _canonical(meta: dict[str, Any]) -> str:
    return msgspec.json.encode(meta, order="deterministic").decode()
