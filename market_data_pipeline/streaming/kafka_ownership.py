"""Which partitions a member of a Kafka group owns, by what the group gave it and by its own clock."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import structlog

from market_data_core.clock import Clock

_MS: Final = 1_000_000

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Owned:
    """``announced``: the caller knows of it. ``leaving``: until its hand-over ends."""

    announced: bool = False
    leaving: bool = False


class Ownership:
    """Everything is owned as long as the broker was heard of within a session, counted from before it was asked."""

    def __init__(self, what: str, session_ms: int, clock: Clock) -> None:
        self._what = what
        self._session = session_ms * _MS
        self._clock = clock
        self._deadline = 0
        self._owned: dict[int, _Owned] = {}
        self._revoking: list[int] = []
        self._lost: list[int] = []
        self.changed = asyncio.Event()
        self.vacated = False
        """Whether something was lost that the group was not told of."""

    @property
    def held(self) -> set[int]:
        """Partitions owned now, as far as this member can know."""
        self.expire()
        return set(self._owned)

    @property
    def keeping(self) -> list[int]:
        return sorted(p for p, owned in self._owned.items() if not owned.leaving)

    @property
    def leaving(self) -> list[int]:
        return sorted(p for p, owned in self._owned.items() if owned.leaving)

    def heard(self, asked: int) -> None:
        """The broker took a request that was sent after monotonic ns ``asked``."""
        self._deadline = max(self._deadline, asked + self._session)

    def expire(self) -> None:
        """Give everything up when the broker has not been heard of for a session."""
        if self._owned and self._clock.monotonic() >= self._deadline:
            self.lose("the broker was not heard of for a session")

    def seconds_left(self) -> float:
        """Until the session ends unless the broker is heard of."""
        return max(0, self._deadline - self._clock.monotonic()) / 1e9 if self._owned else math.inf

    def take(self, given: Collection[int], claimed: Collection[int]) -> bool:
        """Own what was given and is new; hand over what was ``claimed`` and not given again.

        Returns:
            Whether the group should share out again.
        """
        self.vacated = False
        # One that was claimed and is not owned any more was released or lost meanwhile.
        again = any(p in claimed and p not in self._owned for p in given)
        for partition in given:
            if partition not in self._owned and partition not in claimed:
                self._owned[partition] = _Owned()
        for partition in set(claimed) & self._owned.keys() - set(given):
            if self._owned[partition].announced:
                self._owned[partition].leaving = True
                self._revoking.append(partition)
            else:
                del self._owned[partition]
                again = True
        self.changed.set()
        return again

    def take_changes(self) -> tuple[list[int], list[int], list[int]]:
        """Partitions newly assigned, to be handed over, and lost, since the last call."""
        self.expire()
        self.changed.clear()
        assigned = sorted(p for p, owned in self._owned.items() if not owned.announced)
        for partition in assigned:
            self._owned[partition].announced = True
        revoking, self._revoking = self._revoking, []
        lost, self._lost = self._lost, []
        return assigned, [p for p in revoking if p in self._owned], lost

    def release(self, partition: int) -> None:
        self._owned.pop(partition, None)

    def lose(self, why: str) -> None:
        """Give everything up at once."""
        if self._owned:
            log.warning("partitions_lost", of=self._what, why=why, partitions=sorted(self._owned))
            self.vacated = True
        self._lost += sorted(p for p, owned in self._owned.items() if owned.announced)
        self._owned.clear()
        self.changed.set()
