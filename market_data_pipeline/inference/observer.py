"""What the engine tells of its evaluations, and the ways in which one fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from market_data_core.batch import I32
from market_data_core.events import BarSeries

Reason = Literal["exception", "result", "timeout", "busy", "hangs", "open", "reload"]
"""Why there are no decisions of an adapter, or not those that were wanted.

``exception``: it raised. ``result``: what it returned are no decisions. ``timeout``: it took too long. ``busy``: no
thread was free in time. ``hangs``: every thread is held by a call that took too long and has not ended yet. ``open``:
it failed too often and is left alone for now, and there is nothing to fall back to. ``reload``: the file that it is
made of has changed and cannot be used, so it decides as before.
"""

State = Literal["closed", "open", "half-open"]


class Failed(Exception):
    """An evaluation without decisions. ``str(failed)`` is what a person should know of it."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


class EngineObserver(Protocol):
    """Told on the event loop, so it must not block."""

    def evaluated(self, adapter: str, seconds: float, rows: int) -> None:
        """An evaluation of so many rows has ended, or was given up, after ``seconds``."""
        ...

    def failed(self, adapter: str, reason: Reason) -> None:
        """A batch has no decisions of ``adapter``, or its file cannot be used (``reload``)."""
        ...

    def state(self, adapter: str, state: State) -> None:
        """What the breaker of a blocking adapter has become; told once at the start too."""
        ...


class FeatureObserver(Protocol):
    """Told on the event loop, so it must not block."""

    def features(self, interval: str, seconds: float, series: Sequence[BarSeries], code: I32) -> None:
        """Features of the bars of ``series[code[i]]``, all of one interval, were computed in ``seconds``."""
        ...


class Unobserved:
    """For whom nobody listens."""

    def evaluated(self, adapter: str, seconds: float, rows: int) -> None: ...

    def failed(self, adapter: str, reason: Reason) -> None: ...

    def state(self, adapter: str, state: State) -> None: ...

    def features(self, interval: str, seconds: float, series: Sequence[BarSeries], code: I32) -> None: ...
