"""What an inference run did, for its summary and the live view."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any, Final

from market_data_core.events import Signal
from market_data_core.protocols import Committed
from market_data_pipeline.consumers.partition_logic import Plan

_NEWEST: Final = 8


class SignalStats:
    """An observer that adds up."""

    def __init__(self) -> None:
        self.bars = self.skipped = self.decided = self.stored = self.withdrawn = self.rejected = 0
        self.dead_lettered = self.fenced_writes = self.flushes = self.retries = 0
        self.by_name: Counter[str] = Counter()
        self.newest: deque[Signal] = deque(maxlen=_NEWEST)
        self.partitions: set[int] = set()
        self.last_error = ""

    def assigned(self, partition: int, epoch: int) -> None:
        self.partitions.add(partition)

    def released(self, partition: int, reason: str) -> None:
        self.partitions.discard(partition)

    def fenced(self, partition: int) -> None:
        self.fenced_writes += 1

    def retrying(self, what: str, error: BaseException) -> None:
        self.retries += 1
        self.last_error = f"{what}: {error}"

    def flushed(self, partition: int, plan: Plan, committed: Committed, seconds: float, at: int) -> None:
        self.flushes += 1
        self.last_error = ""
        self.bars += plan.counts.accepted
        self.skipped += plan.counts.skipped
        self.decided += len(plan.signals)
        self.withdrawn += committed.withdrawn
        self.stored += len(committed.signals) - committed.withdrawn
        self.rejected += len(committed.rejected)
        self.dead_lettered += len(plan.dead_letters)
        kept = [s for s in committed.signals if "withdrawn" not in s.meta]
        self.by_name.update(s.name for s in kept)
        self.newest.extend(sorted(kept, key=lambda s: (s.ts, s.symbol, s.name))[-_NEWEST:])

    def summary(self) -> dict[str, Any]:
        """The figures of the run as one flat object."""
        return {
            "bars": self.bars,
            "bars_of_other_intervals": self.skipped,
            "signals_decided": self.decided,
            "signals_stored": self.stored,
            "signals_unchanged": self.decided - self.stored - self.rejected,
            "signals_withdrawn": self.withdrawn,
            "signals_by_name": dict(sorted(self.by_name.items())),
            "dead_lettered": self.dead_lettered + self.rejected,
            "fenced": self.fenced_writes,
            "flushes": self.flushes,
            "retries": self.retries,
        }
