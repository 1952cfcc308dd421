"""Workers on the machines of a Ray cluster. Needs the extra ``ray``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from market_data_core.errors import MissingExtra, UsageError, WorkerLost
from market_data_pipeline.backfill.engine import Reply, answered

T = TypeVar("T")


class RayEngine:
    """See :class:`Engine`. One call is one Ray task of one CPU; Ray itself retries none.

    Files must be at the same paths on every machine, mdp must be installed there, and the store must be reachable.
    """

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        """``address``: of the cluster (``auto``, ``host:port``); None starts one on this machine.
        ``workers``: how many tasks run at once; None for one a CPU of the cluster.

        Raises:
            MissingExtra: ray is not installed.
        """
        try:
            import ray
            from ray import exceptions
        except ImportError:
            raise MissingExtra("--engine ray needs ray; run: pip install 'mdp[ray]'") from None
        self._ray: Any = ray
        self._lost: tuple[type[BaseException], ...] = (
            exceptions.WorkerCrashedError,
            exceptions.NodeDiedError,
            exceptions.LocalRayletDiedError,
            exceptions.ObjectLostError,
            exceptions.OutOfMemoryError,
        )
        self._failed: Any = exceptions.RayTaskError
        self._address = address
        self._asked = workers
        self.workers = workers or 1

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._connect)
        if self._asked is None:
            self.workers = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        self._slots = asyncio.Semaphore(self.workers)
        self._remote = self._ray.remote(max_retries=0, num_cpus=1)(answered)
        return self

    def _connect(self) -> None:
        own: dict[str, Any] = {}
        if self._address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            own = {"num_cpus": self._asked, "include_dashboard": False}
        try:
            self._ray.init(self._address or "local", log_to_driver=False, logging_level="ERROR", **own)
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = self._address or "this machine"
            said = str(error).strip().partition("\n")[0]
            raise UsageError(f"--ray-address: there is no Ray cluster to use at {where}: {said}") from error

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._ray.shutdown)

    async def run(self, work: Callable[..., T], *args: Any) -> Reply[T]:
        """See :class:`Engine`."""
        async with self._slots:
            try:
                reply: Reply[T] = await self._remote.remote(work, *args)
            except self._lost as error:
                said = str(error).strip().partition("\n")[0]
                raise WorkerLost(f"a worker of the Ray cluster died: {said}") from None
            except self._failed as error:
                raise error.cause from None
        return reply
