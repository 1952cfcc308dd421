"""What a file holds: which symbols on which days, and in which of its parts. Done by a worker, a file at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from market_data_core.batch import EventBatch
from market_data_core.errors import DatasetError, MissingExtra
from market_data_pipeline.backfill.task import Stamp
from market_data_pipeline.producers.layout import DAY
from market_data_pipeline.producers.part import Part
from market_data_pipeline.producers.provider import BadRow
from market_data_pipeline.producers.sources import DataFile

BLOCK: Final = 1 << 20
"""Bytes of a part of a CSV."""


class Holding(NamedTuple):
    """The part of a file that holds a symbol on a day, and how many of its rows are of both."""

    provider: str
    symbol: str
    day: int
    part: Part
    rows: int


@dataclass(slots=True)
class Scan:
    """What a file holds. ``fault``: why it cannot be trusted; then ``holdings`` are those before the fault."""

    stamp: Stamp | None = None
    holdings: list[Holding] = field(default_factory=list)
    fault: str | None = None


def scan_file(file: DataFile, days: range, symbols: frozenset[str], skip_bad_rows: bool) -> Scan:
    """The holdings of ``file`` on ``days`` of ``symbols`` (empty: all of them).

    Raises:
        MissingExtra: a package is needed to read it.
    """
    found = Scan()
    held: dict[tuple[str, str, int], tuple[Part, int]] = {}
    try:
        found.stamp = Stamp.of(file.path)
        for part, rows in file.parts(BLOCK):
            for item in rows:
                if isinstance(item, BadRow):
                    if not skip_bad_rows:
                        found.fault = found.fault or bad_row(item)
                    continue
                for key, n in _counted(item, days, symbols):
                    before, so_far = held.get(key, (part, 0))
                    held[key] = before.joined(part), so_far + n
    except MissingExtra:
        raise
    except DatasetError as error:
        found.fault = str(error)
    except OSError as error:
        found.fault = f"{file.place} cannot be read: {error.strerror or error}; check the file"
    except Exception as error:  # of whatever a library makes of a broken file: others are not to suffer
        found.fault = f"{file.place} cannot be read: {type(error).__name__}: {error}; check the file"
    found.holdings = [Holding(*key, *value) for key, value in held.items()]
    return found


def bad_row(row: BadRow) -> str:
    """What is said of a row that is no event."""
    return f"{row.place} is no event: {row.reason}; correct it, or go on without it by --bad-rows skip"


def _counted(
    batch: EventBatch, days: range, symbols: frozenset[str]
) -> list[tuple[tuple[str, str, int], int]]:
    """Rows by (provider, symbol, day)."""
    first = int(batch.src_ts.min()) // DAY
    day = batch.src_ts // DAY - first
    width = int(day.max()) + 1
    keys, counts = np.unique(batch.code.astype(np.int64) * width + day, return_counts=True)
    out = []
    for key, n in zip(keys.tolist(), counts.tolist(), strict=True):
        series, at = batch.series[key // width], first + key % width
        if at in days and (not symbols or series.symbol in symbols):
            out.append(((series.provider, series.symbol, at), n))
    return out
