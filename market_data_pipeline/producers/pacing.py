"""When each event is due. Pure: a pace tells times, the runner waits for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from market_data_core.batch import I64, EventBatch
from market_data_core.clock import Clock
from market_data_core.errors import UsageError


class Pace(Protocol):
    """A schedule. Asked for every batch once, in order."""

    def due(self, batch: EventBatch, now: int) -> I64 | None:
        """Monotonic ns, ascending, at which each row is due; None when all are at once. ``now``: monotonic ns."""
        ...


@dataclass(frozen=True, slots=True)
class Unpaced:
    """As fast as the bus takes it."""

    def due(self, batch: EventBatch, now: int) -> I64 | None:
        return None


@dataclass(slots=True)
class RatePace:
    """``rate`` events a second from the first one on. What falls behind is caught up with."""

    rate: float
    _start: int | None = None
    _sent: int = 0

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise UsageError(f"the rate must be more than 0, not {self.rate}; correct --rate")

    def due(self, batch: EventBatch, now: int) -> I64 | None:
        if self._start is None:
            self._start = now
        index = np.arange(self._sent, self._sent + len(batch), dtype=np.float64)
        self._sent += len(batch)
        return self._start + (index * (1e9 / self.rate)).astype(np.int64)


@dataclass(slots=True)
class EventTimePace:
    """As the events happened, ``speed`` times as fast, from the first one on.

    ``column`` is whose time counts: when an event happened, or when it arrives. An event that goes back in time
    is due with the one before it. The first is due at once, or, with a ``clock``, when it is its time by it: so events
    that are made as they happen never are ahead of their own times.
    """

    speed: float = 1.0
    column: Literal["src_ts", "ingest_ts"] = "src_ts"
    clock: Clock | None = None
    _start: int | None = None
    _first: int = 0
    _newest: int = field(default=-(2**63))

    def __post_init__(self) -> None:
        if not self.speed > 0:
            raise UsageError(f"the speed must be more than 0, or max, not {self.speed:g}; correct --speed")

    def due(self, batch: EventBatch, now: int) -> I64 | None:
        at: I64 = getattr(batch, self.column)
        if len(at) == 0:
            return None
        if self._start is None:
            self._start, self._first = now, int(at[0])
            if self.clock is not None:
                self._start += self._first - self.clock.now()
        newest = np.maximum(np.maximum.accumulate(at), self._newest)
        self._newest = int(newest[-1])
        passed = np.maximum(newest - self._first, 0)
        if self.speed != 1.0:
            passed = (passed / self.speed).astype(np.int64)
        due: I64 = passed + self._start
        return due
