"""A bundle done: its bars made and stored, its tasks marked as finished. This runs in a worker.

Every task has a claim of its own on ``(topic, provider/symbol, day)``. So a worker that was given up, or that a killed
command left behind, is fenced: it can write nothing once another has begun the same task.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from market_data_core.batch import BarBatch, EventBatch
from market_data_core.errors import DatasetError, Fenced, MissingExtra
from market_data_core.protocols import Claim, Flush, LaneFlush
from market_data_pipeline.backfill.bars import Made, bars_of, make_bars, slices
from market_data_pipeline.backfill.desk import Desk, Worker, patiently, worker_of
from market_data_pipeline.backfill.task import DONE_LANE, Bundle, Task
from market_data_store.client import StoreClient

_NO_EVENTS: Final = EventBatch.empty()
FLUSH_BARS: Final = 20_000
"""Bars of one transaction."""


@dataclass(slots=True)
class Outcome:
    """What became of a task; bars by what the store did with them. ``skipped``: it was finished before."""

    symbol: str
    date: str
    failure: str | None = None
    skipped: bool = False
    inserted: int = 0
    amended: int = 0
    unchanged: int = 0
    refused: int = 0


@dataclass(slots=True)
class Done:
    """What became of a bundle."""

    outcomes: list[Outcome] = field(default_factory=list)
    events: int = 0
    duplicates: int = 0
    passed_over: int = 0
    bad_rows: int = 0
    behind: int = 0


def do_bundle(desk: Desk, bundle: Bundle) -> Done:
    """Do every task of ``bundle``; what is wrong with its files is in the outcomes.

    Raises:
        StoreUnavailable: the store was away for longer than a worker waits. StoreError: it refuses.
        MissingExtra: a package is needed to read the files.
    """
    worker = worker_of(desk.store_url, desk.timeout_s)
    return worker.run(_do(worker, desk, bundle))


async def _do(worker: Worker, desk: Desk, bundle: Bundle) -> Done:
    store = await patiently(desk.patience_s, worker.store)
    owner = f"{socket.gethostname()}-{os.getpid()}"
    done = Done()
    claims: list[tuple[Task, Claim]] = []
    for task in bundle:
        begin = partial(store.claim, desk.topic, task.group, task.day, owner)
        claim = await patiently(desk.patience_s, begin)
        mark = claim.positions.get(DONE_LANE)
        if desk.resume and mark is not None and mark.read_offset == task.fingerprint:
            done.outcomes.append(Outcome(task.symbol, task.date, skipped=True))
        else:
            claims.append((task, claim))
    if not claims:
        return done
    try:
        made = make_bars(desk, tuple(task for task, _ in claims))
    except MissingExtra:
        raise
    except DatasetError as error:
        failure = str(error)
    except Exception as error:  # whatever a library makes of a broken file is that file's fault alone
        failure = f"{bundle[0].pieces[0].file.place} cannot be read: {type(error).__name__}: {error}"
    else:
        done.events, done.duplicates, done.passed_over = made.events, made.duplicates, made.passed_over
        done.bad_rows, done.behind = made.bad_rows, made.behind
        for task, claim in claims:
            done.outcomes.append(await store_task(store, desk, task, claim, made))
        return done
    done.outcomes += [Outcome(task.symbol, task.date, failure) for task, _ in claims]
    return done


async def store_task(store: StoreClient, desk: Desk, task: Task, claim: Claim, made: Made) -> Outcome:
    """Write the bars of ``task``, then mark it. Both are safe to do twice, so they need not be one transaction."""
    out = Outcome(task.symbol, task.date)
    try:
        number = 0
        for number, bars in enumerate(slices(bars_of(made.bars, task.symbol), FLUSH_BARS), 1):
            await _write(store, desk, task, claim, bars, number, out)
        if out.failure is None:
            mark = Flush(claim, [], [task.mark], number + 1, bars_topic="", dead_letter_topic="")
            await patiently(desk.patience_s, partial(store.commit, mark))
    except Fenced:
        out.failure = "another run of this backfill has taken it over; let one of them finish, then run again"
    return out


async def _write(
    store: StoreClient, desk: Desk, task: Task, claim: Claim, bars: BarBatch, number: int, out: Outcome
) -> None:
    lane = LaneFlush(task.date, bars, _NO_EVENTS, desk.window_ns, desk.force)
    flush = Flush(claim, [lane], [], number, bars_topic="", dead_letter_topic="")
    did = await patiently(desk.patience_s, partial(store.commit, flush))
    changed = len(bars) - did.unchanged - did.refused - len(did.rejected)
    amended = int((did.bars.revision > 1).sum())
    out.inserted += changed - amended
    out.amended += amended
    out.unchanged += did.unchanged
    out.refused += did.refused
    for reason, what in did.rejected[:1]:
        out.failure = f"the database refuses {len(did.rejected)} bars, such as {what}: {reason}"
