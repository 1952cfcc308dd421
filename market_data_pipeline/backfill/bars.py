"""The bars of a bundle, by the very windows of the stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from market_data_core.batch import BarBatch, EventBatch
from market_data_core.errors import DatasetError
from market_data_pipeline.backfill.desk import Desk
from market_data_pipeline.backfill.scan import bad_row
from market_data_pipeline.backfill.task import Bundle, Piece, Stamp
from market_data_pipeline.producers.layout import DAY
from market_data_pipeline.producers.merge import merged
from market_data_pipeline.producers.provider import BadRow
from market_data_pipeline.producers.sources import Source
from market_data_pipeline.windows.tumbling import TumblingWindows, WindowSettings

WHOLE_DAY: Final = 2 * DAY
"""A lateness and a horizon of dedupe that no two events of a day are apart by: none is late, each id counts once."""


@dataclass(slots=True)
class Made:
    """``bars`` of all symbols, and what became of rows. ``behind``: rows that were further behind the newest one than
    the stream's dedupe horizon, for which it is too late there and not here."""

    bars: BarBatch
    events: int = 0
    duplicates: int = 0
    passed_over: int = 0
    bad_rows: int = 0
    behind: int = 0


def make_bars(desk: Desk, bundle: Bundle) -> Made:
    """Read what ``bundle`` needs and make its bars.

    Raises:
        DatasetError: a file is damaged, was changed since the plan, or has a row that is no event.
    """
    made = Made(BarBatch.empty())
    windows = TumblingWindows(WindowSettings(desk.window_ns, WHOLE_DAY, WHOLE_DAY, desk.kinds))
    pieces = _pieces(bundle)
    _unchanged(pieces)
    newest = bundle[0].start
    for item in merged(_sources(pieces), lambda batch: _keep(batch, bundle)):
        if isinstance(item, BadRow):
            if not desk.skip_bad_rows:
                raise DatasetError(bad_row(item))
            made.bad_rows += 1
            continue
        highest = np.maximum(np.maximum.accumulate(item.src_ts), newest)
        made.behind += int(np.count_nonzero(item.src_ts <= highest - desk.horizon_ns))
        newest = int(highest[-1])
        windows.add(item, 0)
    _unchanged(pieces)
    windows.end()
    made.bars, _ = windows.close(0)
    counts = windows.counts
    made.events, made.duplicates, made.passed_over = counts.accepted, counts.duplicate, counts.skipped
    return made


def bars_of(bars: BarBatch, symbol: str) -> BarBatch:
    """Those of ``symbol``."""
    mine = np.array([s.symbol == symbol for s in bars.series], np.bool_)
    return bars.take(mine[bars.code]) if len(bars) else bars


def _keep(batch: EventBatch, bundle: Bundle) -> EventBatch:
    symbols = {task.symbol for task in bundle}
    mask = np.array([s.symbol in symbols for s in batch.series], np.bool_)[batch.code]
    mask &= (batch.src_ts >= bundle[0].start) & (batch.src_ts < bundle[0].end)
    return batch if mask.all() else batch.take(mask)


def _pieces(bundle: Bundle) -> list[Piece]:
    """What all tasks read, each file once."""
    joined: dict[str, Piece] = {}
    for task in bundle:
        for piece in task.pieces:
            known = joined.get(piece.file.place)
            part = piece.part if known is None else known.part.joined(piece.part)
            joined[piece.file.place] = replace(piece, part=part)
    return [joined[place] for place in sorted(joined)]


def _sources(pieces: list[Piece]) -> list[Source]:
    return [piece.file.source(piece.part) for piece in pieces]


def _unchanged(pieces: list[Piece]) -> None:
    for piece in pieces:
        try:
            same = Stamp.of(piece.file.path) == piece.stamp
        except OSError as error:
            raise DatasetError(
                f"{piece.file.place} cannot be read: {error.strerror or error}; check the file"
            ) from error
        if not same:
            raise DatasetError(f"{piece.file.place} was changed while it was read; run the backfill again")


def slices(bars: BarBatch, size: int) -> Iterator[BarBatch]:
    """``bars`` in order, at most ``size`` at once."""
    for start in range(0, len(bars), size):
        yield bars.take(slice(start, start + size))
