"""What a consumer does with one partition, and what it hands over to be committed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from market_data_core.codecs import DeadLetter
from market_data_core.events import Signal
from market_data_core.protocols import LaneFlush, Position
from market_data_pipeline.streaming.bus import Delivery, Offset
from market_data_pipeline.windows.tumbling import Counts


@dataclass(slots=True)
class Plan:
    """What one flush carries, taken from the logic at one moment.

    ``through``: everything up to there may be acknowledged once committed. ``keep_from``: a new owner would read
    from there. ``closable_at``: for each closed bar, ns UTC, when it could first have been closed. ``counts``: what
    became of the events since the plan before. ``watermarks``: each lane's, ns. ``signals``, ``revised``: see
    SignalFlush.
    """

    lanes: list[LaneFlush]
    positions: list[Position]
    forget: list[str]
    through: Offset
    keep_from: Offset
    closable_at: list[int] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    watermarks: dict[str, int] = field(default_factory=dict)
    open_rows: int = 0
    signals: list[Signal] = field(default_factory=list)
    revised: list[tuple[str, str, int]] = field(default_factory=list)


class PartitionLogic(Protocol):
    """What a consumer does with one partition: in memory, and without I/O but for :meth:`prepare`."""

    @property
    def start(self) -> Offset | None:
        """Where to read from (None: the first record)."""
        ...

    @property
    def committed(self) -> Offset | None:
        """Up to where the owner before had committed everything (None: nothing)."""
        ...

    @property
    def backlog(self) -> int:
        """Rows that wait for a flush: the bound on them is the consumer's."""
        ...

    async def prepare(self, delivery: Delivery) -> None:
        """Get what processing ``delivery`` needs from elsewhere. May wait, may be called again after an error, and
        changes nothing that a flush meanwhile would see."""
        ...

    def process(self, delivery: Delivery) -> None:
        """Take consecutive records."""
        ...

    def caught_up(self, at: int) -> None:
        """At monotonic ns ``at`` the partition held nothing more than was processed."""
        ...

    def finish(self) -> None:
        """Nothing more is expected: close what can be closed."""
        ...

    def due(self) -> bool:
        """Whether a flush is worth a transaction now."""
        ...

    def take(self) -> Plan:
        """What to commit; from now on the logic counts it as committed."""
        ...
