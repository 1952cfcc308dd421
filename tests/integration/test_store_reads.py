"""Reading bars and signals, the log of runs, and the columns they travel in."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.adapt import PyFormat, Transformer

from market_data_core.batch import BarBatch
from market_data_core.clock import ManualClock
from market_data_core.errors import StoreError
from market_data_core.events import Signal
from market_data_store import JobRunTracker, SignalsStoreClient, StoreClient, job_runs
from market_data_store.arrays import Names, timestamps
from tests.integration.store_samples import T0, S, bars, exact, flush


async def test_a_range_is_half_open_and_ordered(store: StoreClient) -> None:
    claim = await store.claim("t", "g", 0, "me")
    batch = BarBatch.concat([bars(30, symbols=["B", "A"]), bars(30, symbols=["A"], provider="alt")])
    await store.commit(flush(claim, 1, batch))
    found = await store.bars(interval="1m", start=T0 + 60 * S, end=T0 + 180 * S)
    assert [(b.symbol, (b.ts - T0) // S, b.provider) for b in found.bars()] == [
        ("A", 60, "alt"),
        ("A", 60, "sim"),
        ("A", 120, "alt"),
        ("A", 120, "sim"),
        ("B", 60, "sim"),
        ("B", 120, "sim"),
    ]
    assert len(await store.bars(interval="1m", start=T0 + 1)) == 87, "a start within a microsecond rounds up"
    assert len(await store.bars(interval="1m", end=T0 + 1)) == 3
    assert len(await store.bars(["B", "none"], interval="1m")) == 30
    assert len(await store.bars([], interval="1m")) == 0
    assert len(await store.bars(interval="1h")) == 0
    with pytest.raises(ValueError, match="not a duration"):
        await store.bars(interval="1 minute")


@pytest.mark.parametrize("page", [1, 7, 60, 61])
async def test_pages_hold_every_bar_once(store: StoreClient, page: int) -> None:
    claim = await store.claim("t", "g", 0, "me")
    batch = bars(20, symbols=["C", "A", "B"])
    await store.commit(flush(claim, 1, batch))
    pages = [part async for part in store.bar_pages(interval="1m", page=page)]
    assert max(len(p) for p in pages) <= page
    together = BarBatch.concat(pages)
    assert len(together) == 60
    assert exact(together) == exact(batch)
    assert [b.symbol for b in together.bars()] == ["A"] * 20 + ["B"] * 20 + ["C"] * 20


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ints=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20),
    floats=st.lists(st.floats(), max_size=20),
    times=st.lists(st.integers(-(2**62), 2**62), max_size=20),
    names=st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1, max_size=5
    ),
    rows=st.lists(st.integers(0, 100), max_size=20),
)
async def test_columns_go_to_the_server_and_back(
    reader: psycopg.AsyncConnection[Any],
    ints: list[int],
    floats: list[float],
    times: list[int],
    names: list[str],
    rows: list[int],
) -> None:
    code = np.array([r % len(names) for r in rows], np.int32)
    real_sent = np.array(floats, np.float64)
    sent = [
        np.array(ints, np.int64),
        code,
        real_sent,
        timestamps(np.array(times, np.int64)),
    ]
    cursor = await reader.execute(
        "SELECT %s::int8[], %s::int4[], %s::float8[], %s::timestamptz[], %s::text[]",
        [*sent, Names(names, code)],
        binary=True,
    )
    row = await cursor.fetchone()
    assert row is not None
    whole, small, real, at, text = row
    assert whole.tolist() == ints
    assert small.tolist() == code.tolist()
    assert np.array_equal(real, real_sent, equal_nan=True)
    assert at.tolist() == [t // 1000 * 1000 for t in times]
    assert list(text) == [names[c] for c in code]


async def test_an_array_of_another_type_is_refused(reader: psycopg.AsyncConnection[Any]) -> None:
    with pytest.raises(TypeError, match="float32"):
        Transformer(reader).dump_sequence([np.zeros(2, np.float32)], [PyFormat.BINARY])
    with pytest.raises(psycopg.DataError, match="nulls"):
        await (await reader.execute("SELECT ARRAY[1, NULL]::int8[]", binary=True)).fetchone()


async def test_signals_round_trip_and_are_unchanged_the_second_time(matrix_store: StoreClient) -> None:
    client = SignalsStoreClient(matrix_store)
    made = [
        Signal("sim", "SPY", T0 + i * S, name, float(i), 0.5, {"window": "1m", "deep": [1, {"é": None}]})
        for i in range(3)
        for name in ("cross", "spike")
    ]
    assert sorted(map(repr, await client.upsert(made))) == sorted(map(repr, made))
    assert await client.upsert(made) == []
    assert await client.read() == made
    louder = Signal("sim", "SPY", T0, "cross", 0.0, 0.9, {})
    second = replace(louder, meta={"revision": 2})
    assert await client.upsert([made[0], louder]) == [second], "the later of one key counts"
    assert await client.read(name="cross", end=T0 + S) == [second]
    assert await matrix_store.signals(symbols=["SPY"], name="spike", start=T0 + S, limit=1) == [made[3]]
    assert await matrix_store.signals(symbols=["IBM"]) == []
    assert await matrix_store.signals(provider="sim", start=T0 + 2 * S) == made[4:]


@pytest.mark.parametrize("page", [1, 5, 24, 25])
async def test_pages_of_signals_hold_every_signal_once_and_in_order(store: StoreClient, page: int) -> None:
    made = [
        Signal(provider, symbol, T0 + i * S, name, 1.0, 0.5, {})
        for symbol in ("A", "B")
        for i in range(3)
        for provider in ("alt", "sim")
        for name in ("cross", "spike")
    ]
    await store.write_signals(made[::-1])
    pages = [part async for part in store.signal_pages(page=page)]
    assert max(map(len, pages)) <= page
    assert [s for part in pages for s in part] == made
    chosen = store.signal_pages(symbols=["B"], provider="sim", name="spike", start=T0 + S, end=T0 + 2 * S)
    assert [part async for part in chosen] == [[Signal("sim", "B", T0 + S, "spike", 1.0, 0.5, {})]]
    assert [part async for part in store.signal_pages(name="none")] == []


async def test_signals_keep_microseconds(store: StoreClient) -> None:
    await store.write_signals([Signal("sim", "SPY", T0 + 1999, "x", 1.0, 1.0)])
    assert [s.ts for s in await store.signals()] == [T0 + 1000]
    with pytest.raises(StoreError):
        await store.write_signals([Signal("sim", "N\0", T0, "x", 1.0, 1.0)])


async def test_a_run_is_recorded_from_start_to_end(matrix_store: StoreClient) -> None:
    clock = ManualClock(T0)
    counts = {"events": 0}
    run = JobRunTracker(
        matrix_store, "micro-batch", command="mdp stream micro-batch", args=["--window", "2s"],
        counters=lambda: counts, clock=clock, heartbeat_s=3600,
    )  # fmt: skip
    async with run:
        (running,) = await job_runs.jobs(matrix_store)
        assert (running.id, running.outcome, running.finished_at) == (run.id, "running", None)
        counts["events"] = 7
        clock.advance(5 * S)
        await run.heartbeat()
        (beating,) = await job_runs.jobs(matrix_store)
        assert (beating.counters, beating.heartbeat_at - beating.started_at) == (
            {"events": 7},
            timedelta(seconds=5),
        )
        counts["events"] = 9
        clock.advance(5 * S)
    (done,) = await job_runs.jobs(matrix_store, outcome="done", job="micro-batch")
    assert (done.counters, done.error, done.args) == ({"events": 9}, None, ["--window", "2s"])
    assert done.finished_at is not None
    assert done.finished_at - done.started_at == timedelta(seconds=10)
    assert done.pid > 0


@pytest.mark.parametrize(
    ("error", "outcome", "text"),
    [
        (ValueError("bad \0 row"), "failed", "ValueError: bad \ufffd row"),
        (asyncio.CancelledError(), "interrupted", None),
        (KeyboardInterrupt(), "interrupted", None),
    ],
)
async def test_a_run_that_ends_badly_says_how(
    store: StoreClient, error: BaseException, outcome: str, text: str | None
) -> None:
    with pytest.raises(type(error)):
        async with JobRunTracker(store, "demo"):
            raise error
    (run,) = await store.jobs()
    assert (run.outcome, run.error) == (outcome, text)


async def test_a_run_that_is_cancelled_still_writes_its_outcome(store: StoreClient) -> None:
    started = asyncio.Event()

    async def work() -> None:
        async with JobRunTracker(store, "demo"):
            started.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [run.outcome for run in await store.jobs()] == ["interrupted"]


async def test_a_silent_run_is_abandoned_and_may_come_back(store: StoreClient) -> None:
    clock = ManualClock(T0)
    async with JobRunTracker(store, "sleeper", clock=clock, heartbeat_s=3600) as sleeper:
        clock.advance(59 * S)
        assert await job_runs.abandon(store, clock.now()) == []
        clock.advance(2 * S)
        async with JobRunTracker(store, "next", clock=clock, heartbeat_s=3600):
            outcomes = {run.job: run.outcome for run in await job_runs.jobs(store)}
            assert outcomes == {"sleeper": "abandoned", "next": "running"}
        await sleeper.heartbeat()
        assert [run.job for run in await job_runs.jobs(store, outcome="running")] == ["sleeper"]
    assert {run.outcome for run in await job_runs.jobs(store)} == {"done"}


async def test_heartbeats_come_by_themselves_and_survive_an_outage(store: StoreClient) -> None:
    clock = ManualClock(T0)
    async with JobRunTracker(store, "long", clock=clock, heartbeat_s=0.01) as run:
        async with store.session() as connection:
            await connection.execute("ALTER TABLE job_runs RENAME TO job_runs_away")
        clock.advance(S)
        async with store.session() as connection:
            await connection.execute("ALTER TABLE job_runs_away RENAME TO job_runs")
        clock.advance(S)
        deadline = time.monotonic() + 20
        while (await job_runs.jobs(store))[0].heartbeat_at.timestamp() != (T0 + 2 * S) / S:
            assert time.monotonic() < deadline
        assert run.id > 0
