"""A line on the terminal that shows how far a backfill is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from market_data_pipeline.backfill.totals import Totals


@contextmanager
def shown(name: str, totals: Totals, *, on_terminal: bool) -> Iterator[Callable[[], None]]:
    """A function that draws ``totals`` on stderr while the block runs, if that is a terminal."""
    if not on_terminal:
        yield lambda: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("tasks"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task(name, total=None, note="")

        def draw() -> None:
            ended = totals.done + totals.skipped + totals.failed
            elapsed = progress.tasks[0].elapsed or 0.0
            progress.update(task, completed=ended, total=totals.tasks or None, note=note(totals, elapsed))

        yield draw


def note(totals: Totals, seconds: float) -> str:
    """What is worth to know beside the number of tasks."""
    parts = [f"{totals.events:,} events"]
    if seconds > 0 and totals.events:
        parts.append(f"{totals.events / seconds:,.0f}/s")
    if totals.files_scanned < totals.files:
        parts.append(f"{totals.files_scanned:,} of {totals.files:,} files scanned")
    if totals.workers_lost:
        parts.append(f"[yellow]{totals.workers_lost:,} workers lost[/]")
    if totals.failed:
        parts.append(f"[red]{totals.failed:,} failed[/]")
    return "  ".join(parts)
