"""Time, passed in: no module of mdp asks the machine for it by itself."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Wall time for stamps, monotonic time for deadlines. Both in int64 nanoseconds."""

    def now(self) -> int:
        """Nanoseconds since 1970-01-01 UTC."""
        ...

    def monotonic(self) -> int:
        """Nanoseconds from an arbitrary start; never goes back."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> int:
        return time.time_ns()

    def monotonic(self) -> int:
        return time.monotonic_ns()


class ManualClock:
    """A clock that tests move by hand."""

    def __init__(self, now: int = 0) -> None:
        self._now = now
        self._monotonic = 0

    def now(self) -> int:
        return self._now

    def monotonic(self) -> int:
        return self._monotonic

    def advance(self, ns: int) -> None:
        """Move both clocks ``ns`` nanoseconds on."""
        if ns < 0:
            raise ValueError(f"a clock only moves forward, not by {ns} ns")
        self._now += ns
        self._monotonic += ns
