"""The members of one consumer group as processes of their own, with what the harness does to them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from market_data_core.errors import BusError
from market_data_pipeline.streaming.bus import Bus
from tests.chaos.processes import STOPPED_AT_ITS_START, Process
from tests.chaos.waiting import until
from tests.chaos.watch import CommitWatch

Start = Callable[[str, Sequence[str]], Awaitable[Process]]
"""Starts the process of a name and a command line."""


class Crew:
    """Workers that do the same and share partitions.

    ``role``: what a worker's name begins with. ``watch``: entered and left by whoever owns the crew.
    """

    def __init__(self, role: str, argv: Sequence[str], start: Start, watch: CommitWatch) -> None:
        self.role, self.watch = role, watch
        self.workers: list[Process] = []
        self.past: list[Process] = []
        self._argv, self._start = argv, start
        self._numbers = 0

    async def join(self) -> Process:
        """One more worker."""
        self._numbers += 1
        worker = await self._start(f"{self.role}-{self._numbers}", self._argv)
        self.workers.append(worker)
        return worker

    def kill(self, worker: Process) -> None:
        """``kill -9`` of a worker, wherever it is in its life."""
        self.watch.killed(worker.pid)
        worker.kill()
        self._part(worker)

    async def leave(self, worker: Process) -> None:
        """SIGTERM at any moment, and its orderly end."""
        worker.dismiss()
        self._part(worker)
        await worker.gone(30, codes=(0, *STOPPED_AT_ITS_START))

    def _part(self, worker: Process) -> None:
        self.workers.remove(worker)
        self.past.append(worker)

    def owners(self) -> list[Process]:
        """Workers that hold a partition."""
        return [w for w in self.workers if self.watch.of(w.pid)]

    def owned(self, partitions: int) -> bool:
        """Whether so many partitions have had an owner."""
        return len(self.watch.held) == partitions

    def committing(self, partitions: int) -> bool:
        """Whether so many partitions have an owner that has committed."""
        return self.owned(partitions) and all(h.flushes > 0 for h in self.watch.held.values())

    async def progress(self, check: Callable[[], None], seconds: float = 120) -> None:
        """Wait until every partition has commits again that it has not now; ``check`` sees that all live."""
        before = {p: (h.epoch, h.flushes) for p, h in self.watch.held.items()}

        def moved() -> bool:
            check()
            now = {p: (h.epoch, h.flushes) for p, h in self.watch.held.items()}
            return all(now[p] > before[p] and now[p][1] > 0 for p in before)

        await until(f"every partition of the {self.role}s commits", seconds, moved)

    async def recovered(self) -> None:
        """Wait until what lost its owner has commits of another."""
        await until("what lost its owner commits", 120, lambda: not self.watch.unrecovered)

    async def drained(self, bus: Bus, partitions: int, seconds: float) -> float:
        """Wait until every worker has joined and every record is acknowledged, which follows the commit and the
        publishing of all results."""

        async def done() -> bool:
            for worker in self.workers:
                assert worker.code is None, f"{worker.name} ended by itself: {worker.last_words()}"
            try:
                (status,) = await bus.status([self.watch.topic])
            except BusError:
                return False
            mine = [g for g in status.groups if g.group == self.watch.group]
            parts = mine[0].partitions if mine else []
            if len(parts) != partitions or len(mine[0].members) != len(self.workers):
                return False
            return all(p.lag == 0 and p.pending == 0 for p in parts)

        return await until(f"the {self.role}s have handled every record", seconds, done)

    async def dismiss(self) -> list[dict[str, Any]]:
        """End all workers in order; the results of everybody who ended so."""
        for worker in self.workers:
            worker.dismiss()
        for worker in self.workers:
            await worker.gone(30)
        ended = [w for w in (*self.workers, *self.past) if w.code == 0]
        for worker in ended:
            assert worker.result()["fenced"] == worker.fenced(), f"{worker.name} counts other than it logs"
        return [worker.result() for worker in ended]

    def fenced(self) -> int:
        """Writes refused to workers that had been replaced, by their logs."""
        return sum(worker.fenced() for worker in (*self.workers, *self.past))
