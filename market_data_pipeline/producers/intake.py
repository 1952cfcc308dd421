"""What a provider gives, as one stream of batches whatever kind of iterator it is.

An ordinary iterator runs in a thread, one batch ahead of what is being published. An async one runs in a task of its
own: one that can wait is held back by a short queue, a live feed never is; what comes from it within ``linger`` is put
together, and what exceeds the queue's bound is dropped and counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from itertools import groupby
from typing import Final, cast

from market_data_core.batch import EventBatch
from market_data_core.ending import end
from market_data_pipeline.producers.delivery import Sleep
from market_data_pipeline.producers.provider import BadRow, Provider

Item = EventBatch | BadRow
LIVE_ROWS: Final = 1_000_000
"""Most events of a live feed that wait to be framed."""
_WAITING_ITEMS: Final = 4


class Intake:
    """Takes what ``provider`` gives; :meth:`close` gives its resources back.

    ``stopping`` ends the stream early. ``dropped`` is called with the number of events of a live feed for which
    there was no room.
    """

    def __init__(
        self,
        provider: Provider,
        stopping: asyncio.Event,
        *,
        sleep: Sleep = asyncio.sleep,
        linger_s: float = 0.02,
        dropped: Callable[[int], None] = lambda events: None,
    ) -> None:
        self._can_wait = provider.can_wait
        self._items = provider.batches()
        self._stopping = stopping
        self._sleep = sleep
        self._linger_s = linger_s
        self._dropped = dropped
        self._next: asyncio.Future[Item | None] | None = None
        self._pump: asyncio.Task[None] | None = None
        self._queue: asyncio.Queue[Item | None] = asyncio.Queue()  # None is the end
        self._slots = asyncio.Semaphore(_WAITING_ITEMS)
        self._rows = 0

    async def items(self) -> AsyncGenerator[Item]:
        """All items, until the provider ends or the run stops. Raises what the provider raises."""
        if isinstance(self._items, AsyncIterator):
            self._pump = asyncio.create_task(self._pumped(self._items))
            async for item in self._pumped_items(self._pump):
                yield item
            return
        while not self._stopping.is_set():
            given = await self._from_thread(self._items)
            if given is None:
                return
            yield given

    async def close(self) -> None:
        """Waits for the provider to let go of what it holds."""
        if self._pump is not None:
            await end(self._pump)
        if self._next is not None:
            await asyncio.wait([self._next])
            self._next.exception()  # whoever reads the items has had it, or has left
        if isinstance(self._items, AsyncGenerator):
            await self._items.aclose()
        elif isinstance(self._items, Generator):
            await asyncio.to_thread(self._items.close)

    async def _from_thread(self, items: Iterator[Item]) -> Item | None:
        if self._next is None:
            self._next = asyncio.ensure_future(asyncio.to_thread(next, items, None))
        item = await asyncio.shield(self._next)
        # The one after this is made while this is published.
        self._next = None if item is None else asyncio.ensure_future(asyncio.to_thread(next, items, None))
        return item

    async def _pumped(self, items: AsyncIterator[Item]) -> None:
        try:
            async for item in items:
                if self._can_wait:
                    await self._slots.acquire()
                elif isinstance(item, EventBatch) and self._rows + len(item) > LIVE_ROWS:
                    self._dropped(len(item))
                    continue
                self._rows += _rows(item)
                self._queue.put_nowait(item)
        finally:
            self._queue.put_nowait(None)

    async def _pumped_items(self, pump: asyncio.Task[None]) -> AsyncIterator[Item]:
        stopped = asyncio.ensure_future(self._stopping.wait())
        try:
            while True:
                getting = asyncio.ensure_future(self._queue.get())
                await asyncio.wait([getting, stopped], return_when=asyncio.FIRST_COMPLETED)
                if stopped.done() and not pump.done():
                    pump.cancel()  # takes no more; what a live feed gave already is still published
                item = await getting
                if item is None:
                    break
                if not self._can_wait:
                    for whole in await self._gathered(item):
                        yield whole
                    continue
                self._slots.release()
                if stopped.done():
                    continue
                yield item
        finally:
            stopped.cancel()
        await asyncio.wait([pump])
        if not pump.cancelled():
            pump.result()

    async def _gathered(self, first: Item) -> list[Item]:
        """``first`` with all that a live feed gives within the linger, batches put together, in order."""
        if self._queue.empty() and not self._stopping.is_set():
            await self._sleep(self._linger_s)
        items = [first]
        while not self._queue.empty():
            item = self._queue.get_nowait()
            if item is None:
                self._queue.put_nowait(None)
                break
            items.append(item)
        self._rows -= sum(map(_rows, items))
        out: list[Item] = []
        for is_batch, group in groupby(items, lambda item: isinstance(item, EventBatch)):
            run = list(group)
            out += [EventBatch.concat(cast(list[EventBatch], run))] if is_batch else run
        return out


def _rows(item: Item) -> int:
    return len(item) if isinstance(item, EventBatch) else 1
