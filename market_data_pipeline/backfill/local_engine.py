"""A pool of processes on this machine.

Each worker is an executor of one process. So when a process dies it is known over which task, only that one is lost,
and no other worker is disturbed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from types import TracebackType
from typing import Any, Self, TypeVar

from market_data_core.errors import WorkerLost
from market_data_pipeline.backfill.engine import Reply, answered
from market_data_pipeline.logging import configure

T = TypeVar("T")


class LocalEngine:
    """See :class:`Engine`. Processes are spawned: they share no lock, loop or connection with this one."""

    def __init__(self, workers: int | None = None, log_level: str = "INFO") -> None:
        """``workers``: how many; None for one a CPU that this process may use."""
        self.workers = workers or _cpus()
        self._log_level = log_level
        self._free: asyncio.LifoQueue[ProcessPoolExecutor] = asyncio.LifoQueue()
        self._all: set[ProcessPoolExecutor] = set()

    async def __aenter__(self) -> Self:
        for _ in range(self.workers):
            self._free.put_nowait(self._started())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for executor in self._all:
            await asyncio.to_thread(executor.shutdown, cancel_futures=True)

    async def run(self, work: Callable[..., T], *args: Any) -> Reply[T]:
        """See :class:`Engine`."""
        executor = await self._free.get()
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, answered, work, *args)
        except BrokenProcessPool:
            executor.shutdown(wait=False)
            self._all.discard(executor)
            executor = self._started()
            raise WorkerLost("a worker process died; was it killed for want of memory?") from None
        finally:
            self._free.put_nowait(executor)

    def _started(self) -> ProcessPoolExecutor:
        executor = ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=_begin, initargs=(self._log_level,)
        )
        self._all.add(executor)
        return executor


def _cpus() -> int:
    """How many this process may use; macOS does not tell, and has them all."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1


def _begin(log_level: str) -> None:
    """What a worker does first. Ctrl-C is the parent's affair; a worker whose parent has died ends too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure(log_level)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
