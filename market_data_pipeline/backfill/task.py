"""One symbol on one UTC day: what is planned, remembered as finished, and done again when its files have changed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from market_data_core.events import format_interval
from market_data_core.protocols import Position
from market_data_pipeline.producers.part import Part
from market_data_pipeline.producers.sources import DataFile

DONE_LANE: Final = "done"
"""The lane of a task's position: it is written when the task is finished, with the fingerprint as offset."""
_FORM: Final = "1"
"""Of fingerprints and bars. Raise it when the same file would give other bars: all is done again then."""


class Stamp(NamedTuple):
    """What tells that a file was changed. ``modified`` in ns."""

    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Raises OSError."""
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a file that a task reads."""

    file: DataFile
    stamp: Stamp
    part: Part


@dataclass(frozen=True, slots=True)
class Task:
    """One symbol in ``[start, end)`` (ns UTC), which lie within ``day``, counted from 1970-01-01.

    ``rows``: how many rows the plan saw. ``fault``: why it cannot be done.
    """

    provider: str
    symbol: str
    day: int
    start: int
    end: int
    pieces: tuple[Piece, ...]
    rows: int
    fingerprint: str
    fault: str | None = None

    @property
    def group(self) -> str:
        """The consumer group under which its claim and its position are kept; the partition is the day."""
        return group_of(self.provider, self.symbol)

    @property
    def date(self) -> str:
        return (date(1970, 1, 1) + timedelta(days=self.day)).isoformat()

    @property
    def mark(self) -> Position:
        """The position that says it is finished."""
        return Position(DONE_LANE, self.end, self.fingerprint, "", "")


Bundle = tuple[Task, ...]
"""Tasks of one day that read the same parts of files, so that these are read once for all of them."""


def topic_of(dataset: str, window_ns: int) -> str:
    """The topic of claims, positions and writers of a backfill."""
    return f"backfill/{dataset}/{format_interval(window_ns)}"


def group_of(provider: str, symbol: str) -> str:
    return f"{provider}/{symbol}"


def fingerprint(options: Sequence[object], pieces: Sequence[Piece]) -> str:
    """Equal for equal options and files, by their place, size, time of change, and the layout they are read by."""
    digest = hashlib.sha256(repr((_FORM, *options)).encode())
    for piece in sorted(pieces, key=lambda p: p.file.place):
        layout = replace(piece.file.layout, key="", columns=dict(sorted(piece.file.layout.columns.items())))
        digest.update(repr((piece.file.place, tuple(piece.stamp), layout)).encode())
    return digest.hexdigest()[:32]
