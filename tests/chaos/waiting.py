"""Waiting for conditions, never for time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

_LOOK_EVERY_S = 0.02


async def until(what: str, seconds: float, condition: Callable[[], bool | Awaitable[bool]]) -> float:
    """Wait until ``condition()``; the seconds that took.

    Raises:
        AssertionError: it did not come true within ``seconds``.
    """
    began = time.monotonic()
    while True:
        found = condition()
        if not isinstance(found, bool):
            found = await found
        if found:
            return time.monotonic() - began
        if time.monotonic() - began > seconds:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        await asyncio.sleep(_LOOK_EVERY_S)
