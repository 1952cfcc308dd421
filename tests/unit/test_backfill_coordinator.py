"""The coordinator with workers that die on command: nothing is lost, nothing is tried for ever."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import pytest

from market_data_core.clock import ManualClock
from market_data_core.errors import StoreError, WorkerLost
from market_data_pipeline.backfill.bundle import Done, Outcome
from market_data_pipeline.backfill.coordinator import ATTEMPTS, Coordinator, Limits
from market_data_pipeline.backfill.desk import Desk
from market_data_pipeline.backfill.engine import Reply
from market_data_pipeline.backfill.plan import Plan
from market_data_pipeline.backfill.scan import scan_file
from market_data_pipeline.backfill.task import Bundle
from market_data_pipeline.backfill.totals import Totals
from market_data_pipeline.producers.layout import DAY
from market_data_pipeline.producers.replay import Range
from market_data_pipeline.producers.sources import DataFile
from tests.unit.backfill_files import FIRST, opened, ticks, write

T = TypeVar("T")
DESK = Desk("", 1.0, "backfill/t", 60 * 10**9, ("tick",), 120 * 10**9)
LATER = FIRST + 100 * DAY


@dataclass
class Here:
    """An engine of this process. Scans are done, but for ``deadly``; a bundle ends as ``ends`` has it end."""

    ends: Callable[[Bundle, int], None] = lambda bundle, attempt: None
    deadly: str = ""
    workers: int = 2
    busy: int = 0
    busiest: int = 0
    tried: Counter[tuple[str, str]] = field(default_factory=Counter)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    async def run(self, work: Callable[..., T], *args: Any) -> Reply[T]:
        if work is scan_file:
            if args[0].place == self.deadly:
                self.tried["scan", ""] += 1
                raise WorkerLost("gone")
            return Reply(work(*args), "w", 1.0)
        bundle: Bundle = args[1]
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        await asyncio.sleep(0)
        self.busy -= 1
        first = (bundle[0].symbol, bundle[0].date)
        self.tried[first] += 1
        self.ends(bundle, self.tried[first])
        done: Any = Done([Outcome(task.symbol, task.date, inserted=2) for task in bundle], events=10)
        return Reply(done, "w", 2.0)


@pytest.fixture
def files(tmp_path: Path) -> list[DataFile]:
    """Six files of a symbol each, on three days."""
    out = []
    for i in range(6):
        made = [e for e in ticks(i, 200, symbols=6, days=3) if e.symbol == f"S{i}"]
        out.append(opened(write(tmp_path / f"{i}.csv", made)))
    return out


async def run(
    files: list[DataFile],
    engine: Here,
    *,
    finished: dict[tuple[str, int], str] | None = None,
    future: int = 0,
) -> Totals:
    totals, told = Totals(), []
    coordinator = Coordinator(
        engine,
        DESK,
        Plan(Range(None, None), (), finished or {}),
        Limits(frozenset(), future),
        totals,
        ManualClock(LATER),
        lambda: told.append(totals.done + totals.failed + totals.skipped),
    )
    await coordinator.run(files)
    assert told == sorted(told)
    return totals


async def test_everything_is_done(files: list[DataFile]) -> None:
    engine = Here()
    totals = await run(files, engine)
    assert (totals.tasks, totals.done, totals.failed, totals.skipped) == (18, 18, 0, 0)
    assert (totals.files, totals.files_scanned, totals.bars_inserted) == (6, 6, 36)
    assert engine.busiest == engine.workers
    assert totals.cpu == {"w": 2.0}, "of one worker the last figure, which holds the others"


async def test_a_task_whose_worker_died_is_done_by_another(files: list[DataFile]) -> None:
    def once(bundle: Bundle, attempt: int) -> None:
        if attempt < ATTEMPTS and bundle[0].symbol == "S1":
            raise WorkerLost("gone")

    engine = Here(once)
    totals = await run(files, engine)
    assert (totals.done, totals.failed, totals.workers_lost) == (18, 0, 3 * (ATTEMPTS - 1))


async def test_a_task_that_kills_every_worker_is_given_up(files: list[DataFile]) -> None:
    def always(bundle: Bundle, attempt: int) -> None:
        if bundle[0].symbol == "S1" and bundle[0].day == FIRST // DAY:
            raise WorkerLost("gone")

    engine = Here(always)
    totals = await run(files, engine)
    assert (totals.done, totals.failed, totals.workers_lost) == (17, 1, ATTEMPTS)
    assert max(engine.tried.values()) == ATTEMPTS
    (failure,) = totals.failures
    assert (failure.symbol, failure.date) == ("S1", "2024-10-04")
    assert failure.reason == f"{ATTEMPTS} workers died over it: gone"


async def test_a_file_that_kills_every_worker_is_given_up(files: list[DataFile]) -> None:
    engine = Here(deadly=files[3].place)
    totals = await run(files, engine)
    assert (totals.done, totals.failed, engine.tried["scan", ""]) == (15, 1, ATTEMPTS)
    assert totals.failures == [(None, None, f"{files[3].place}: {ATTEMPTS} workers died reading it: gone")]


async def test_a_broken_file_does_not_hinder_the_others(files: list[DataFile]) -> None:
    files[2].path.unlink()
    totals = await run(files, Here())
    assert (totals.tasks, totals.done, totals.failed) == (15, 15, 1)
    assert totals.failures[0].reason.startswith(f"{files[2].path} cannot be read")


async def test_days_ahead_of_the_clock_fail(files: list[DataFile]) -> None:
    future = FIRST + DAY - LATER
    totals = await run(files, Here(), future=future)
    assert (totals.done, totals.failed) == (12, 6)
    assert "micro_batch.max_future_ms" in totals.failures[0].reason


async def test_finished_tasks_are_not_handed_out(files: list[DataFile]) -> None:
    plan = Plan(Range(None, None), (), {})
    for file in files:
        plan.add(file, scan_file(file, plan.days, frozenset(), False))
    finished = {(t.group, t.day): t.fingerprint for bundle in plan.ready() for t in bundle}
    engine = Here()
    totals = await run(files, engine, finished=finished)
    assert (totals.tasks, totals.skipped, totals.done) == (18, 18, 0)
    assert not engine.tried


async def test_a_store_that_refuses_ends_everything(files: list[DataFile]) -> None:
    def refuse(bundle: Bundle, attempt: int) -> None:
        raise StoreError("no permission")

    with pytest.raises(ExceptionGroup) as raised:
        await run(files, Here(refuse))
    assert raised.group_contains(StoreError, match="no permission")


async def test_stopped_it_finishes_what_is_under_way(files: list[DataFile]) -> None:
    totals = Totals()
    engine = Here()
    coordinator = Coordinator(
        engine, DESK, Plan(Range(None, None), (), {}), Limits(), totals, ManualClock(LATER), lambda: None
    )
    engine.ends = lambda bundle, attempt: coordinator.stop()
    await coordinator.run(files)
    assert 1 <= totals.done <= engine.workers
    assert totals.failed == 0
