"""A store of one transaction in memory, with the rules that the real one keeps by SQL.

For the many runs of a property test, where a database a run would be too slow. Nothing in it awaits, so a call is
whole or it raises. ``before`` and ``after`` let a test break a commit at either side of the transaction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from market_data_core.batch import BarBatch, EventBatch
from market_data_core.codecs import encode_bars
from market_data_core.errors import Fenced
from market_data_core.events import Bar
from market_data_core.ohlcv import merge_bars, partial_bars
from market_data_core.protocols import Claim, Committed, Flush, LaneFlush, OutboxRecord, Position

Key = tuple[str, str, str, int]
VALUES = tuple(name for name in BarBatch.__dataclass_fields__ if name not in ("series", "code", "revision"))


@dataclass(slots=True)
class _Partition:
    epoch: int = 0
    positions: dict[str, Position] = field(default_factory=dict)
    outbox: list[OutboxRecord] = field(default_factory=list)
    number: int = 0
    last: Committed | None = None


def _do_nothing(flush: Flush) -> None: ...


class MemorySink:
    """See :class:`market_data_core.protocols.BarSink`."""

    def __init__(
        self, before: Callable[[Flush], None] = _do_nothing, after: Callable[[Flush], None] = _do_nothing
    ) -> None:
        self.before, self.after = before, after
        self.rows: dict[Key, BarBatch] = {}
        self.flushes: list[Flush] = []
        self._writers: dict[Key, str] = {}
        self._partitions: dict[tuple[str, str, int], _Partition] = {}
        self._ids = 0

    def bars(self) -> list[Bar]:
        """What is stored, by key."""
        return [self.rows[key].bars()[0] for key in sorted(self.rows)]

    def bits(self) -> dict[Key, tuple[bytes, ...]]:
        """Every value of every bar, to the bit; without revisions, which tell how often it was written."""
        return {key: tuple(getattr(row, name).tobytes() for name in VALUES) for key, row in self.rows.items()}

    def positions(self, topic: str, group: str, partition: int) -> dict[str, Position]:
        return self._partitions[topic, group, partition].positions

    async def claim(self, topic: str, group: str, partition: int, owner: str, *, topic_id: str = "") -> Claim:
        part = self._partitions.setdefault((topic, group, partition), _Partition())
        part.epoch += 1
        part.number, part.last = 0, None
        return Claim(topic, group, partition, part.epoch, owner, dict(part.positions), list(part.outbox))

    async def commit(self, flush: Flush) -> Committed:
        self.before(flush)
        claim = flush.claim
        part = self._partitions[claim.topic, claim.group, claim.partition]
        if part.epoch != claim.epoch:
            raise Fenced(f"epoch {claim.epoch} is not {part.epoch}")
        if part.last is None or part.number != flush.number:
            assert flush.number == part.number + 1, "flushes are numbered in order"
            part.last, part.number = self._apply(flush, part), flush.number
        self.after(flush)
        return part.last

    def _apply(self, flush: Flush, part: _Partition) -> Committed:
        self.flushes.append(flush)
        changed: list[BarBatch] = []
        done = Committed(BarBatch.empty(), [])
        for lane in flush.lanes:
            refused, unchanged = self._close(lane, flush, changed)
            amended, stale = self._amend(lane, flush, changed)
            done = replace(
                done,
                refused=done.refused + refused,
                unchanged=done.unchanged + unchanged,
                amended=done.amended + amended,
                stale=done.stale + stale,
            )
        part.outbox = [row for row in part.outbox if row.id not in set(flush.published)]
        new: list[OutboxRecord] = []
        bars = BarBatch.concat(changed) if changed else BarBatch.empty()
        if changed:
            self._ids += 1
            value = encode_bars(bars)
            new = [OutboxRecord(self._ids, flush.bars_topic, flush.claim.partition, "", None, value)]
        part.outbox += new
        for position in flush.positions:
            part.positions[position.lane] = position
        for name in flush.forget:
            part.positions.pop(name, None)
        created = sum(int(np.count_nonzero(b.revision == 1)) for b in changed)
        return replace(done, bars=bars, outbox=new, created=created)

    def _close(self, lane: LaneFlush, flush: Flush, changed: list[BarBatch]) -> tuple[int, int]:
        refused = unchanged = 0
        for row in _each(lane.closed):
            old = self.rows.get(_key(row))
            if old is not None and int(old.n_events[0]) > int(row.n_events[0]) and not lane.force:
                refused += 1
            elif not self._put(row, lane, flush, changed):
                unchanged += 1
        return refused, unchanged

    def _amend(self, lane: LaneFlush, flush: Flush, changed: list[BarBatch]) -> tuple[int, int]:
        amended = stale = 0
        late: EventBatch = lane.late
        for row in _each(partial_bars(late, lane.window_ns)):
            old = self.rows.get(_key(row))
            if old is None:
                self._put(row, lane, flush, changed)
            elif self._writers[_key(row)] != _writer(lane, flush):
                stale += int(row.n_events[0])
            else:
                self._put(merge_bars(BarBatch.concat([old, row])), lane, flush, changed)
                amended += 1
        return amended, stale

    def _put(self, row: BarBatch, lane: LaneFlush, flush: Flush, changed: list[BarBatch]) -> bool:
        key = _key(row)
        old = self.rows.get(key)
        if old is not None:
            if all(getattr(old, n).tobytes() == getattr(row, n).tobytes() for n in VALUES):
                return False
            row = replace(row, revision=old.revision + np.int32(1))
        self.rows[key] = row
        self._writers[key] = _writer(lane, flush)
        changed.append(row)
        return True


def _writer(lane: LaneFlush, flush: Flush) -> str:
    return f"{flush.claim.topic}/{flush.claim.group}/{lane.lane}"


def _each(bars: BarBatch) -> list[BarBatch]:
    return [bars.take(np.array([i])) for i in range(len(bars))]


def _key(row: BarBatch) -> Key:
    series = row.series[int(row.code[0])]
    return series.provider, series.symbol, series.interval, int(row.ts[0])
