"""The micro-batcher: events of one partition become bars, lane by lane.

:class:`PartitionBars` is the logic that an ``ExactlyOnceConsumer`` runs: pure, in memory, with injected time. A lane is
an independent line of event time: ``live/<provider>``, or ``replay/<run>/<provider>`` (``replay!/...`` when its bars
are forced over stored ones of more events).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from market_data_core.batch import I32, BarBatch, EventBatch, extends
from market_data_core.clock import Clock
from market_data_core.codecs import DeadLetter, Decoded, EventDecoder, encode_events
from market_data_core.events import Series
from market_data_core.frames import FRAME_BYTE
from market_data_core.protocols import Claim, LaneFlush, Position
from market_data_pipeline.consumers.offsets import of_this_bus
from market_data_pipeline.consumers.partition_logic import Plan
from market_data_pipeline.streaming.bus import Delivery, Offset
from market_data_pipeline.windows.tumbling import FOREVER, NEVER, Counts, TumblingWindows, WindowSettings

PARTITION_LANE: Final = ""
"""The row of the partition itself: how far it was read, whatever its lanes hold."""
EXPIRED: Final = (
    "late by more than micro_batch.dedupe_horizon_ms, so it cannot be told from a copy; "
    "send history with mdp stream replay, or set micro_batch.late_beyond_horizon to amend"
)
LATE: Final = "late"
FUTURE: Final = "src_ts is further ahead of the clock than micro_batch.max_future_ms allows"
MAX_LANE_NAMES: Final = 4096
REPLAY_SILENCE_NS: Final = 3600 * 10**9
"""A replay that has been silent for so long was killed before its end: its lane ends without an end record."""


@dataclass(frozen=True, slots=True)
class BatcherSettings:
    """``flush_timeout_ns``: silence after which the clock moves a lane's watermark. ``max_future_ns``: events further
    ahead of the clock are put aside, as one of them would close every window (0: take them)."""

    windows: WindowSettings
    flush_timeout_ns: int
    late_policy: Literal["amend", "drop"] = "amend"
    max_future_ns: int = 0
    position_interval_ns: int = 1_000_000_000


class _Lane:
    """One lane: its windows, and what it has for the next flush."""

    def __init__(self, name: str, settings: WindowSettings, watermark: int, now: int) -> None:
        self.name = name
        self.windows = TumblingWindows(settings, watermark)
        self.force = name.startswith("replay!/")
        self.replay = self.force or name.startswith("replay/")
        self.last_seen = now
        self.ended_at: Offset | None = None
        self.closed: list[BarBatch] = []
        self.late: list[EventBatch] = []
        self.rows = 0
        self.touched = False
        self.written: tuple[int, str, str] | None = None

    def take(self, window_ns: int) -> LaneFlush | None:
        """What the next flush carries of this lane."""
        if not self.rows:
            return None
        closed = BarBatch.concat(self.closed) if self.closed else BarBatch.empty()
        late = EventBatch.concat(self.late) if self.late else EventBatch.empty()
        self.closed, self.late, self.rows = [], [], 0
        return LaneFlush(self.name, closed, late, window_ns, self.force)


class PartitionBars:
    """The lanes of one claimed partition. ``format_offset`` and ``parse_offset`` are the bus's."""

    def __init__(
        self,
        claim: Claim,
        settings: BatcherSettings,
        clock: Clock,
        format_offset: Callable[[Offset], str],
        parse_offset: Callable[[str], Offset],
    ) -> None:
        self.settings = settings
        self.dead_lettered = 0
        self._claim = claim
        self._clock = clock
        self._format = format_offset
        self._decoder = EventDecoder()
        self._lanes: dict[str, _Lane] = {}
        self._handled: dict[str, Offset] = {}
        self._names: dict[str, int] = {}
        self._live: tuple[tuple[Series, ...], I32] = ((), np.empty(0, np.int32))
        self._closable_at: list[int] = []
        self._dead_letters: list[DeadLetter] = []
        self._gone = Counts()
        self._told = Counts()
        self._committed_at = clock.monotonic()
        holds: list[Offset] = []
        opens: list[Offset] = []
        parse_offset = of_this_bus(claim, parse_offset)
        for name, position in claim.positions.items():
            self._handled[name] = parse_offset(position.read_offset)
            opens.extend(parse_offset(t) for t in (position.restart_offset,) if t)
            holds.extend(parse_offset(t) for t in (position.restart_offset, position.dedupe_offset) if t)
            if name != PARTITION_LANE:
                lane = self._lanes[name] = self._new_lane(name, position.watermark)
                if position.watermark == FOREVER:
                    lane.ended_at = self._handled[name]
        read = max(self._handled.values(), default=None)
        self._read_before = read
        self._read = self._taken = read
        # An owner before that held nothing has read everything: go on behind it.
        self.start: Offset | None = min(holds) if holds else None if read is None else read + 1
        self.committed: Offset | None = min(opens) - 1 if opens else read
        if holds:
            self._read = self.start - 1 if self.start is not None else None

    def _new_lane(self, name: str, watermark: int = NEVER) -> _Lane:
        return _Lane(name, self.settings.windows, watermark, self._clock.monotonic())

    @property
    def backlog(self) -> int:
        return sum(lane.rows for lane in self._lanes.values()) + len(self._dead_letters)

    @property
    def counts(self) -> Counts:
        """What became of the events of all lanes since the claim."""
        total = Counts()
        total.add(self._gone)
        for lane in self._lanes.values():
            total.add(lane.windows.counts)
        return total

    def open_bars(self) -> int:
        """How many (symbol, window) are open in all lanes."""
        return sum(lane.windows.open_bars() for lane in self._lanes.values())

    @property
    def remembered(self) -> int:
        """Event ids remembered in all lanes."""
        return sum(lane.windows.remembered for lane in self._lanes.values())

    async def prepare(self, delivery: Delivery) -> None:
        """Nothing: bars are made of events alone."""

    def process(self, delivery: Delivery) -> None:
        """Decode, split by lane, window; close what the watermarks have passed."""
        decoded = self._decoder.decode(delivery.values, delivery.lanes)
        for index, reason in decoded.poison:
            self._put_aside(delivery, index, reason)
        if len(decoded.batch) and self.settings.max_future_ns:
            self._without_future(decoded, delivery)
        self._read = delivery.offsets[-1]
        if len(decoded.batch):
            for name, rows, part in self._by_lane(decoded):
                lane = self._lanes.get(name)
                if lane is None:
                    lane = self._lanes[name] = self._new_lane(name)
                lane.last_seen = self._clock.monotonic()
                lane.touched = True
                handled = self._handled_rows(name, rows, decoded, delivery)
                skip = lane.windows.forgotten(part, handled) if handled else 0
                if skip == len(part):
                    continue
                # Without what is beyond the horizon, the next restart begins that much later.
                first = delivery.offsets[0]
                if skip:
                    row = skip if rows is None else int(rows[skip])
                    first = delivery.offsets[row if decoded.record is None else int(decoded.record[row])]
                rest = part.take(slice(skip, None)) if skip else part
                lane.windows.add(rest, first, handled - skip)
                self._collect(lane)
        for index, name in decoded.ends:
            ended = self._lanes.get(name)
            if ended is not None:
                ended.windows.end()
                ended.ended_at = delivery.offsets[index]
                ended.touched = True
                self._collect(ended)

    def _collect(self, lane: _Lane) -> None:
        """Take what the windows closed, and what came late, for the next flush."""
        closed, closable_at = lane.windows.close(self._clock.now())
        if len(closed):
            lane.closed.append(closed)
            lane.rows += len(closed)
            self._closable_at.extend(closable_at.tolist())
        late = lane.windows.take_late()
        if self.settings.late_policy == "drop":
            self._bury_events(late, LATE, lane.name)
        elif len(late):
            lane.late.append(late)
            lane.rows += len(late)
        self._bury_events(lane.windows.take_expired(), EXPIRED, lane.name)

    def _bury_events(self, events: EventBatch, reason: str, lane: str) -> None:
        offset = "" if self._read is None else self._format(self._read)
        for i, (value, code) in enumerate(zip(encode_events(events), events.code.tolist(), strict=True)):
            self._bury(reason, f"{offset}#{i}", events.series[code].symbol, lane, value)

    def caught_up(self, at: int) -> None:
        """Lanes that were silent until ``at``: the clock moves their event time on."""
        for lane in self._lanes.values():
            silence = at - lane.last_seen
            top = lane.windows.max_ts
            if lane.ended_at is None and top is not None and silence >= self.settings.flush_timeout_ns:
                lane.windows.advance(top + silence - self.settings.windows.allow_late_ns)
                self._collect(lane)
                if lane.replay and silence >= REPLAY_SILENCE_NS and self._read is not None:
                    lane.windows.end()
                    lane.ended_at, lane.touched = self._read, True

    def finish(self) -> None:
        for lane in self._lanes.values():
            lane.windows.finish()
            self._collect(lane)

    @property
    def _rereading(self) -> bool:
        """Still behind what the owner before had read. Nothing can close there, and nothing may be written: the
        position would go back."""
        return self._read_before is not None and (self._read is None or self._read < self._read_before)

    def due(self) -> bool:
        if self._rereading:
            return False
        if self._dead_letters or any(lane.rows for lane in self._lanes.values()):
            return True
        waited = self._clock.monotonic() - self._committed_at
        return self._read != self._taken and waited >= self.settings.position_interval_ns

    def take(self) -> Plan:
        if self._read is None:
            raise RuntimeError("nothing was read: there is nothing to commit")
        following = self._read + 1
        restart = keep_from = following
        positions: list[Position] = []
        lanes: list[LaneFlush] = []
        read = self._format(self._read)
        for lane in self._lanes.values():
            flush = lane.take(self.settings.windows.window_ns)
            if flush is not None:
                lanes.append(flush)
            lane_restart = lane_dedupe = following
            if lane.ended_at is None:
                lane_restart = lane.windows.restart_offset(following)
                lane_dedupe = lane.windows.dedupe_offset(following)
            restart, keep_from = min(restart, lane_restart), min(keep_from, lane_dedupe)
            row = (lane.windows.watermark, self._hold(lane_restart), self._hold(lane_dedupe))
            # A lane without news keeps its row: none of its events lies between that row's read offset and now.
            if lane.touched or row != lane.written:
                positions.append(Position(lane.name, row[0], read, row[1], row[2]))
                lane.touched, lane.written = False, row
        positions.append(Position(PARTITION_LANE, NEVER, read, "", ""))
        forget = self._forget(keep_from)
        plan = Plan(
            lanes=lanes,
            positions=[p for p in positions if p.lane not in forget],
            forget=forget,
            through=restart - 1,
            keep_from=keep_from,
            closable_at=self._closable_at,
            dead_letters=self._dead_letters,
            counts=self._news(),
            watermarks={name: lane.windows.watermark for name, lane in self._lanes.items()},
            open_rows=self.open_bars(),
        )
        self._closable_at, self._dead_letters = [], []
        self._taken, self._committed_at = self._read, self._clock.monotonic()
        return plan

    def _news(self) -> Counts:
        """Counts since the last plan."""
        told, self._told = self._told, self.counts
        return self._told.minus(told)

    def _hold(self, offset: Offset) -> str:
        """Empty for a lane that holds nothing back."""
        return "" if self._read is not None and offset > self._read else self._format(offset)

    def _forget(self, keep_from: Offset) -> list[str]:
        """Drop lanes that no restart can meet again: they ended before any offset that would be read."""
        gone = [
            n for n, lane in self._lanes.items() if lane.ended_at is not None and lane.ended_at < keep_from
        ]
        for name in gone:
            self._gone.add(self._lanes.pop(name).windows.counts)
            self._handled.pop(name, None)
        return gone

    def _handled_rows(
        self, name: str, rows: NDArray[np.intp] | None, decoded: Decoded, delivery: Delivery
    ) -> int:
        """How many leading rows of a lane's part the owner before had read."""
        read = self._handled.get(name)
        if read is None or delivery.offsets[0] > read:
            return 0
        records = bisect_right(delivery.offsets, read)
        if decoded.record is None:
            return records if rows is None else int(np.searchsorted(rows, records))
        of_rows = decoded.record if rows is None else decoded.record[rows]
        return int(np.searchsorted(of_rows, records))

    def _by_lane(self, decoded: Decoded) -> list[tuple[str, NDArray[np.intp] | None, EventBatch]]:
        """(lane, its row numbers or None for all, its rows)."""
        batch = decoded.batch
        names = self._names
        if len(names) > MAX_LANE_NAMES:
            names.clear()
            self._live = ((), np.empty(0, np.int32))
        if self._live[0] is not batch.series:
            old, known = self._live if extends(batch.series, self._live[0]) else ((), self._live[1][:0])
            new = [names.setdefault(f"live/{s.provider}", len(names)) for s in batch.series[len(old) :]]
            self._live = (batch.series, np.concatenate((known, np.array(new, np.int32))))
        lane = self._live[1][batch.code]
        if decoded.lanes is not None:
            named = [-1 if n is None else names.setdefault(n, len(names)) for n in decoded.lanes]
            explicit = np.array(named, np.int32)
            of_row = explicit if decoded.record is None else explicit[decoded.record]
            lane = np.where(of_row >= 0, of_row, lane)
        table = list(names)
        if (lane == lane[0]).all():
            return [(table[lane[0]], None, batch)]
        out: list[tuple[str, NDArray[np.intp] | None, EventBatch]] = []
        for code in np.unique(lane).tolist():
            rows = np.flatnonzero(lane == code)
            out.append((table[code], rows, batch.take(rows)))
        return out

    def _without_future(self, decoded: Decoded, delivery: Delivery) -> None:
        """Put aside events from the future, each by itself."""
        batch = decoded.batch
        limit = self._clock.now() + self.settings.max_future_ns
        if int(batch.src_ts.max()) <= limit:
            return
        early = np.flatnonzero(batch.src_ts > limit)
        values = encode_events(batch.take(early))
        for row, value in zip(early.tolist(), values, strict=True):
            index = row if decoded.record is None else int(decoded.record[row])
            original = delivery.values[index]
            framed = original[0] == FRAME_BYTE
            self._put_aside(
                delivery, index, FUTURE, value if framed else original, f"#{row}" if framed else ""
            )
        keep = np.flatnonzero(batch.src_ts <= limit)
        decoded.record = keep.astype(np.int32) if decoded.record is None else decoded.record[keep]
        decoded.batch = batch.take(keep)

    def _put_aside(
        self, delivery: Delivery, index: int, reason: str, value: bytes | None = None, part: str = ""
    ) -> None:
        """Make a dead letter of a record, unless the owner before did."""
        offset = delivery.offsets[index]
        if self._read_before is not None and offset <= self._read_before:
            return
        lane = None if delivery.lanes is None else delivery.lanes[index]
        key = ""
        original = delivery.values[index] if value is None else value
        self._bury(reason, self._format(offset) + part, key, lane, original)

    def _bury(self, reason: str, offset: str, key: str, lane: str | None, value: bytes) -> None:
        self.dead_lettered += 1
        claim = self._claim
        letter = DeadLetter(reason, claim.topic, claim.partition, offset, key, lane, value, self._clock.now())
        self._dead_letters.append(letter)
