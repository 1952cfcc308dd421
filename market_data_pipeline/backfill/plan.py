"""The plan: holdings of files become tasks, and tasks that share what they read become bundles, day by day."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from market_data_pipeline.backfill.scan import Scan
from market_data_pipeline.backfill.task import Bundle, Piece, Stamp, Task, fingerprint, group_of
from market_data_pipeline.producers.layout import DAY
from market_data_pipeline.producers.part import Part
from market_data_pipeline.producers.replay import Range
from market_data_pipeline.producers.sources import DataFile

BUNDLE_TASKS: Final = 16
BUNDLE_ROWS: Final = 2_000_000
"""A bundle is no larger than this, unless one task alone is."""
FIRST_DAY: Final = -(2**63) // DAY
LAST_DAY: Final = (2**63 - 1) // DAY


@dataclass(slots=True)
class _Open:
    """A task whose files are not all scanned yet."""

    pieces: list[Piece] = field(default_factory=list)
    rows: int = 0
    faults: list[str] = field(default_factory=list)


class Plan:
    """Takes scans in any order and gives bundles of the days that are complete.

    ``asked``: event time, cut to whole windows. ``options`` go into fingerprints with the range of the task;
    ``finished`` are fingerprints by (group, day): these tasks are not given, only counted.
    It holds what is scanned and not yet given.
    """

    def __init__(
        self, asked: Range, options: tuple[object, ...], finished: Mapping[tuple[str, int], str]
    ) -> None:
        self.tasks = self._skipped = 0
        self.days = range(
            FIRST_DAY if asked.start is None else asked.start // DAY,
            LAST_DAY if asked.end is None else -(-asked.end // DAY),
        )
        self._asked = asked
        self._options = options
        self._finished = finished
        self._open: dict[int, dict[tuple[str, str], _Open]] = {}

    def add(self, file: DataFile, scan: Scan) -> None:
        """Take what was found in ``file``."""
        for found in scan.holdings:
            of_day = self._open.setdefault(found.day, {})
            task = of_day.setdefault((found.provider, found.symbol), _Open())
            task.pieces.append(Piece(file, scan.stamp or Stamp(0, 0), found.part))
            task.rows += found.rows
            if scan.fault is not None:
                task.faults.append(scan.fault)

    def ready(self, before: int = LAST_DAY + 1) -> Iterator[Bundle]:
        """The bundles of the days before the day ``before``, which no file will add to any more."""
        for day in sorted(d for d in self._open if d < before):
            tasks = []
            for (provider, symbol), of in self._open.pop(day).items():
                task = self._task(provider, symbol, day, of)
                self.tasks += 1
                if self._finished.get((group_of(provider, symbol), day)) == task.fingerprint:
                    self._skipped += 1
                else:
                    tasks.append(task)
            yield from bundles(tasks)

    def take_skipped(self) -> int:
        """How many tasks were finished already, since the last call."""
        skipped, self._skipped = self._skipped, 0
        return skipped

    def _task(self, provider: str, symbol: str, day: int, of: _Open) -> Task:
        start, end = day * DAY, (day + 1) * DAY
        if self._asked.start is not None:
            start = max(start, self._asked.start)
        if self._asked.end is not None:
            end = min(end, self._asked.end)
        pieces = tuple(sorted(of.pieces, key=lambda p: p.file.place))
        print_ = fingerprint((*self._options, start, end), pieces)
        fault = "; ".join(of.faults) or None
        return Task(provider, symbol, day, start, end, pieces, of.rows, print_, fault)


def bundles(tasks: list[Task]) -> Iterator[Bundle]:
    """Tasks of one day, put together where most of what one reads the others read too."""
    bundle: list[Task] = []
    for task in sorted(tasks, key=lambda t: [(p.file.place, p.part) for p in t.pieces]):
        if bundle and not _fits(bundle, task):
            yield tuple(bundle)
            bundle = []
        bundle.append(task)
    if bundle:
        yield tuple(bundle)


def _fits(bundle: list[Task], task: Task) -> bool:
    first = bundle[0]
    return (
        len(bundle) < BUNDLE_TASKS
        and sum(t.rows for t in bundle) + task.rows <= BUNDLE_ROWS
        and (task.fault is None) == (first.fault is None)
        and [p.file.place for p in task.pieces] == [p.file.place for p in first.pieces]
        and all(_overlap(a.part, b.part) for a, b in zip(first.pieces, task.pieces, strict=True))
    )


def _overlap(a: Part, b: Part) -> bool:
    """Whether half of the smaller one is in the other."""
    shared = min(a.stop, b.stop) - max(a.start, b.start)
    return 2 * shared >= min(a.stop - a.start, b.stop - b.start)
