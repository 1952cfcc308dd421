"""Tasks end, also those that lose a cancellation."""

from __future__ import annotations

import asyncio

from market_data_core.ending import end


class Deaf:
    """Works for ever, and does not hear the first cancellations."""

    def __init__(self, lost: int) -> None:
        self.lost = lost

    async def work(self) -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if not self.lost:
                    raise
                self.lost -= 1


async def fail() -> None:
    raise ValueError("seen")


async def test_a_cancellation_that_is_lost_is_given_again() -> None:
    deaf = Deaf(lost=1)
    tasks = [
        asyncio.create_task(work) for work in (deaf.work(), Deaf(lost=0).work(), fail(), asyncio.sleep(0))
    ]
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await end(*tasks)
    assert deaf.lost == 0
    assert all(task.done() for task in tasks)


async def test_no_task_is_no_wait() -> None:
    await end()
