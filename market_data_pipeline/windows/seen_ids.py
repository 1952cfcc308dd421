"""Which event ids were seen, in bounded memory, a column at a time.

Ids are 64-bit hashes of (provider, symbol, src_ts, seq). With ten million ids remembered, a new event is mistaken
for a copy once in about 10**12.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from market_data_core.batch import EventBatch
from market_data_core.events import Series

U64 = NDArray[np.uint64]
_MIN_SLOTS = 1 << 12
_MOST_CLEARED = 1 << 19
"""Slots that are cleared to be used again, which takes half a millisecond. More are given back, and taken anew."""


def series_hashes(series: tuple[Series, ...]) -> U64:
    """One hash a series; kind and interval do not count, as they are no part of an event's identity."""
    digests = (blake2b(f"{s.provider}|{s.symbol}".encode(), digest_size=8).digest() for s in series)
    return np.frombuffer(b"".join(digests), np.uint64)


def event_hashes(batch: EventBatch, hashes: U64) -> U64:
    """One id a row, never 0. ``hashes`` are :func:`series_hashes` of the batch's series."""
    mixed = hashes[batch.code] + batch.src_ts.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = _scatter(mixed) + batch.seq.view(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed = _scatter(mixed)
    mixed[mixed == 0] = 1
    return mixed


def _scatter(x: U64) -> U64:
    # The finaliser of splitmix64 (S. Vigna, public domain): a bijection in which every bit moves every other.
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class IdTable:
    """A set of ids: open addressing with linear probing, a whole column a call."""

    def __init__(self, slots: int = _MIN_SLOTS) -> None:
        self._slots: U64 = np.zeros(slots, np.uint64)
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def emptied(self) -> IdTable:
        """An empty table that takes this one's place and, as a rule, its memory: that of a table that is let go of
        often stays with the process, and the next one takes more of it."""
        size = len(self._slots)
        fits = size == _MIN_SLOTS or 8 * self._used > size
        if not fits or size > _MOST_CLEARED:
            return IdTable()
        self._slots.fill(0)
        self._used = 0
        return self

    def add(self, ids: U64) -> NDArray[np.bool_]:
        """Remember ``ids``; True where an id is new and stands in ``ids`` for the first time."""
        self._reserve(len(ids))
        in_order = np.sort(ids)
        if not (in_order[1:] == in_order[:-1]).any():
            return self._insert(ids)
        first = np.unique(ids, return_index=True)[1]
        fresh = np.zeros(len(ids), np.bool_)
        fresh[first] = self._insert(ids[first])
        return fresh

    def _insert(self, ids: U64) -> NDArray[np.bool_]:
        """:meth:`add` of ids that all differ."""
        slots, mask = self._slots, len(self._slots) - 1
        fresh = np.zeros(len(ids), np.bool_)
        rows: NDArray[np.intp] | None = None
        slot = (ids & np.uint64(mask)).astype(np.intp)
        mine = ids
        while len(slot):
            held = slots[slot]
            empty = held == 0
            # Of several ids that want one free slot the last one written has it; the others try on.
            at = slot[empty]
            slots[at] = mine[empty]
            now = slots[slot]
            done = now == mine
            new = done & empty
            if rows is None:
                fresh = new
                rows = np.flatnonzero(~done)
            else:
                fresh[rows[new]] = True
                rows = rows[~done]
            mine = ids[rows]
            slot = (slot[~done] + 1) & mask
        self._used += int(np.count_nonzero(fresh))
        return fresh

    def contains(self, ids: U64) -> NDArray[np.bool_]:
        """True where an id is remembered."""
        found = np.zeros(len(ids), np.bool_)
        if self._used == 0:
            return found
        mask = len(self._slots) - 1
        rows = np.arange(len(ids))
        slot = (ids & np.uint64(mask)).astype(np.intp)
        while len(rows):
            held = self._slots[slot]
            same = held == ids[rows]
            found[rows[same]] = True
            go_on = ~same & (held != 0)
            rows, slot = rows[go_on], (slot[go_on] + 1) & mask
        return found

    def _reserve(self, more: int) -> None:
        need = (self._used + more) * 2
        if need <= len(self._slots):
            return
        size = len(self._slots)
        while size < need * 2:
            size *= 2
        kept = self._slots[self._slots != 0]
        self._slots = np.zeros(size, np.uint64)
        self._used = 0
        self._insert(kept)


class SeenIds:
    """Ids seen within a horizon of event time, in two generations of one horizon each.

    An id is remembered until event time has moved by at least ``horizon_ns`` since it was added, and forgotten
    when it has moved by twice that. ``first_offset`` is where the bus must be read from to remember again what
    is remembered now.
    """

    def __init__(self, horizon_ns: int, event_time: int | None = None) -> None:
        """``event_time``: what it had reached before the first ids, if anything."""
        self._horizon = horizon_ns
        self._now = IdTable()
        self._before = IdTable()
        self._now_offset: int | None = None
        self._before_offset: int | None = None
        self._turned_at = event_time

    def __len__(self) -> int:
        return len(self._now) + len(self._before)

    @property
    def first_offset(self) -> int | None:
        return self._now_offset if self._before_offset is None else self._before_offset

    def add(self, ids: U64, offset: int) -> NDArray[np.bool_]:
        """Remember ``ids``, read at or after ``offset``; True where an id is new."""
        if self._now_offset is None:
            self._now_offset = offset
        known = self._before.contains(ids)
        return self._now.add(ids) & ~known

    def advance(self, event_time: int) -> None:
        """Event time has reached ``event_time``: forget what is beyond the horizon."""
        if self._turned_at is None:
            self._turned_at = event_time
        elif event_time - self._turned_at >= self._horizon:
            self._turned_at = event_time
            forgotten = self._before
            self._before, self._before_offset = self._now, self._now_offset
            self._now, self._now_offset = forgotten.emptied(), None
