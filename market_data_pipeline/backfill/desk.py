"""What every worker of a backfill needs to know, and its connection to the store, which it keeps between tasks."""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, TypeVar

from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_random_exponential

from market_data_core.errors import MdpError
from market_data_store.client import StoreClient

T = TypeVar("T")
PATIENCE_S: Final = 60.0
"""How long a worker waits for a store that is away."""


@dataclass(frozen=True, slots=True)
class Desk:
    """``store_url`` holds a password. ``horizon_ns``: the stream's dedupe horizon, to count what it would not take."""

    store_url: str = field(repr=False)
    timeout_s: float
    topic: str
    window_ns: int
    kinds: tuple[str, ...]
    horizon_ns: int
    force: bool = False
    skip_bad_rows: bool = False
    resume: bool = True
    patience_s: float = PATIENCE_S


class Worker:
    """The event loop and the connection of one process."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._runner = asyncio.Runner()
        self._connecting = (url, timeout_s)
        self._store: StoreClient | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """``work`` to its end."""
        return self._runner.run(work)

    def close(self) -> None:
        """Give the connection back."""
        store, self._store = self._store, None
        if store is not None:
            self._runner.run(store.close())
        self._runner.close()

    async def store(self) -> StoreClient:
        """Raises StoreUnavailable, StoreError, SchemaOutOfDate."""
        if self._store is None:
            url, timeout_s = self._connecting
            self._store = await StoreClient.connect(url, pool_size=1, timeout_s=timeout_s)
        return self._store


@lru_cache(maxsize=1)
def worker_of(url: str, timeout_s: float) -> Worker:
    """The worker of this process, made when it is first needed."""
    worker = Worker(url, timeout_s)
    atexit.register(worker.close)
    return worker


async def patiently(seconds: float, call: Callable[[], Awaitable[T]]) -> T:
    """``call`` again while its error says that it may work later: backoff with jitter, up to ``seconds``."""
    async for attempt in AsyncRetrying(
        retry=retry_if_exception(lambda e: isinstance(e, MdpError) and e.retriable),
        stop=stop_after_delay(seconds),
        wait=wait_random_exponential(multiplier=0.05, max=2.0),
        reraise=True,
    ):
        with attempt:
            return await call()
    raise AssertionError("unreachable: retrying ends by a result or an error")
