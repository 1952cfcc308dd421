"""Where the programs meet: topics of ticks in one Kafka, and one PostgreSQL that notes when each row was committed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import polars as pl
import psutil
import psycopg

from benchmarks import ticks
from benchmarks.peers.given import TABLE
from benchmarks.servers import Servers, started
from market_data_core.batch import EventBatch
from market_data_core.codecs import encode_events
from market_data_pipeline import embedded
from market_data_pipeline.producers.framing import Framer
from market_data_pipeline.streaming.bus import Record
from market_data_pipeline.streaming.kafka_bus import KafkaBus
from market_data_store.connection import libpq_url
from tests.servers.kafka import KafkaServer

OURS: Final = "bars_ohlcv"
_CREATE: Final = f"""
    CREATE TABLE {TABLE} (
        symbol text, ts timestamptz, open float8, high float8, low float8, close float8, volume float8, n_events int8,
        PRIMARY KEY (symbol, ts)
    )
"""
_LATEST: Final = "ts <= to_timestamp(%s::int8 / 1e9)"


@dataclass(frozen=True, slots=True)
class Topic:
    """``records``: on the bus; ``events``: ticks in the bars, without those that only close windows; ``bars``: what
    they make."""

    name: str
    records: int
    events: int
    bars: pl.DataFrame

    @property
    def latest(self) -> int:
        """The start of the last window that counts, in nanoseconds."""
        return int(self.bars["ts"].to_numpy().max())


def with_ends(batch: EventBatch) -> EventBatch:
    """``batch`` of :func:`ticks.ticks`, whose last tick comes a minute after all others, and as late a tick of every
    other symbol: some programs close the windows of a symbol by its own ticks alone."""
    code = np.arange(1, len(batch.series), dtype=np.int32)
    ends = batch.take(np.full(len(code), len(batch) - 1))
    ends = replace(ends, code=code, seq=ends.seq + code)
    return EventBatch.concat([batch, ends])


class Stage:
    """``servers``: the embedded ones of a home of their own."""

    def __init__(self, servers: Servers, kafka: KafkaServer) -> None:
        self.servers = servers
        self.kafka = kafka
        # When a transaction was committed is kept for those that come after a restart only.
        self.database = libpq_url(servers.database_url)
        with psycopg.connect(self.database, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET track_commit_timestamp = on")
        [postgres] = [s for s in embedded.services(servers.folder) if s.name == "postgres"]
        postgres.stop()
        postgres.start()
        pid = postgres.status().pid
        assert pid is not None
        self._postmaster = psutil.Process(pid)
        self._connection = psycopg.connect(self.database, autocommit=True)

    def load(self, name: str, codec: Literal["json", "frame"], events: int, symbols: int) -> Topic:
        """A new topic of one partition, compressed with lz4, by aiokafka."""
        batch = ticks.ticks(events, symbols)
        bars, batch = ticks.recount(batch), with_ends(batch)
        records: list[Record]
        if codec == "frame":
            parts = (batch.take(slice(i, i + 32_768)) for i in range(0, len(batch), 32_768))
            framer = Framer(1)
            records = [r for part in parts for parcel in framer.parcels(part) for r in parcel.records]
        else:
            keys = [batch.series[code].symbol for code in batch.code.tolist()]
            records = [Record(k, v) for k, v in zip(keys, encode_events(batch), strict=True)]
        asyncio.run(self._publish(name, records))
        return Topic(name, len(records), events, bars)

    async def _publish(self, topic: str, records: Sequence[Record]) -> None:
        async with KafkaBus(self.kafka.bootstrap) as bus:
            await bus.ensure_topic(topic, 1)
            await bus.publish(topic, records, partition=0)

    def clear(self) -> None:
        """No bars of anybody, and nothing left for the server to tidy up."""
        self.servers.rest()
        self._connection.execute(f"DROP TABLE IF EXISTS {TABLE}")
        self._connection.execute(_CREATE)

    def counted(self, table: str, topic: Topic) -> int:
        """Ticks in the bars that are committed."""
        query = f"SELECT coalesce(sum(n_events), 0) FROM {table} WHERE {_LATEST}"
        row = self._connection.execute(query, [topic.latest]).fetchone()
        return int(row[0]) if row else 0

    def committed_at(self, table: str, topic: Topic) -> float | None:
        """When the last bar was committed, in seconds since 1970."""
        query = f"SELECT extract(epoch FROM max(pg_xact_commit_timestamp(xmin))) FROM {table} WHERE {_LATEST}"
        row = self._connection.execute(query, [topic.latest]).fetchone()
        return None if row is None or row[0] is None else float(row[0])

    def claimed_at(self, group: str) -> float | None:
        """When mdp's member of ``group`` took the partition, right before it reads the first record."""
        query = "SELECT extract(epoch FROM claimed_at) FROM stream_claims WHERE consumer_group = %s"
        row = self._connection.execute(query, [group]).fetchone()
        return None if row is None else float(row[0])

    def bars(self, table: str) -> pl.DataFrame:
        """All bars stored, as :mod:`benchmarks.peers.oracle` takes them."""
        columns = (
            "symbol, extract(epoch FROM ts)::int8 * 1000000000, open, high, low, close, volume, n_events"
        )
        rows = self._connection.execute(f"SELECT {columns} FROM {table}").fetchall()
        prices = dict.fromkeys(("open", "high", "low", "close", "volume"), pl.Float64)
        schema = {"symbol": pl.String, "ts": pl.Int64, **prices, "n_events": pl.Int64}
        return pl.DataFrame(rows, schema=schema, orient="row")

    def postgres_seconds(self) -> float:
        """CPU seconds of PostgreSQL, with those of the connections that have ended."""
        total = 0.0
        for process in (self._postmaster, *self._postmaster.children()):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
            if process == self._postmaster:
                total += times.children_user + times.children_system
        return total

    def close(self) -> None:
        self._connection.close()


@contextmanager
def set_up() -> Iterator[Stage]:
    """Servers of their own, gone afterwards.

    Raises:
        ServerMissing: there is no Kafka to be had.
    """
    with started() as servers, KafkaServer() as kafka:
        stage = Stage(servers, kafka)
        try:
            yield stage
        finally:
            stage.close()
