"""Where CPU time goes: samples of the call stack, a thousand a second of CPU time, sorted into parts of the work.

A sample counts for the CPU time that has passed since the one before, since a signal waits until a call into C
returns. The collector of garbage runs inside of everything, so it is timed by itself and is part of no other share.
"""

from __future__ import annotations

import gc
import signal
import time
from collections import defaultdict
from types import FrameType
from typing import Final

INTERVAL: Final = 0.001

# The first that a stack holds, from the outside in, decides; a part is file names or functions.
_OUTER: Final = (
    ("acknowledge", ("redis_consumer.py:ack", "redis_group.py:acknowledge", "redis_consumer.py:due")),
    ("publish bars", ("redis_bus.py:publish",)),
    ("store", ("market_data_store/", "psycopg")),
)
# Of the rest, the first from the inside out.
_INNER: Final = (
    ("remember ids", ("windows/seen_ids.py",)),
    ("windows and bars", ("windows/", "market_data_core/ohlcv.py", "consumers/micro_batcher.py")),
    ("decode", ("market_data_core/",)),
    ("read from Redis", ("streaming/", "/redis/", "/hiredis/")),
    ("event loop and sockets", ("/asyncio/", "selectors.py")),
)
REST: Final = "the rest"
GARBAGE: Final = "garbage collection"


class Sampler:
    """Samples from :meth:`start` to :meth:`stop`; one at a time, in the main thread."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = defaultdict(float)
        self._known: dict[tuple[str, str], tuple[str | None, str | None]] = {}
        self._last = 0.0
        self._garbage_since = 0.0

    def start(self) -> None:
        signal.signal(signal.SIGPROF, self._sample)
        gc.callbacks.append(self._collecting)
        self._last = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)

    def stop(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        if self._collecting in gc.callbacks:
            gc.callbacks.remove(self._collecting)

    def shares(self) -> dict[str, float]:
        """The part of CPU time of each kind of work, largest first."""
        total = sum(self._spent.values()) or 1.0
        parts = sorted(self._spent.items(), key=lambda item: -item[1])
        return {part: round(spent / total, 4) for part, spent in parts}

    def _collecting(self, phase: str, info: dict[str, int]) -> None:
        now = time.process_time()
        if phase == "start":
            self._garbage_since = now
            return
        self._spent[GARBAGE] += now - self._garbage_since
        # What the sample that comes next counts for must not hold this again.
        self._last += now - self._garbage_since

    def _sample(self, _signal: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_code is Sampler._collecting.__code__:
            return
        now = time.process_time()
        self._spent[self._part(frame)] += max(0.0, now - self._last)
        self._last = now

    def _part(self, frame: FrameType | None) -> str:
        inner = outer = None
        while frame is not None:
            code = frame.f_code
            key = (code.co_filename, code.co_name)
            found = self._known.get(key)
            if found is None:
                found = self._known[key] = (_match(_OUTER, *key), _match(_INNER, *key))
            outer = found[0] or outer
            inner = inner or found[1]
            frame = frame.f_back
        return outer or inner or REST


def _match(table: tuple[tuple[str, tuple[str, ...]], ...], file: str, function: str) -> str | None:
    place = f"{file}:{function}"
    return next((part for part, names in table if any(name in place for name in names)), None)
