"""Listens on the bus, outside of any group: when each window became closable, and when its bars and signals appeared.

Times on the bus are those of the records' ids, which Redis gives out in whole milliseconds as it takes a record; how
fast this listens is of no matter.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np
import polars as pl

from market_data_core.codecs import EventDecoder
from market_data_core.errors import BusUnavailable
from market_data_core.events import format_interval
from market_data_core.frames import decode_bars
from market_data_core.signal_codec import decode_signal
from market_data_pipeline.streaming.bus import Bus, StoredRecord
from tests.soak.load import Tally
from tests.soak.plan import ALLOW_LATE_NS, TOPICS, WINDOW_NS

_PAGE: Final = 500
_REST_S: Final = 0.1
_INTERVAL: Final = format_interval(WINDOW_NS)
_MS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Closing:
    """When a window of one partition could first be closed: ``due``, when the event that does it arrived at the
    producer, ns UTC; ``on_bus``, when its record was taken by the bus, ms."""

    provider: str
    partition: int
    end: int
    due: int
    on_bus: int


@dataclass(slots=True)
class Lane:
    """What came of one provider: ``first``, its earliest event time."""

    first: int = 2**63 - 1
    tally: Tally = field(default_factory=Tally)
    tops: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))


class Tap:
    """Entered, it listens until it is left; :meth:`caught_up` waits until it has heard all."""

    def __init__(self, open_bus: Callable[[], Bus]) -> None:
        self._open_bus = open_bus
        self._decoder = EventDecoder()
        self._next: dict[tuple[str, int], int | None] = {}
        self._round = asyncio.Event()
        self._stack = contextlib.AsyncExitStack()
        self._task: asyncio.Task[None] | None = None
        self._signals: dict[tuple[str, str, int], int] = {}
        self._bars: list[pl.DataFrame] = []
        self.closings: list[Closing] = []
        self.lanes: defaultdict[str, Lane] = defaultdict(Lane)

    async def __aenter__(self) -> Self:
        bus = await self._stack.enter_async_context(self._open_bus())
        for topic in TOPICS:
            for partition in range(await bus.partitions(topic)):
                self._next[topic, partition] = None
        self._task = asyncio.create_task(self._listen(bus))
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self._stack.aclose()

    async def caught_up(self) -> None:
        """Wait until everything was heard that is on the bus now."""
        assert self._task is not None
        for _ in range(2):  # the round under way may have begun before
            self._round.clear()
            waiting = asyncio.create_task(self._round.wait())
            await asyncio.wait([waiting, self._task], return_when=asyncio.FIRST_COMPLETED)
            if self._task.done():
                waiting.cancel()
                self._task.result()

    def bars(self) -> pl.DataFrame:
        """provider, symbol, ts (ns), published (ms): the first record of each bar."""
        empty = pl.DataFrame(
            schema={"provider": pl.String, "symbol": pl.String, "ts": pl.Int64, "published": pl.Int64}
        )
        keys = ["provider", "symbol", "ts"]
        return pl.concat([empty, *self._bars]).group_by(keys).agg(pl.col("published").min())

    def signals(self) -> pl.DataFrame:
        """provider, symbol, at (ns), published (ms): the first record of any signal of that bar."""
        rows = [(*key, ms) for key, ms in self._signals.items()]
        schema = {"provider": pl.String, "symbol": pl.String, "at": pl.Int64, "published": pl.Int64}
        return pl.DataFrame(rows, schema=schema, orient="row")

    async def _listen(self, bus: Bus) -> None:
        take = dict(zip(TOPICS, (self._events, self._take_bars, self._take_signals), strict=True))
        while True:
            heard = 0
            for (topic, partition), start in self._next.items():
                try:
                    found = await bus.read(topic, partition, start, _PAGE)
                except BusUnavailable:
                    heard += 1  # too busy to answer: the next round asks again
                    continue
                if found:
                    heard += len(found)
                    take[topic](partition, found)
                    self._next[topic, partition] = found[-1].offset + 1
            if not heard:
                self._round.set()
                await asyncio.sleep(_REST_S)

    def _events(self, partition: int, records: list[StoredRecord]) -> None:
        for record in records:
            if record.lane is not None:
                continue  # replayed: of no window that is open
            batch = self._decoder.decode([record.value], None).batch
            lane = self.lanes[batch.series[int(batch.code[0])].provider]
            lane.tally = lane.tally.plus(batch)
            lane.first = min(lane.first, int(batch.src_ts.min()))
            before = lane.tops[partition]
            highest = np.maximum(np.maximum.accumulate(batch.src_ts), before)
            lane.tops[partition] = int(highest[-1])
            marks = highest - ALLOW_LATE_NS
            if not before:
                continue  # a window that the first record closes had no event before it
            first = ((before - ALLOW_LATE_NS) // WINDOW_NS + 1) * WINDOW_NS
            for end in range(first, int(marks[-1]) + 1, WINDOW_NS):
                row = int(np.searchsorted(marks, end))
                provider = batch.series[int(batch.code[0])].provider
                due = int(batch.ingest_ts[row])
                self.closings.append(Closing(provider, partition, end, due, record.timestamp_ms))

    def _take_bars(self, partition: int, records: list[StoredRecord]) -> None:
        for record in records:
            bars = decode_bars(record.value)
            names = [(s.provider, s.symbol, s.interval) for s in bars.series]
            rows = [
                (names[code][0], names[code][1], ts, record.timestamp_ms)
                for code, ts in zip(bars.code.tolist(), bars.ts.tolist(), strict=True)
                if names[code][2] == _INTERVAL
            ]
            self._bars.append(
                pl.DataFrame(rows, schema=["provider", "symbol", "ts", "published"], orient="row")
            )

    def _take_signals(self, partition: int, records: list[StoredRecord]) -> None:
        for record in records:
            signal = decode_signal(record.value)
            self._signals.setdefault((signal.provider, signal.symbol, signal.ts), record.timestamp_ms)
