"""Lets events out when they are due, and knows when a run is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import numpy as np

from market_data_core.batch import EventBatch
from market_data_core.clock import Clock
from market_data_pipeline.producers.delivery import Sleep
from market_data_pipeline.producers.pacing import Pace


class Release:
    """Slices of batches, each when its rows are due by ``pace``.

    Events that are due within ``linger_s`` of each other go together; none waits longer than that. ``hurry`` is
    set when the run is to end soon: nothing waits any more. ``halted`` is set when nothing more is let out.
    ``over`` is True when the run ended within a batch.
    """

    def __init__(
        self,
        pace: Pace,
        clock: Clock,
        sleep: Sleep,
        *,
        linger_s: float,
        duration_s: float | None,
        largest: int,
    ) -> None:
        self._pace = pace
        self._clock = clock
        self._sleep = sleep
        self._linger = int(linger_s * 1e9)
        self._duration_s = duration_s
        self._largest = largest
        self._deadline: int | None = None
        self._released_at = -(2**62)
        self._finish_at: int | None = None
        self.hurry = asyncio.Event()
        self.halted = asyncio.Event()
        self.over = False

    def halt(self) -> None:
        """Let nothing more out."""
        self.halted.set()
        self.hurry.set()

    def finish(self, at: int) -> None:
        """Let out at once what is left before the event time ``at``, and then no more."""
        self._finish_at = at
        self.hurry.set()

    async def pause(self, seconds: float) -> None:
        """Sleep, but not through a stop."""
        waits = [asyncio.ensure_future(self._sleep(seconds)), asyncio.ensure_future(self.hurry.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def rows(self, batch: EventBatch) -> AsyncGenerator[EventBatch]:
        """``batch`` in order, in slices of at most ``largest`` rows, each when it is due."""
        n, start = len(batch), 0
        now = self._clock.monotonic()
        due = self._pace.due(batch, now)
        if self._deadline is None and self._duration_s is not None and n:
            self._deadline = (now if due is None else int(due[0])) + int(self._duration_s * 1e9)
        while start < n and not self.halted.is_set() and not self.over:
            now = self._clock.monotonic()
            end = min(n, start + self._largest)
            if self.hurry.is_set():
                end = self._before_finish(batch, start, end)
            elif due is None:
                if self._deadline is not None and now >= self._deadline:
                    self.over = True
                    return
            elif self._deadline is not None and now >= self._deadline:
                # What was due before the deadline and is waiting for the linger is still part of the run.
                self.over = True
                end = max(start, min(end, int(np.searchsorted(due, self._deadline, "left"))))
            else:
                ready = int(np.searchsorted(due, now, "right"))
                wake = max(int(due[start]), min(int(due[start]), self._released_at) + self._linger)
                if ready < end and wake > now:
                    await self.pause((min(wake, self._deadline or wake) - now) / 1e9)
                    continue
                end = min(end, ready)
                self._released_at = now
            if end > start:
                yield batch if end - start == n else batch.take(slice(start, end))
            start = end

    def _before_finish(self, batch: EventBatch, start: int, end: int) -> int:
        if self._finish_at is not None:
            beyond = np.flatnonzero(batch.src_ts[start:end] >= self._finish_at)
            if len(beyond):
                self.over = True
                return start + int(beyond[0])
        return end
