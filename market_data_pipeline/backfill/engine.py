"""Where work is done: the contract of engines. A new one is one file."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reply(Generic[T]):
    """What a worker gives back. ``cpu_seconds``: of this worker since it began, all its work together."""

    value: T
    worker: str
    cpu_seconds: float


def answered(work: Callable[..., T], *args: Any) -> Reply[T]:
    """``work(*args)``; this is what an engine runs in a worker."""
    value = work(*args)
    return Reply(value, f"{socket.gethostname()}-{os.getpid()}", time.process_time())


class Engine(Protocol):
    """A pool of processes, as an async context manager.

    ``run`` waits for a worker that is free, so any number of calls may be made at once. Work and its arguments are
    pickled; what work raises is raised here.
    """

    @property
    def workers(self) -> int:
        """How many run at once."""
        ...

    async def run(self, work: Callable[..., T], *args: Any) -> Reply[T]:
        """``work(*args)`` in a worker.

        Raises:
            WorkerLost: the worker died over it; the next call has another.
        """
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
