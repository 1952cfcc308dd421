"""One partition of a consumer on Redis: how far it was read, and what of it waits to be delivered."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from market_data_pipeline.streaming.bus import Delivery, Offset
from market_data_pipeline.streaming.redis_entries import Offsets, columns, format_id, parse_id
from market_data_pipeline.streaming.redis_wire import pack


@dataclass(slots=True, eq=False)
class Partition:
    """``cursor``: the last offset that was read and found to follow the one before. ``goal``: the last one to
    be read as a range; past it, new entries are read. A read asked for in an older ``generation`` is void."""

    number: int
    stream: str
    cursor: Offset = -1
    goal: Offset = -1
    sought: bool = False
    paused: bool = False
    revoking: bool = False
    generation: int = 0
    entry_bytes: float = 0.0
    ready: deque[tuple[Delivery, list[bytes]]] = field(default_factory=deque)
    unacked: list[list[bytes]] = field(default_factory=list)
    kept: Offset | None = None

    @property
    def readable(self) -> bool:
        return self.sought and not self.paused and not self.revoking

    @property
    def after(self) -> str:
        """Where a range read goes on."""
        return f"({format_id(self.cursor)}" if self.cursor >= 0 else "-"

    def follow(self, entries: Sequence[Any], *, new: bool, short: bool, began: int) -> None:
        """Make ready what comes next: new entries, or those of a range; ``short`` when there are no more."""
        ids, values, lanes, traces = columns(entries)
        if new and parse_id(ids[0]) <= self.cursor:
            # Somebody moved the group back (XGROUP SETID). What was read is not delivered again here.
            again = bisect_right(Offsets(ids), self.cursor)
            self.unacked.append(ids[:again])
            ids, values, lanes = ids[again:], values[again:], lanes and lanes[again:]
            traces = [(place - again, trace) for place, trace in traces if place >= again]
        if ids:
            self.cursor = parse_id(ids[-1])
            self.entry_bytes = max(sum(map(len, values)) / len(values), self.entry_bytes / 2, 1.0)
            delivery = Delivery(self.number, Offsets(ids), values, lanes, new and short, began, traces)
            # What is pending of a range was claimed when the range was set.
            self.ready.append((delivery, ids if new else []))
        if short and not new:
            self.cursor = self.goal

    def due(self, through: Offset) -> tuple[list[bytes], list[list[bytes]]]:
        """Ids to acknowledge up to ``through``, and what of ``unacked`` stays."""
        ids: list[bytes] = []
        rest = []
        for chunk in self.unacked:
            cut = len(chunk) if parse_id(chunk[-1]) <= through else bisect_right(Offsets(chunk), through)
            ids += chunk[:cut]
            if cut < len(chunk):
                rest.append(chunk[cut:])
        return ids, rest

    def check(self, entries: Sequence[Any] | None) -> bytes:
        """The question whether there is something between the cursor and ``entries``, or past it if there are
        none."""
        if entries is None:
            return pack("XINFO", "GROUPS", self.stream)
        return pack("XRANGE", self.stream, self.after, b"(" + entries[0][0], "COUNT", 1)
