"""A bundle on a real database: wires that are cut, bars that are refused, claims that are taken over."""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from market_data_core.config import Dataset
from market_data_core.errors import StoreUnavailable
from market_data_pipeline.backfill.bars import make_bars
from market_data_pipeline.backfill.bundle import Done, do_bundle, store_task
from market_data_pipeline.backfill.desk import Desk, worker_of
from market_data_pipeline.backfill.plan import Plan
from market_data_pipeline.backfill.scan import scan_file
from market_data_pipeline.backfill.task import DONE_LANE, Bundle
from market_data_pipeline.producers.replay import Range
from market_data_pipeline.producers.sources import files_in
from market_data_store import StoreClient
from tests.servers.postgres import PostgresServer
from tests.servers.wire import Wire
from tests.unit.backfill_files import FIRST, SECOND, dataset, ticks, write

Do = Callable[[Desk, Bundle], asyncio.Future[Done]]
TOPIC = "backfill/t/1m"


@pytest.fixture
async def wire(postgres: PostgresServer) -> AsyncIterator[Wire]:
    async with Wire(postgres.port) as proxy:
        yield proxy


@pytest.fixture
def desk(postgres: PostgresServer, database: str, wire: Wire) -> Desk:
    """At the other end of the wire."""
    url = database.replace(f":{postgres.port}/", f":{wire.port}/")
    return Desk(url, 10.0, TOPIC, 60 * SECOND, ("tick", "bar"), 120 * SECOND, patience_s=15.0)


@pytest.fixture
async def do(desk: Desk) -> AsyncIterator[Do]:
    """``do_bundle`` beside the wire, in a thread of its own."""
    with ThreadPoolExecutor(1) as thread:
        loop = asyncio.get_running_loop()
        yield lambda used, bundle: loop.run_in_executor(thread, do_bundle, used, bundle)
        worker = worker_of(desk.store_url, desk.timeout_s)
        await loop.run_in_executor(thread, worker.close)
        atexit.unregister(worker.close)
        worker_of.cache_clear()


def planned(path: Path, given: Dataset | None = None) -> Bundle:
    (file,) = files_in(path, given or dataset(path), "p", "d")
    plan = Plan(Range(None, None), (), {})
    plan.add(file, scan_file(file, plan.days, frozenset(), False))
    (bundle,) = plan.ready()
    return bundle


async def left_over(store: StoreClient, bundle: Bundle) -> int:
    """Records that somebody would have to publish."""
    claims = [await store.claim(TOPIC, task.group, task.day, "me") for task in bundle]
    return sum(len(claim.outbox) for claim in claims)


@pytest.mark.parametrize("word", [b"INTO stream_claims", b"INTO stream_positions"])
@pytest.mark.parametrize("lose", ["request", "reply"])
async def test_a_wire_that_is_cut(
    store: StoreClient,
    tmp_path: Path,
    desk: Desk,
    do: Do,
    wire: Wire,
    word: bytes,
    lose: Literal["request", "reply"],
) -> None:
    bundle = planned(write(tmp_path / "t.csv", ticks(1, 200, days=1)))
    wire.trip_at(word, lose)
    done = await do(desk, bundle)
    assert wire.tripped == 1
    bars = await store.bars(interval="1m")
    assert [o.failure for o in done.outcomes] == [None] * 3
    assert sum(o.inserted for o in done.outcomes) == len(bars) > 0
    assert set(bars.revision.tolist()) == {1}
    assert await store.read_offsets(TOPIC, DONE_LANE) == {(t.group, t.day): t.fingerprint for t in bundle}
    assert await left_over(store, bundle) == 0
    again = await do(desk, bundle)
    assert all(o.skipped for o in again.outcomes)


async def test_a_store_that_stays_away(tmp_path: Path, desk: Desk, do: Do, wire: Wire) -> None:
    bundle = planned(write(tmp_path / "t.csv", ticks(1, 20, days=1)))
    wire.cut(refuse=True)
    with pytest.raises(StoreUnavailable):
        await do(replace(desk, patience_s=0.5), bundle)
    wire.mend()
    assert all(o.failure is None for o in (await do(desk, bundle)).outcomes)


async def test_a_bar_that_the_database_refuses_fails_its_task(
    store: StoreClient, tmp_path: Path, desk: Desk, do: Do
) -> None:
    """Its time is finer than a timestamp of PostgreSQL. The others of its bundle are done; it is not marked."""
    path = tmp_path / "t.csv"
    rows = [
        f"{FIRST + i * 60 * SECOND + (1 if symbol == 'B' else 0)},{symbol},1,2,1,2,3"
        for symbol in "AB"
        for i in (1, 2)
    ]
    path.write_text("\n".join(["time,symbol,o,h,l,c,v", *rows, ""]))
    names = {"open": "o", "high": "h", "low": "l", "close": "c", "volume": "v"}
    columns = {"time": "time", "symbol": "symbol", **names}
    bundle = planned(path, dataset(path, columns=columns, kind="bar", interval="1m"))
    done = await do(desk, bundle)
    good, bad = sorted(done.outcomes, key=lambda o: o.symbol)
    assert (good.failure, good.inserted) == (None, 2)
    assert bad.failure is not None
    assert bad.failure.startswith("the database refuses 2 bars, such as p/B 1m 2024-10-04T00:01:00")
    assert bad.failure.endswith("ts is not a whole number of microseconds")
    assert [group for group, _ in await store.read_offsets(TOPIC, DONE_LANE)] == ["p/A"]
    assert await left_over(store, bundle) == 0


async def test_a_task_that_another_run_has_taken_over(store: StoreClient, tmp_path: Path, desk: Desk) -> None:
    bundle = planned(write(tmp_path / "t.csv", ticks(1, 50, symbols=1, days=1)))
    (task,) = bundle
    claim = await store.claim(TOPIC, task.group, task.day, "first")
    await store.claim(TOPIC, task.group, task.day, "second")
    out = await store_task(store, desk, task, claim, make_bars(desk, bundle))
    assert out.failure is not None
    assert out.failure.startswith("another run of this backfill has taken it over")
    assert len(await store.bars(interval="1m")) == 0


async def test_bars_beyond_one_transaction(store: StoreClient, tmp_path: Path, desk: Desk, do: Do) -> None:
    path = tmp_path / "t.csv"
    times = [FIRST + i * 2 * SECOND for i in range(25_000)]
    path.write_text("\n".join(["time,symbol,price,size,seq", *(f"{at},A,1,1,0" for at in times), ""]))
    done = await do(replace(desk, window_ns=SECOND), planned(path))
    assert [(o.inserted, o.failure) for o in done.outcomes] == [(25_000, None)]
    stored = await store.bars(interval="1s")
    assert stored.ts.tolist() == times
