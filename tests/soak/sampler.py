"""Looks at every process and at both groups twice a second, while the load runs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import polars as pl
import psutil

from market_data_core.errors import BusUnavailable
from market_data_pipeline.streaming.bus import Bus
from tests.soak.plan import GROUPS

_EVERY_S: Final = 0.5
MACHINE: Final = "everything on the machine"


@dataclass(frozen=True, slots=True)
class Usage:
    """``at``: s UTC. ``rss``: resident bytes; of a server with children, its own share of memory and theirs. ``cpu``:
    seconds so far."""

    at: float
    process: str
    pid: int
    rss: int
    cpu: float


@dataclass(frozen=True, slots=True)
class Backlog:
    """Of all partitions of a group: ``lag``, records that it was not handed yet, the oldest ``lag_ms`` old;
    ``pending``, those not acknowledged yet."""

    at: float
    group: str
    lag: int
    lag_ms: int
    pending: int
    oldest_pending_ms: int


class Sampler:
    """Entered, it looks until it is left. ``processes`` tells who runs now, by name."""

    def __init__(self, open_bus: Callable[[], Bus], processes: Callable[[], Mapping[str, int]]) -> None:
        self._open_bus = open_bus
        self._processes = processes
        self._known: dict[int, psutil.Process] = {}
        self._stack = contextlib.AsyncExitStack()
        self._task: asyncio.Task[None] | None = None
        self._usage: list[Usage] = []
        self._backlog: list[Backlog] = []

    async def __aenter__(self) -> Self:
        bus = await self._stack.enter_async_context(self._open_bus())
        self._task = asyncio.create_task(self._run(bus))
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self._stack.aclose()

    def usage(self) -> pl.DataFrame:
        """at, process, pid, rss (MB), cpu (s so far), share (of one core since the sample before)."""
        frame = pl.DataFrame(self._usage, schema=list(Usage.__dataclass_fields__), orient="row")
        before = pl.col("cpu").shift().over("process", "pid"), pl.col("at").shift().over("process", "pid")
        share = (pl.col("cpu") - before[0]) / (pl.col("at") - before[1])
        return frame.with_columns(pl.col("rss") / 1e6, share=share)

    def backlog(self) -> pl.DataFrame:
        """The columns of :class:`Backlog`."""
        return pl.DataFrame(self._backlog, schema=list(Backlog.__dataclass_fields__), orient="row")

    async def _run(self, bus: Bus) -> None:
        due = time.monotonic()
        while True:
            self._look_at_processes()
            with contextlib.suppress(BusUnavailable):  # too busy to answer
                await self._look_at_groups(bus)
            due = max(due + _EVERY_S, time.monotonic())
            await asyncio.sleep(due - time.monotonic())

    def _look_at_processes(self) -> None:
        at = time.time()
        for name, pid in self._processes().items():
            with contextlib.suppress(psutil.NoSuchProcess):  # killed just now
                process = self._known.get(pid) or self._known.setdefault(pid, psutil.Process(pid))
                self._usage.append(_usage(at, name, process))
        busy = psutil.cpu_times()
        cpu = sum(busy) - busy.idle - getattr(busy, "iowait", 0.0) - getattr(busy, "guest", 0.0)
        self._usage.append(Usage(at, MACHINE, 0, 0, cpu))

    async def _look_at_groups(self, bus: Bus) -> None:
        for topic in await bus.status(list(GROUPS)):
            for group in topic.groups:
                parts = group.partitions
                if group.group == GROUPS[topic.topic] and parts:
                    self._backlog.append(
                        Backlog(
                            time.time(),
                            group.group,
                            sum(p.lag for p in parts),
                            max(p.lag_ms for p in parts),
                            sum(p.pending for p in parts),
                            max(p.oldest_pending_ms for p in parts),
                        )
                    )


def _usage(at: float, name: str, process: psutil.Process) -> Usage:
    with process.oneshot():
        times = process.cpu_times()
        cpu, rss = times.user + times.system, process.memory_info().rss
    if name == "postgres":
        # A process for each connection, with shared memory that must not be counted each time. Those that have ended
        # are in the children's times of the first one.
        children = process.children()
        cpu += times.children_user + times.children_system
        rss = _share(process)
        for child in children:
            with contextlib.suppress(psutil.Error):
                own = child.cpu_times()
                cpu += own.user + own.system
                rss += _share(child)
    return Usage(at, name, process.pid, rss, cpu)


def _share(process: psutil.Process) -> int:
    full: Any = process.memory_full_info()
    share: int = getattr(full, "pss", full.uss)
    return share
