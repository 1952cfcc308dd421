"""A line on the terminal that shows how far a producer is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from market_data_core.codecs import format_time
from market_data_pipeline.producers.counts import Counts, ProducerObserver


class ProgressLine(ProducerObserver):
    """Draws the counts of a run; ``next_observer`` is told of everything too."""

    def __init__(self, progress: Progress, task: TaskID, next_observer: ProducerObserver) -> None:
        self._progress = progress
        self._task = task
        self._next = next_observer

    def published(self, counts: Counts, events: int) -> None:
        self._draw(counts)
        self._next.published(counts, events)

    def changed(self, counts: Counts) -> None:
        self._draw(counts)
        self._next.changed(counts)

    def _draw(self, counts: Counts) -> None:
        self._progress.update(self._task, completed=counts.published, note=note(counts))


def note(counts: Counts) -> str:
    """What is worth to know beside the number of events."""
    parts = [format_time(counts.newest)[:19].replace("T", " ")] if counts.newest else []
    if counts.spool_events:
        parts.append(f"[yellow]{counts.spool_events:,} on disk, the bus is away[/]")
    if counts.dropped:
        parts.append(f"[red]{counts.dropped:,} dropped[/]")
    if counts.bad_rows:
        parts.append(f"[yellow]{counts.bad_rows:,} bad rows[/]")
    return "  ".join(parts)


@contextmanager
def shown(
    name: str, total: int | None, next_observer: ProducerObserver, *, on_terminal: bool
) -> Iterator[ProducerObserver]:
    """An observer that draws on stderr while the block runs, if that is a terminal."""
    if not on_terminal:
        yield next_observer
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:,} events"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with _Rated(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task(name, total=total, note="", rate="")
        yield ProgressLine(progress, task, next_observer)


class _Rated(Progress):
    """A progress that shows events a second."""

    def get_renderables(self) -> Iterator[object]:  # type: ignore[override]
        for task in self.tasks:
            task.fields["rate"] = f"{task.speed:,.0f}/s" if task.speed else ""
        yield from super().get_renderables()
