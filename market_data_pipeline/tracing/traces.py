"""The seam: what traces is put around the parts of a process, or nothing is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from market_data_core.protocols import BarSink, Claim
from market_data_pipeline.consumers.partition_logic import PartitionLogic
from market_data_pipeline.streaming.bus import Bus


@dataclass(frozen=True, slots=True)
class Stage:
    """What a consumer does, as its spans say it. ``preparing``: the span of what it does before a delivery counts,
    empty for nothing worth one. ``waiting``: that of what a delivery waits for until it is stored. ``table``: where it
    is stored."""

    preparing: str
    waiting: str
    table: str


WINDOWING: Final = Stage("", "window", "bars_ohlcv")
INFERRING: Final = Stage("infer", "", "signals")


class Traces(Protocol):
    """Puts spans around parts. Every method gives back what it was given, or something that behaves like it."""

    def producing(self, bus: Bus) -> Bus:
        """A bus on which a sampled publish begins a trace."""
        ...

    def consuming(self, bus: Bus) -> Bus:
        """A bus on which what a traced flush publishes goes on with its trace."""
        ...

    def logic(self, logic: PartitionLogic, claim: Claim, stage: Stage) -> PartitionLogic:
        """A logic that notes the traced records of what it is given."""
        ...

    def sink(self, store: BarSink, stage: Stage) -> BarSink:
        """A store whose commits of traced records are spans."""
        ...


class Untraced:
    """Puts nothing around anything, so it costs nothing."""

    def producing(self, bus: Bus) -> Bus:
        return bus

    def consuming(self, bus: Bus) -> Bus:
        return bus

    def logic(self, logic: PartitionLogic, claim: Claim, stage: Stage) -> PartitionLogic:
        return logic

    def sink(self, store: BarSink, stage: Stage) -> BarSink:
        return store


UNTRACED: Final[Traces] = Untraced()
