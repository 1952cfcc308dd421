"""Calls to a bus or a store that may be away for a while."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential, wait_random

from market_data_core.errors import MdpError

T = TypeVar("T")


class Retrying:
    """Calls until it works. ``report`` is told what was called and each error that is tried again after.

    What was called, and all that hangs on it, is let go of when it is done. What retries refers to itself, so it stays
    until the garbage collector comes by, which a consumer lets come rarely: a batch of the bus, or the state of a
    partition that is somebody else's now, would stay with it.
    """

    def __init__(self, report: Callable[[str, BaseException], None]) -> None:
        self._report = report

    async def __call__(
        self, what: str, call: Callable[[], Awaitable[T]], as_long_as: Callable[[], bool] = lambda: True
    ) -> T:
        """Call until it works, as long as the error says that it may: exponential backoff with jitter, to 2 s."""
        try:
            return await call()  # nearly always that is all, and nothing that retries need be made
        except MdpError as error:
            if not (error.retriable and as_long_as()):
                raise
            failures = [error]
        wanted = [as_long_as]

        def report(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            if error is not None:
                self._report(
                    what, error.with_traceback(None)
                )  # or it refers to every frame that it came through

        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception(lambda e: isinstance(e, MdpError) and e.retriable and wanted[0]()),
                wait=wait_exponential(multiplier=0.05, max=2.0) + wait_random(0, 0.1),
                before_sleep=report,
                reraise=True,
            ):
                with attempt:
                    if failures:
                        raise failures.pop()  # the first attempt is over
                    return await call()
        finally:
            wanted.clear()
        raise AssertionError("unreachable: retrying ends by a result or an error")
