"""What TimescaleDB adds, on the real extension."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from market_data_store import StoreClient, schema
from market_data_store.timescale import Policies
from tests.integration.store_samples import T0, S, bars, events, flush, tick
from tests.servers.postgres import PostgresServer

HOUR = 3600 * S


@contextmanager
def sql(url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def jobs(url: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The policies, by (procedure, table)."""
    query = "SELECT proc_name, hypertable_name, config FROM timescaledb_information.jobs WHERE job_id >= 1000"
    with sql(url) as connection:
        return {(proc, table): config for proc, table, config in connection.execute(query)}


def test_tables_become_hypertables_with_compression_and_policies(timescale_url: str) -> None:
    schema.upgrade(timescale_url)
    with sql(timescale_url) as connection:
        tables = connection.execute(
            "SELECT hypertable_name, compression_enabled FROM timescaledb_information.hypertables"
            " WHERE hypertable_schema = 'public' ORDER BY 1"
        ).fetchall()
        segments = connection.execute(
            "SELECT hypertable::text, segmentby, orderby FROM timescaledb_information.hypertable_compression_settings"
            " WHERE hypertable IN ('bars_ohlcv'::regclass, 'signals'::regclass) ORDER BY 1"
        ).fetchall()
    assert tables == [("bars_ohlcv", True), ("signals", True)]
    assert [(t, set(s.split(","))) for t, s, _ in segments] == [
        ("bars_ohlcv", {"provider", "symbol", "interval"}),
        ("signals", {"provider", "symbol"}),
    ]
    policies = jobs(timescale_url)
    assert policies["policy_compression", "bars_ohlcv"]["compress_after"] == "7 days"
    assert ("policy_retention", "bars_ohlcv") not in policies
    refreshed = {table for proc, table in policies if proc == "policy_refresh_continuous_aggregate"}
    assert refreshed == {"bars_5m", "bars_1h"}


def test_policies_follow_what_an_upgrade_asks_for(timescale_url: str) -> None:
    schema.upgrade(timescale_url, policies=Policies(timedelta(days=14), timedelta(days=90)))
    policies = jobs(timescale_url)
    assert policies["policy_compression", "bars_ohlcv"]["compress_after"] == "14 days"
    assert policies["policy_retention", "signals"]["drop_after"] == "90 days"
    # What retention has dropped from the bars must stay in the rollups.
    assert policies["policy_refresh_continuous_aggregate", "bars_5m"]["start_offset"] == "83 days"

    schema.upgrade(timescale_url)
    policies = jobs(timescale_url)
    assert policies["policy_compression", "bars_ohlcv"]["compress_after"] == "7 days"
    assert policies["policy_retention", "bars_ohlcv"]["drop_after"] == "90 days", "not named: left as it is"

    schema.upgrade(timescale_url, policies=Policies(retention=timedelta()))
    assert ("policy_retention", "bars_ohlcv") not in jobs(timescale_url)
    assert jobs(timescale_url)["policy_refresh_continuous_aggregate", "bars_5m"]["start_offset"] is None


def test_policies_that_would_lose_data_are_refused() -> None:
    with pytest.raises(ValueError, match="retention must not be shorter"):
        Policies(timedelta(days=7), timedelta(days=1))


async def test_compressed_chunks_take_upserts_and_amendments(timescale_url: str) -> None:
    schema.upgrade(timescale_url)
    async with await StoreClient.connect(timescale_url, pool_size=1, prepare=False) as store:
        claim = await store.claim("t", "g", 0, "me")
        await store.commit(flush(claim, 1, bars(60, symbols=["IBM", "SPY"])))
        async with store.session() as connection:
            chunks = await (
                await connection.execute("SELECT compress_chunk(c)::text FROM show_chunks('bars_ohlcv') c")
            ).fetchall()
        assert len(chunks) == 1

        late = events(tick(61.0, 500.0, seq=7), tick(7200.0, 3.0, seq=8))
        amended = await store.commit(flush(claim, 2, late=late))
        assert amended.amended == 1
        assert sorted((b.high, b.n_events, b.revision) for b in amended.bars.bars()) == [
            (3.0, 1, 1),
            (500.0, 4, 2),
        ]
        stored = await store.bars(["SPY"], interval="1m", start=T0 + 60 * S, end=T0 + 120 * S)
        assert stored.bars()[0].high == 500.0

        again = await store.commit(flush(claim, 3, bars(60, symbols=["IBM", "SPY"])))
        assert (len(again.bars), again.unchanged, again.refused) == (0, 119, 1)
        more = await store.commit(flush(claim, 4, bars(1, n_events=9)))
        assert [(b.symbol, b.revision, b.n_events) for b in more.bars.bars()] == [("SPY", 2, 9)]
        fewer = await store.commit(flush(claim, 5, bars(1, n_events=1)))
        assert (len(fewer.bars), fewer.refused) == (0, 1)


async def test_rollups_equal_those_of_plain_postgresql(timescale_url: str, database: str) -> None:
    """The continuous aggregates and the views have one meaning; refreshed or not."""
    schema.upgrade(timescale_url)
    batch = bars(150, symbols=["IBM", "SPY"], price=50.0)
    unknown = bars(10, symbols=["VOD"], notional=False, provider="vendor")
    for url in (timescale_url, database):
        async with await StoreClient.connect(url, pool_size=1, prepare=False) as store:
            claim = await store.claim("t", "g", 0, "me")
            await store.commit(flush(claim, 1, batch))
            await store.commit(flush(claim, 2, unknown))

    def rollup(url: str, name: str) -> list[tuple[Any, ...]]:
        columns = 'provider, symbol, "interval", ts, open, high, low, close, volume, vwap, n_events'
        with sql(url) as connection:
            query = f"SELECT {columns} FROM {name} ORDER BY provider, symbol, ts"
            return connection.execute(query.encode()).fetchall()

    fresh = {name: rollup(timescale_url, name) for name in ("bars_5m", "bars_1h")}
    with sql(timescale_url) as connection:
        for name in ("bars_5m", "bars_1h"):
            connection.execute(f"CALL refresh_continuous_aggregate('{name}', NULL, NULL)".encode())
    for name, rows in fresh.items():
        assert rows
        plain = rollup(database, name)
        assert [r[:9] + r[10:] for r in rows] == [r[:9] + r[10:] for r in plain]
        assert [r[9] for r in rows] == pytest.approx([r[9] for r in plain])
        assert rollup(timescale_url, name) == rows
    spy = [r for r in fresh["bars_5m"] if r[1] == "SPY"]
    assert (spy[1][4], spy[1][8], spy[1][10]) == (50.0 + 150 + 1, 50.0, 15), (
        "5m are whole: T0 is their last minute"
    )
    assert {r[9] for r in fresh["bars_5m"] if r[1] == "VOD"} == {None}, "an unknown vwap stays unknown"


def test_plain_postgresql_says_what_is_missing(postgres: PostgresServer, database: str) -> None:
    assert schema.current(database).timescale.missing == "the server has no TimescaleDB package"
