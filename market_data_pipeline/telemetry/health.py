"""Whether the process is alive, and whether it can do its work now."""

from __future__ import annotations

from typing import Final

from market_data_core.clock import Clock, SystemClock
from market_data_core.redact import redact

STUCK_AFTER_S: Final = 10.0
_STARTING: Final = "not looked at yet"


class Health:
    """Written by the event loop, read by the exporter's thread.

    Alive: the loop has beaten within ``STUCK_AFTER_S``, or has not begun yet. Ready: every one of the things that
    :meth:`expect` named was found in order when it was last looked at.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._beat: int | None = None
        self._problems: dict[str, str | None] = {"start": _STARTING}

    def beat(self) -> None:
        """The loop runs."""
        self._beat = self._clock.monotonic()

    def rest(self) -> None:
        """Nobody beats any more; the process ends by itself."""
        self._beat = None

    def expect(self, *names: str) -> None:
        """What has to be in order; until it was looked at it is not."""
        self._problems = dict.fromkeys(names, _STARTING)

    def found(self, name: str, problem: str | None) -> None:
        """What is wrong with ``name``; None: nothing."""
        self._problems = {**self._problems, name: None if problem is None else redact(problem)}

    def stuck_s(self) -> float:
        """Seconds since the last beat; 0 before the first."""
        beat = self._beat
        return 0.0 if beat is None else (self._clock.monotonic() - beat) / 1e9

    @property
    def alive(self) -> bool:
        return self.stuck_s() < STUCK_AFTER_S

    @property
    def ready(self) -> bool:
        return self.alive and not any(self._problems.values())

    def report(self) -> dict[str, str]:
        """Everything that is looked at, with ``ok`` or what is wrong."""
        return {name: problem or "ok" for name, problem in self._problems.items()}
