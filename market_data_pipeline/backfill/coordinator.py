"""Files to scans, scans to bundles, bundles to workers; and what to do when one of these fails."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog

from market_data_core.clock import Clock
from market_data_core.errors import WorkerLost
from market_data_pipeline.backfill.bundle import do_bundle
from market_data_pipeline.backfill.desk import Desk
from market_data_pipeline.backfill.engine import Engine
from market_data_pipeline.backfill.plan import FIRST_DAY, Plan
from market_data_pipeline.backfill.scan import Scan, scan_file
from market_data_pipeline.backfill.task import Bundle
from market_data_pipeline.backfill.totals import Totals
from market_data_pipeline.producers.layout import DAY
from market_data_pipeline.producers.sources import DataFile

ATTEMPTS: Final = 3
"""So many workers may die over a task."""
AHEAD: Final = 2
"""Scans and bundles that wait, for each worker."""

_AHEAD_OF_CLOCK: Final = (
    "the day lies ahead of the clock by more than micro_batch.max_future_ms; correct the times of the dataset"
)
_log = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """``symbols``: only these; empty for all. ``max_future_ns``: days further ahead of the clock fail (0: none)."""

    symbols: frozenset[str] = frozenset()
    max_future_ns: int = 0


class Coordinator:
    """Runs one backfill. ``observer`` is called whenever ``totals`` have changed."""

    def __init__(
        self,
        engine: Engine,
        desk: Desk,
        plan: Plan,
        limits: Limits,
        totals: Totals,
        clock: Clock,
        observer: Callable[[], None],
    ) -> None:
        self.totals = totals
        self._engine = engine
        self._desk = desk
        self._plan = plan
        self._limits = limits
        self._clock = clock
        self._observer = observer
        self._stopped = False

    def stop(self) -> None:
        """Finish what is under way, begin nothing more."""
        self._stopped = True

    async def run(self, files: list[DataFile]) -> None:
        """Do everything that ``files`` hold. What fails is in the totals.

        Raises:
            StoreUnavailable, StoreError: the store cannot be written to. MissingExtra: a package is missing.
        """
        workers = self._engine.workers
        self.totals.workers = workers
        self.totals.files += len(files)
        queue: asyncio.Queue[Bundle | None] = asyncio.Queue(AHEAD * workers)
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._take(queue))
            await self._feed(group, files, queue)
            for _ in range(workers):
                await queue.put(None)

    async def _feed(
        self, group: asyncio.TaskGroup, files: list[DataFile], queue: asyncio.Queue[Bundle | None]
    ) -> None:
        """Scan files in the order of their days; hand out the days that no later file can add to."""
        waiting = deque(sorted(files, key=_first_day))
        scanning: deque[tuple[DataFile, asyncio.Task[Scan]]] = deque()
        while (waiting or scanning) and not self._stopped:
            while waiting and len(scanning) < AHEAD * self._engine.workers:
                file = waiting.popleft()
                scanning.append((file, group.create_task(self._scan(file))))
            file, task = scanning.popleft()
            scan = await task
            self.totals.files_scanned += 1
            if scan.fault is not None and not scan.holdings:
                self.totals.fail(None, None, scan.fault)
            self._plan.add(file, scan)
            following = scanning[0][0] if scanning else waiting[0] if waiting else None
            await self._hand_out(
                self._plan.ready(_first_day(following)) if following else self._plan.ready(), queue
            )

    async def _hand_out(self, bundles: Iterator[Bundle], queue: asyncio.Queue[Bundle | None]) -> None:
        latest = self._clock.now() + self._limits.max_future_ns
        for bundle in bundles:
            if self._stopped:
                return
            ahead = bool(self._limits.max_future_ns) and bundle[0].start > latest
            good = []
            for task in bundle:
                fault = _AHEAD_OF_CLOCK if ahead else task.fault
                if fault is None:
                    good.append(task)
                else:
                    self.totals.fail(task.symbol, task.date, fault)
            self._tell()
            if good:
                await queue.put(tuple(good))
        self._tell()

    async def _take(self, queue: asyncio.Queue[Bundle | None]) -> None:
        while (bundle := await queue.get()) is not None:
            if self._stopped:
                continue
            try:
                done = await self._attempt(do_bundle, self._desk, bundle)
            except WorkerLost as error:
                for task in bundle:
                    self.totals.fail(task.symbol, task.date, f"{ATTEMPTS} workers died over it: {error}")
            else:
                self.totals.take(done)
            self._tell()

    async def _scan(self, file: DataFile) -> Scan:
        limits = self._limits
        try:
            return await self._attempt(
                scan_file, file, self._plan.days, limits.symbols, self._desk.skip_bad_rows
            )
        except WorkerLost as error:
            return Scan(fault=f"{file.place}: {ATTEMPTS} workers died reading it: {error}")

    async def _attempt(self, work: Callable[..., T], *args: Any) -> T:
        """``work`` in a worker, and in another when that one dies.

        Raises:
            WorkerLost: all of them died.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                reply = await self._engine.run(work, *args)
            except WorkerLost as error:
                self.totals.workers_lost += 1
                _log.warning(
                    "a worker died; another goes on", attempt=attempt, of=ATTEMPTS, reason=str(error)
                )
                last = error
            else:
                self.totals.cpu[reply.worker] = reply.cpu_seconds
                return reply.value
        raise last

    def _tell(self) -> None:
        self.totals.tasks = self._plan.tasks
        self.totals.skipped += self._plan.take_skipped()
        self._observer()


def _first_day(file: DataFile) -> int:
    """The first UTC day that the file may hold; all days, where nothing tells."""
    earliest = file.layout.earliest
    return FIRST_DAY if earliest is None else earliest // DAY
