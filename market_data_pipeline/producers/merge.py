"""Many files as one stream in time order, a block of each in memory.

Each file is taken to be in time order; where it is not, its rows keep the file's order and go out when the newest time
before them is due. Files whose first time is known from their name are opened only when it is their turn, so a year
of daily files needs no more memory than a day.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from market_data_core.batch import I64, EventBatch
from market_data_core.codecs import format_time
from market_data_core.errors import DatasetError
from market_data_core.events import Series
from market_data_pipeline.producers.provider import BadRow
from market_data_pipeline.producers.sources import Source

MEMORY: Final = 1 << 26
"""Bytes of raw blocks that all open files share."""
LARGEST_BLOCK: Final = 1 << 21
SMALLEST_BLOCK: Final = 1 << 14
_NEVER: Final = 2**63 - 1


@dataclass(slots=True)
class Disorder:
    """How far the rows of the files went back in time: how many did, and by how much at most (ns)."""

    rows: int = 0
    furthest: int = 0


@dataclass(slots=True)
class _Head:
    """An open file: its current batch, and the newest time up to each row."""

    source: Source
    rows: Iterator[EventBatch | BadRow]
    batch: EventBatch = field(default_factory=EventBatch.empty)
    newest: I64 = field(default_factory=lambda: np.empty(0, np.int64))
    last: int = -_NEVER

    def split(self, horizon: int) -> EventBatch:
        """Removes and returns the rows that are due at ``horizon``."""
        cut = int(np.searchsorted(self.newest, horizon, "right"))
        if cut == len(self.batch):
            out, self.batch, self.newest = self.batch, EventBatch.empty(), self.newest[:0]
            return out
        out = self.batch.take(slice(cut))
        self.batch, self.newest = self.batch.take(slice(cut, None)), self.newest[cut:]
        return out


def merged(
    sources: Sequence[Source],
    keep: Callable[[EventBatch], EventBatch] | None = None,
    disorder: Disorder | None = None,
) -> Iterator[EventBatch | BadRow]:
    """The rows of all ``sources`` in time order; rows of one time in the order of the sources.

    ``keep`` chooses rows of each batch before they are merged.

    Raises:
        DatasetError: two files give a symbol the same row number at the same time, so that one of the two would
            be taken for a copy of the other.
    """
    waiting = sorted(sources, key=lambda s: -_NEVER if s.earliest is None else s.earliest)
    at_once = max(1, sum(s.earliest is None for s in sources))
    block = max(SMALLEST_BLOCK, min(LARGEST_BLOCK, MEMORY // at_once))
    order = {id(source): place for place, source in enumerate(sources)}
    went_back = Disorder() if disorder is None else disorder
    heads: list[_Head] = []
    try:
        while heads or waiting:
            horizon = min((int(h.newest[-1]) for h in heads), default=-_NEVER)
            while waiting and (not heads or _begins(waiting[0]) <= horizon):
                source = waiting.pop(0)
                head = _Head(source, source.read(block))
                heads.append(head)
                heads.sort(key=lambda h: order[id(h.source)])
                yield from _fill(head, keep, went_back)
                heads = [h for h in heads if len(h.batch)]
                horizon = min((int(h.newest[-1]) for h in heads), default=-_NEVER)
            if not heads:
                continue
            yield from _due(heads, horizon)
            for head in heads:
                if len(head.batch) == 0:
                    yield from _fill(head, keep, went_back)
            heads = [h for h in heads if len(h.batch)]
    finally:
        for head in heads:
            _close(head)


def _begins(source: Source) -> int:
    return -_NEVER if source.earliest is None else source.earliest


def _close(head: _Head) -> None:
    close = getattr(head.rows, "close", None)
    if close is not None:
        close()


def _fill(
    head: _Head, keep: Callable[[EventBatch], EventBatch] | None, disorder: Disorder
) -> Iterator[BadRow]:
    """Gives ``head`` its next rows, if there are more; passes its bad rows on."""
    for item in head.rows:
        if isinstance(item, BadRow):
            yield item
            continue
        batch = item if keep is None else keep(item)
        if len(batch) == 0:
            continue
        newest = np.maximum.accumulate(batch.src_ts)
        if newest[0] < head.last:
            newest = np.maximum(newest, head.last)
        back = newest - batch.src_ts
        if back.any():
            disorder.rows += int(np.count_nonzero(back))
            disorder.furthest = max(disorder.furthest, int(back.max()))
        head.batch, head.newest, head.last = batch, newest, int(newest[-1])
        return


def _due(heads: Sequence[_Head], horizon: int) -> Iterator[EventBatch]:
    """All rows up to ``horizon`` of all open files, in time order."""
    pieces = []
    keys = []
    for head in heads:
        newest = head.newest
        piece = head.split(horizon)
        if len(piece):
            pieces.append((head.source, piece))
            keys.append(newest[: len(piece)])
    if not pieces:
        return
    if len(pieces) == 1:
        yield pieces[0][1]
        return
    _refuse_twins(pieces)
    batch = EventBatch.concat([piece for _, piece in pieces])
    yield batch.take(np.argsort(np.concatenate(keys), kind="stable"))


def _refuse_twins(pieces: Sequence[tuple[Source, EventBatch]]) -> None:
    """Two files of one symbol must not give the same identity (symbol, time, row number) to two events."""
    by_series: dict[Series, list[int]] = {}
    for index, (_, piece) in enumerate(pieces):
        for series in piece.series:
            by_series.setdefault(series, []).append(index)
    for series, owners in by_series.items():
        if len(owners) < 2:
            continue
        seen: list[tuple[Source, set[tuple[int, int]]]] = []
        for index in owners:
            source, piece = pieces[index]
            rows = piece.take(piece.code == piece.series.index(series))
            ids = set(zip(rows.src_ts.tolist(), rows.seq.tolist(), strict=True))
            for other, earlier in seen:
                if twins := ids & earlier:
                    at, number = min(twins)
                    raise DatasetError(
                        f"{other.place} and {source.place} both have row {number} of {series.symbol} at "
                        f"{format_time(at)}, so one would pass for a copy of the other; give each file once, or a "
                        "provider name or a seq column of its own"
                    )
            seen.append((source, ids))
