"""A bounded pool of threads for calls that may never come back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from market_data_pipeline.inference.observer import Failed

_T = TypeVar("_T")


class Pool:
    """Runs at most ``size`` calls at once, each in a thread, off the event loop.

    A thread that hangs cannot be stopped; it holds its place until it ends by itself. The threads are daemons, other
    than those of a ThreadPoolExecutor, which the interpreter waits for when it ends: a model that hangs would keep
    the process from stopping. For one loop.
    """

    def __init__(self, name: str, size: int, timeout_s: float) -> None:
        self._name = name
        self._size = size
        self._timeout = timeout_s
        self._free = asyncio.Semaphore(size)
        self._hanging = 0

    @property
    def hanging(self) -> int:
        """Threads whose call was given up and has not ended."""
        return self._hanging

    async def run(self, call: Callable[[], _T]) -> _T:
        """What ``call`` returns within ``timeout_s`` of its start.

        Raises:
            Failed: ``exception``, with what ``call`` raised, unless that is a Failed itself; ``timeout``; ``busy``
                when no thread was free within ``timeout_s``; ``hangs``, at once, when all of them hang.
        """
        if self._hanging == self._size:
            raise Failed("hangs", f"{self._size} of {self._size} threads are held by calls that do not end")
        try:
            async with asyncio.timeout(self._timeout):
                await self._free.acquire()
        except TimeoutError:
            raise Failed("busy", f"no thread was free within {self._timeout * 1000:g} ms") from None
        running = _Call(call, self._free.release)
        try:
            running.start(self._name)
            await asyncio.wait({running.ended}, timeout=self._timeout)
        finally:
            if not running.ended.done():
                self._hanging += 1
                running.ended.add_done_callback(self._recovered)
        if not running.ended.done():
            raise Failed("timeout", f"no answer within {self._timeout * 1000:g} ms")
        return running.result()

    def _recovered(self, ended: asyncio.Future[None]) -> None:
        self._hanging -= 1


class _Call(Generic[_T]):
    """One call in a thread of its own. ``ended`` is done, on the loop, when the thread is."""

    def __init__(self, call: Callable[[], _T], release: Callable[[], None]) -> None:
        self._call = call
        self._release = release
        self._outcome: Future[_T] = Future()
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def start(self, name: str) -> None:
        try:
            threading.Thread(target=self._work, name=name, daemon=True).start()
        except RuntimeError:  # the machine has no thread to give
            self._end()
            raise

    def result(self) -> _T:
        # Whatever the call raised is its failure: not even SystemExit or CancelledError is meant for the caller.
        error = self._outcome.exception()
        if error is not None and not isinstance(error, Failed):
            raise Failed("exception", f"{type(error).__name__}: {error}") from error
        return self._outcome.result()

    def _work(self) -> None:
        try:
            self._outcome.set_result(self._call())
        except BaseException as error:
            self._outcome.set_exception(error)
        try:
            self._loop.call_soon_threadsafe(self._end)
        except RuntimeError:
            if not self._loop.is_closed():  # otherwise nobody waits any more
                raise

    def _end(self) -> None:
        self._release()
        if not self.ended.done():
            self.ended.set_result(None)
