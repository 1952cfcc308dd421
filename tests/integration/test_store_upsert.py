"""What becomes of a bar that is stored already."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from market_data_core.batch import BarBatch
from market_data_core.codecs import decode_bars
from market_data_store import StoreClient
from tests.integration.store_samples import T0, S, bars, exact, flush, values


async def test_new_bars_are_stored_as_they_are(matrix_store: StoreClient) -> None:
    claim = await matrix_store.claim("t", "g", 0, "me")
    batch = bars(50, symbols=["SPY", "IBM", "É"])
    done = await matrix_store.commit(flush(claim, 1, batch))
    assert exact(done.bars) == exact(batch)
    assert set(done.bars.revision.tolist()) == {1}
    stored = await matrix_store.bars(interval="60s")
    assert exact(stored) == exact(batch)
    assert [(b.symbol, b.ts) for b in stored.bars()] == sorted((b.symbol, b.ts) for b in batch.bars())
    assert np.array_equal(stored.vwap, stored.notional / stored.volume)


async def test_the_same_bars_again_change_nothing(matrix_store: StoreClient) -> None:
    claim = await matrix_store.claim("t", "g", 0, "me")
    batch = bars(20)
    first = await matrix_store.commit(flush(claim, 1, batch))
    before = await _rows(matrix_store)
    again = await matrix_store.commit(flush(claim, 2, batch, lane="replay", published=[first.outbox[0].id]))
    assert (len(again.bars), again.unchanged, again.refused, again.outbox) == (0, 20, 0, [])
    assert await _rows(matrix_store) == before, "not even the writer or the time of change"


async def test_more_events_replace_and_fewer_do_not(matrix_store: StoreClient) -> None:
    claim = await matrix_store.claim("t", "g", 0, "me")
    await matrix_store.commit(flush(claim, 1, bars(4, n_events=5)))
    mixed = BarBatch.concat(
        [
            bars(1, n_events=6, price=7.0),
            bars(1, n_events=5, price=8.0, start=T0 + 60 * S),
            bars(1, n_events=4, price=9.0, start=T0 + 120 * S),
            bars(1, n_events=5, price=103.0, start=T0 + 180 * S),
            bars(1, n_events=5, start=T0 + 240 * S),
        ]
    )
    mixed = replace_rows(mixed, 3, bars(4, n_events=5), 3)
    done = await matrix_store.commit(flush(claim, 2, mixed, lane="replay"))
    assert [(b.ts - T0, b.open, b.revision) for b in values(done.bars)] == [
        (0, 7.0, 2),
        (60 * S, 8.0, 2),
        (240 * S, 100.0, 1),
    ]
    assert (done.refused, done.unchanged) == (1, 1)
    stored = values(await matrix_store.bars(interval="1m"))
    assert [b.open for b in stored] == [7.0, 8.0, 102.0, 103.0, 100.0]
    assert decode_bars(done.outbox[0].value).bars() == done.bars.bars()


async def test_force_replaces_by_fewer_events(matrix_store: StoreClient) -> None:
    claim = await matrix_store.claim("t", "g", 0, "me")
    await matrix_store.commit(flush(claim, 1, bars(2, n_events=5)))
    done = await matrix_store.commit(flush(claim, 2, bars(2, n_events=1, price=3.0), force=True))
    assert [(b.n_events, b.revision) for b in done.bars.bars()] == [(1, 2), (1, 2)]
    assert done.refused == 0
    assert exact(await matrix_store.bars(interval="1m")) == exact(bars(2, n_events=1, price=3.0))


async def test_unknown_notional_is_null_and_comes_back_unknown(matrix_store: StoreClient) -> None:
    claim = await matrix_store.claim("t", "g", 0, "me")
    vendor = bars(2, notional=False, n_events=1)
    await matrix_store.commit(flush(claim, 1, vendor))
    async with matrix_store.session() as connection:
        cursor = await connection.execute("SELECT DISTINCT notional, vwap FROM bars_ohlcv")
        assert await cursor.fetchall() == [(None, None)]
    stored = await matrix_store.bars(interval="1m")
    assert [b.vwap for b in stored.bars()] == [None, None]
    again = await matrix_store.commit(flush(claim, 2, vendor))
    assert (again.unchanged, len(again.bars)) == (2, 0)


async def test_a_bar_without_volume_has_no_vwap(store: StoreClient) -> None:
    claim = await store.claim("t", "g", 0, "me")
    quotes = bars(1)
    quotes = replace(quotes, volume=np.zeros(1), notional=np.zeros(1))
    await store.commit(flush(claim, 1, quotes))
    assert [b.vwap for b in (await store.bars(interval="1m")).bars()] == [None]


async def test_one_key_twice_in_a_lane_is_taken_in_turn(store: StoreClient) -> None:
    """A vendor's own 1m bar and the 1m bar of its ticks have one key."""
    claim = await store.claim("t", "g", 0, "me")
    twice = BarBatch.concat([bars(2, n_events=1, price=5.0), bars(2, n_events=9)])
    done = await store.commit(flush(claim, 1, twice))
    assert [(b.n_events, b.revision) for b in done.bars.bars()] == [(9, 2), (9, 2)]
    assert exact(await store.bars(interval="1m")) == exact(bars(2, n_events=9))


async def test_intervals_and_providers_are_kept_apart(store: StoreClient) -> None:
    claim = await store.claim("t", "g", 0, "me")
    both = BarBatch.concat([bars(2), bars(2, interval="2m"), bars(2, provider="other")])
    done = await store.commit(flush(claim, 1, both))
    assert len(done.bars) == 6
    assert len(await store.bars(interval="1m")) == 4
    assert len(await store.bars(interval="120s")) == 2
    assert len(await store.bars(interval="1m", provider="other")) == 2


async def test_a_large_flush_over_many_symbols(store: StoreClient) -> None:
    claim = await store.claim("t", "g", 0, "me")
    batch = bars(4, symbols=[f"S{i}" for i in range(5000)])
    shuffled = batch.take(np.random.default_rng(3).permutation(len(batch)))
    done = await store.commit(flush(claim, 1, shuffled))
    assert (len(done.bars), done.unchanged) == (20_000, 0)
    assert exact(await store.bars(interval="1m")) == exact(batch)
    half = replace(shuffled, n_events=shuffled.n_events + (np.arange(20_000) % 2))
    done = await store.commit(flush(claim, 2, half))
    assert (len(done.bars), done.unchanged) == (10_000, 10_000)
    assert exact(await store.bars(interval="1m")) == exact(half)
    assert set(done.bars.revision.tolist()) == {2}


@pytest.mark.parametrize("empty", [BarBatch.empty(), bars(0)])
async def test_a_flush_without_bars_writes_none(store: StoreClient, empty: BarBatch) -> None:
    claim = await store.claim("t", "g", 0, "me")
    done = await store.commit(flush(claim, 1, empty))
    assert (len(done.bars), done.outbox) == (0, [])


def replace_rows(batch: BarBatch, row: int, source: BarBatch, source_row: int) -> BarBatch:
    """``batch`` with one row taken from ``source``."""
    rows = [batch.take(slice(0, row)), source.take([source_row]), batch.take(slice(row + 1, None))]  # type: ignore[arg-type]
    return BarBatch.concat(rows)


async def _rows(store: StoreClient) -> list[tuple[object, ...]]:
    async with store.session() as connection:
        cursor = await connection.execute("SELECT * FROM bars_ohlcv ORDER BY symbol, ts")
        return await cursor.fetchall()
