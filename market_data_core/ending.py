"""Ending tasks for certain."""

from __future__ import annotations

import asyncio
from typing import Any, Final

_AGAIN_S: Final = 1.0


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel ``tasks`` and return when all of them have ended, in whatever way.

    One cancellation may not be enough: asyncio.wait_for of Python 3.11, in which drivers wait, drops one that comes as
    what it waits for is done, and a task that works again and again would then do so for ever.
    """
    while going := [task for task in tasks if not task.done()]:
        for task in going:
            task.cancel()
        await asyncio.wait(going, timeout=_AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # it has been seen
