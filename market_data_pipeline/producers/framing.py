"""Batches to bus records: grouped by partition, in frames or one event each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from market_data_core.batch import EventBatch
from market_data_core.codecs import Codec, encode_events, encode_frame
from market_data_core.events import Series
from market_data_core.partitioner import partition_of
from market_data_pipeline.streaming.bus import Record

FRAME_ROWS: Final = 4096
"""Rows of a full frame: 150 KB of ticks, well below the largest message that brokers take by default."""
SINGLES: Final = 256
"""Records of one event each in a parcel."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """Consecutive records of one partition, ready to be published. ``events`` and ``size`` (bytes) of all."""

    partition: int
    records: list[Record]
    events: int
    size: int


class Framer:
    """Makes parcels for a topic of ``partitions``. ``lane`` gives a provider's lane, or None for live events.

    Rows of one partition and lane keep their order; which partition a series belongs to is computed once.
    """

    def __init__(
        self,
        partitions: int,
        codec: Codec = "frame",
        lane: Callable[[str], str | None] = lambda provider: None,
        max_rows: int | None = None,
    ) -> None:
        self._partitions = partitions
        self._codec: Codec = codec
        self._lane = lane
        self._max_rows = max_rows or (FRAME_ROWS if codec == "frame" else SINGLES)
        self._series: tuple[Series, ...] = ()
        self._group_of: NDArray[np.int32] = np.empty(0, np.int32)
        self._groups: dict[tuple[int, str | None], int] = {}
        self._used: set[tuple[int, str | None]] = set()

    @property
    def lanes(self) -> list[tuple[int, str | None]]:
        """Every (partition, lane) that had an event so far."""
        return sorted(self._used, key=lambda used: (used[1] or "", used[0]))

    def parcels(self, batch: EventBatch) -> list[Parcel]:
        """``batch`` as parcels, of at most ``max_rows`` events each."""
        if len(batch) == 0:
            return []
        return [self._parcel(partition, lane, rows) for partition, lane, rows in self._grouped(batch)]

    def _grouped(self, batch: EventBatch) -> Iterator[tuple[int, str | None, EventBatch]]:
        if batch.series is not self._series:
            self._learn(batch)
        group = self._group_of[batch.code]
        names = list(self._groups)
        first = int(group[0])
        if (group == first).all():
            yield from self._cut(*names[first], batch)
            return
        small = group.astype(
            np.uint8 if len(names) <= 256 else np.uint16 if len(names) <= 65_536 else np.int32
        )
        order = np.argsort(small, kind="stable")
        counts = np.bincount(group, minlength=len(names))
        ends = np.cumsum(counts)
        for index in np.flatnonzero(counts).tolist():
            rows = order[ends[index] - counts[index] : ends[index]]
            yield from self._cut(*names[index], _take(batch, rows))

    def _learn(self, batch: EventBatch) -> None:
        """Finds the groups of a new table of series."""
        self._series = batch.series
        self._group_of = np.zeros(len(batch.series), np.int32)
        for index, series in enumerate(batch.series):
            key = partition_of(series.symbol, self._partitions), self._lane(series.provider)
            self._group_of[index] = self._groups.setdefault(key, len(self._groups))

    def _cut(
        self, partition: int, lane: str | None, rows: EventBatch
    ) -> Iterator[tuple[int, str | None, EventBatch]]:
        self._used.add((partition, lane))
        for start in range(0, len(rows), self._max_rows):
            whole = len(rows) <= self._max_rows
            yield partition, lane, rows if whole else rows.take(slice(start, start + self._max_rows))

    def _parcel(self, partition: int, lane: str | None, rows: EventBatch) -> Parcel:
        if self._codec == "frame":
            value = encode_frame(rows, lane)
            key = rows.series[int(rows.code[0])].symbol
            return Parcel(partition, [Record(key, value, lane)], len(rows), len(value))
        values = encode_events(rows, self._codec)
        symbols = [series.symbol for series in rows.series]
        keys = [symbols[code] for code in rows.code.tolist()]
        records = [Record(key, value, lane) for key, value in zip(keys, values, strict=True)]
        return Parcel(partition, records, len(rows), sum(map(len, values)))


def _take(batch: EventBatch, rows: NDArray[np.intp]) -> EventBatch:
    """Like ``batch.take``, and the prices of ticks stay one array, so that a frame need not compare four."""
    if not (batch.o is batch.c and batch.h is batch.c and batch.l is batch.c):
        return batch.take(rows)
    price = batch.c[rows]
    return EventBatch(
        batch.series,
        batch.code[rows],
        batch.src_ts[rows],
        batch.ingest_ts[rows],
        price,
        price,
        price,
        price,
        batch.v[rows],
        batch.seq[rows],
    )
