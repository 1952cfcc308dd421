"""The inference consumer: bars of one partition become signals, by the same mechanism as events become bars.

:class:`PartitionSignals` is the logic that an ``ExactlyOnceConsumer`` runs. What it holds in memory, the newest bars of
each series, comes from the store whenever it is not there, so a new owner needs no more than a position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from market_data_core.batch import BarBatch
from market_data_core.clock import Clock
from market_data_core.codecs import DeadLetter, decode_bars
from market_data_core.errors import PoisonRecord
from market_data_core.events import Signal
from market_data_core.protocols import Claim, Position
from market_data_pipeline.consumers.offsets import of_this_bus
from market_data_pipeline.consumers.partition_logic import Plan
from market_data_pipeline.inference.signal_maker import BarKey, SignalMaker
from market_data_pipeline.streaming.bus import Delivery, Offset
from market_data_pipeline.windows.tumbling import NEVER, Counts

PARTITION_LANE = ""


@dataclass(slots=True)
class _Prepared:
    """What a delivery has come to, before it counts."""

    offset: Offset
    decided: dict[BarKey, list[Signal]] = field(default_factory=dict)
    revised: set[BarKey] = field(default_factory=set)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    watermark: int = NEVER


class PartitionSignals:
    """The signals of one claimed partition of the bars topic.

    ``maker`` makes what decides, from the watermark of the owner before: when the newest bar began that was decided
    on. ``format_offset`` and ``parse_offset`` are the bus's.
    """

    def __init__(
        self,
        claim: Claim,
        maker: Callable[[int], SignalMaker],
        clock: Clock,
        format_offset: Callable[[Offset], str],
        parse_offset: Callable[[str], Offset],
        position_interval_ns: int = 1_000_000_000,
    ) -> None:
        self._claim = claim
        self._clock = clock
        self._format = format_offset
        self._interval_ns = position_interval_ns
        position = claim.positions.get(PARTITION_LANE)
        read = None if position is None else of_this_bus(claim, parse_offset)(position.read_offset)
        self._watermark = NEVER if position is None else position.watermark
        self._maker = maker(self._watermark)
        self.start: Offset | None = None if read is None else read + 1
        self.committed: Offset | None = read
        self._read = self._taken = read
        self._committed_at = clock.monotonic()
        self._prepared: _Prepared | None = None
        self._decided: dict[BarKey, list[Signal]] = {}
        self._revised: set[BarKey] = set()
        self._dead_letters: list[DeadLetter] = []
        self._counts = Counts()

    @property
    def backlog(self) -> int:
        return sum(map(len, self._decided.values())) + len(self._revised) + len(self._dead_letters)

    async def prepare(self, delivery: Delivery) -> None:
        """Make the signals of ``delivery``: read from the store what features need and is not here, and decide."""
        prepared = _Prepared(delivery.offsets[-1])
        batches: list[BarBatch] = []
        for index, value in enumerate(delivery.values):
            try:
                batches.append(decode_bars(value))
            except PoisonRecord as poison:
                prepared.dead_letters.append(self._dead_letter(delivery, index, str(poison)))
        bars = [b.take(self._mine(b)) for b in batches]
        total, mine = sum(map(len, batches)), sum(map(len, bars))
        prepared.counts = Counts(accepted=mine, skipped=total - mine)
        if mine:
            made = await self._maker.make(BarBatch.concat([b for b in bars if len(b)]))
            prepared.decided, prepared.revised, prepared.watermark = (
                made.decided,
                made.revised,
                made.watermark,
            )
        self._prepared = prepared

    def process(self, delivery: Delivery) -> None:
        """From now on what was prepared counts."""
        prepared, self._prepared = self._prepared, None
        if prepared is None or prepared.offset != delivery.offsets[-1]:
            raise RuntimeError("a delivery is prepared before it is processed")
        # Of two decisions on one bar before a flush the later counts, whole.
        self._decided |= prepared.decided
        self._revised |= prepared.revised
        self._dead_letters += prepared.dead_letters
        self._counts.add(prepared.counts)
        self._read = prepared.offset
        self._watermark = max(self._watermark, prepared.watermark)

    def caught_up(self, at: int) -> None:
        """Nothing: signals follow bars, not the clock."""

    def finish(self) -> None:
        """Nothing: every bar that was read is decided on."""

    def due(self) -> bool:
        if self._decided or self._revised or self._dead_letters:
            return True
        waited = self._clock.monotonic() - self._committed_at
        return self._read != self._taken and waited >= self._interval_ns

    def take(self) -> Plan:
        if self._read is None:
            raise RuntimeError("nothing was read: there is nothing to commit")
        plan = Plan(
            lanes=[],
            positions=[Position(PARTITION_LANE, self._watermark, self._format(self._read), "", "")],
            forget=[],
            through=self._read,
            keep_from=self._read + 1,
            dead_letters=self._dead_letters,
            counts=self._counts,
            signals=[signal for of_bar in self._decided.values() for signal in of_bar],
            revised=sorted(self._revised),
            watermarks={} if self._watermark == NEVER else {PARTITION_LANE: self._watermark},
        )
        self._decided, self._revised, self._dead_letters, self._counts = {}, set(), [], Counts()
        self._taken, self._committed_at = self._read, self._clock.monotonic()
        return plan

    def _mine(self, bars: BarBatch) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which bars are of the interval that signals are made of."""
        of_series = np.array([s.interval == self._maker.interval for s in bars.series], np.bool_)
        return of_series[bars.code] if len(bars) else np.empty(0, np.bool_)

    def _dead_letter(self, delivery: Delivery, index: int, reason: str) -> DeadLetter:
        claim = self._claim
        lane = None if delivery.lanes is None else delivery.lanes[index]
        offset = self._format(delivery.offsets[index])
        value = delivery.values[index]
        return DeadLetter(reason, claim.topic, claim.partition, offset, "", lane, value, self._clock.now())
