"""Records to columns.

:class:`EventDecoder` turns many bus records, JSON, msgpack and frames mixed, straight into one
:class:`EventBatch`. The fast paths take what they can, all together; only what is left is looked at closer, to find the
poison and its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from market_data_core import frames
from market_data_core.batch import F64, EventBatch
from market_data_core.errors import PoisonRecord
from market_data_core.events import StreamEvent
from market_data_core.json_columns import JsonColumns, Part
from market_data_core.series_codes import SeriesCodes
from market_data_core.single_event import (
    DECODE_ERRORS,
    MAPS,
    WireEvent,
    check_id,
    of_json,
    of_msgpack,
    read_single,
    reason,
)
from market_data_core.times import parse_time, parse_times
from market_data_core.validation import MAX_SERIES, check_lane, faults


@dataclass(slots=True)
class Decoded:
    """What a list of records held.

    ``record[i]`` is the index of the record that row ``i`` of ``batch`` came from (None: row ``i`` is record
    ``i``). ``lanes`` has one entry a record, or is None when no record names a lane. ``ends``: records that
    end a lane. ``poison``: records that are no events, with the reason.
    """

    batch: EventBatch
    record: NDArray[np.int32] | None
    lanes: list[str | None] | None
    ends: list[tuple[int, str]] = field(default_factory=list)
    poison: list[tuple[int, str]] = field(default_factory=list)


class EventDecoder:
    """Decodes batches of records; names keep their codes from one batch to the next.

    One decoder serves one consumer. ``batch.series`` is the same tuple until a new series appears.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._codes = SeriesCodes()
        self._json = JsonColumns(self._codes)

    def decode(self, values: Sequence[bytes], lanes: list[str | None] | None = None) -> Decoded:
        """Columns of all events in ``values``, in record order; what is no event is in ``poison``."""
        if len(self._codes) > MAX_SERIES:
            self._forget()
        try:
            for lane in {lane for lane in lanes or () if lane is not None}:
                check_lane(lane)
        except PoisonRecord:
            return self._mixed(values, range(len(values)), lanes, [])
        first = values[0][:1] if values else b""
        parts: list[Part] = []
        rest: Iterable[int] = range(len(values))
        if first == b"{":
            parts, left = self._json.read(values)
            if not len(left) and len(parts) == 1:
                return Decoded(parts[0][0], None, lanes)
            rest = left.tolist()
        if not parts and (first == b"{" or first in MAPS):
            read: Callable[[bytes], WireEvent] = of_json if first == b"{" else of_msgpack
            try:
                return Decoded(self._rows(list(map(read, values))), None, lanes)
            except (*DECODE_ERRORS, PoisonRecord):
                pass
        return self._mixed(values, rest, lanes, parts)

    def _mixed(
        self,
        values: Sequence[bytes],
        rest: Iterable[int],
        lanes: list[str | None] | None,
        parts: list[Part],
    ) -> Decoded:
        """``parts``, and the records number ``rest`` by themselves."""
        out = Decoded(EventBatch.empty(), None, lanes and lanes.copy())
        singles: list[WireEvent] = []
        single_at: list[int] = []
        for index in rest:
            value = values[index]
            try:
                if lanes is not None and (lane := lanes[index]) is not None:
                    check_lane(lane)
                if value[:1] == b"\xc1":
                    self._frame(index, value, len(values), parts, out)
                else:
                    singles.append(read_single(value))
                    single_at.append(index)
            except DECODE_ERRORS as error:
                out.poison.append((index, reason(error)))
            except PoisonRecord as error:
                out.poison.append((index, str(error)))
        if singles:
            parts.extend(self._good_rows(singles, single_at, out.poison))
        out.poison.sort()
        if len(parts) == 1:
            out.batch, out.record = parts[0]
        elif parts:
            record = np.concatenate([r for _, r in parts])
            batch = EventBatch.concat([b.with_series(self._codes.series()) for b, _ in parts])
            if (record[1:] < record[:-1]).any():
                order = np.argsort(record, kind="stable")
                batch, record = batch.take(order), record[order]
            out.batch, out.record = batch, record
        if out.record is None:
            out.record = np.empty(0, np.int32)
        return out

    def _frame(self, index: int, value: bytes, count: int, parts: list[Part], out: Decoded) -> None:
        frame = frames.decode_frame(value)
        if isinstance(frame, frames._Bars):
            raise PoisonRecord("a frame of bars, not of events")
        lane = frame.lane
        if lane is not None:
            check_lane(lane)
        if isinstance(frame, frames._End):
            out.ends.append((index, frame.lane))
        else:
            codes, unusable = self._codes.of_frame(frame)
            batch = frames.events_of(frame, self._codes.series(), codes)
            if unusable and len(batch) and int(batch.code.min()) < 0:
                raise PoisonRecord(unusable)
            bad = faults(batch)
            if bad:
                row, why = next(iter(bad.items()))
                raise PoisonRecord(f"frame row {row}: {why}")
            parts.append((batch, np.full(len(batch), index, np.int32)))
        if lane is not None:
            if out.lanes is None:
                out.lanes = [None] * count
            out.lanes[index] = lane

    def _good_rows(
        self, singles: list[WireEvent], at: list[int], poison: list[tuple[int, str]]
    ) -> list[Part]:
        """The good rows; each bad one, first by its names and times, then by its numbers, is poison."""
        try:
            return [(self._rows(singles), np.array(at, np.int32))]
        except (PoisonRecord, ValueError):
            pass
        readable: list[int] = []
        for i, wire in enumerate(singles):
            try:
                self._check(wire)
                readable.append(i)
            except (PoisonRecord, ValueError) as error:
                poison.append((at[i], str(error)))
        if not readable:
            return []
        batch = self._columns([singles[i] for i in readable])
        record = np.array([at[i] for i in readable], np.int32)
        bad = faults(batch)
        poison.extend((int(record[row]), why) for row, why in bad.items())
        good = np.setdiff1d(np.arange(len(batch)), list(bad)) if bad else slice(None)
        return [(batch.take(good), record[good])]

    def _check(self, wire: WireEvent) -> None:
        """Raise PoisonRecord or ValueError for what keeps one event out of :meth:`_columns`."""
        self._codes.code((wire.provider, wire.symbol, wire.kind, wire.interval))
        parse_time(wire.src_ts)
        parse_time(wire.ingest_ts)
        check_id(wire)

    def _rows(self, rows: list[WireEvent]) -> EventBatch:
        """Columns of decoded events.

        Raises:
            PoisonRecord, ValueError: some row is wrong.
        """
        batch = self._columns(rows)
        bad = faults(batch)
        if bad:
            raise PoisonRecord(next(iter(bad.values())))
        return batch

    def _columns(self, rows: list[WireEvent]) -> EventBatch:
        """:meth:`_rows` before their numbers are checked."""
        codes = self._codes
        known = codes.by_names
        try:
            code = [known[w.provider, w.symbol, w.kind, w.interval] for w in rows]
        except KeyError:
            code = [codes.code((w.provider, w.symbol, w.kind, w.interval)) for w in rows]
        src_ts = parse_times([w.src_ts for w in rows])
        for w in rows:
            if w.event_id != f"{w.provider}|{w.symbol}|{w.src_ts}|{w.seq}":
                check_id(w)
        o, h, low, c = (
            _floats([w.o for w in rows]),
            _floats([w.h for w in rows]),
            _floats([w.l for w in rows]),
            _floats([w.c for w in rows]),
        )
        if (o == c).all() and (h == c).all() and (low == c).all():
            o = h = low = c
        return EventBatch(
            series=codes.series(),
            code=np.array(code, np.int32),
            src_ts=src_ts,
            ingest_ts=parse_times([w.ingest_ts for w in rows]),
            o=o,
            h=h,
            l=low,
            c=c,
            v=_floats([w.v for w in rows]),
            seq=np.array([w.seq for w in rows], np.int64),
        )


def _floats(values: list[float]) -> F64:
    return np.fromiter(values, np.float64, len(values))


def event_of(value: bytes) -> StreamEvent:
    """The single event of one JSON or msgpack record, for tools that show or test one.

    Raises:
        PoisonRecord: with the reason.
    """
    decoded = EventDecoder().decode([value])
    if decoded.poison:
        raise PoisonRecord(decoded.poison[0][1])
    if len(decoded.batch) != 1:
        raise PoisonRecord("a frame, not a single event")
    return decoded.batch.events()[0]
