"""The plan: which tasks there are, when a day is complete, what makes one be done again."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_core.config import Dataset
from market_data_pipeline.backfill.plan import BUNDLE_ROWS, BUNDLE_TASKS, Plan, bundles
from market_data_pipeline.backfill.scan import Holding, Scan, scan_file
from market_data_pipeline.backfill.task import Piece, Stamp, Task, fingerprint
from market_data_pipeline.producers.layout import DAY, layout_of
from market_data_pipeline.producers.part import Part
from market_data_pipeline.producers.replay import Range
from market_data_pipeline.producers.sources import DataFile, files_in
from tests.unit.backfill_files import FIRST, SECOND, dataset, opened, ticks, write

OPTIONS = (60 * SECOND, ("tick", "bar"))
DAY0 = FIRST // DAY
EVERYTHING = Range(None, None)


def scanned(plan: Plan, *files: DataFile) -> Plan:
    for file in files:
        plan.add(file, scan_file(file, plan.days, frozenset(), False))
    return plan


def tasks_of(plan: Plan, before: int | None = None) -> list[Task]:
    ready = plan.ready() if before is None else plan.ready(before)
    return [task for bundle in ready for task in bundle]


def planned(
    *files: DataFile, asked: Range = EVERYTHING, finished: dict[tuple[str, int], str] | None = None
) -> Plan:
    return scanned(Plan(asked, OPTIONS, finished or {}), *files)


def test_one_task_for_each_symbol_and_day(tmp_path: Path) -> None:
    made = ticks(1, 300, symbols=3, days=2)
    half = len(made) // 2
    files = [
        opened(write(tmp_path / name, some))
        for name, some in (("a.csv", made[:half]), ("b.csv", made[half:]))
    ]
    tasks = tasks_of(planned(*files))
    assert Counter({(t.symbol, t.day): t.rows for t in tasks}) == Counter(
        (e.symbol, e.src_ts // DAY) for e in made
    )
    assert all((t.start, t.end) == (t.day * DAY, (t.day + 1) * DAY) for t in tasks)


def test_a_day_waits_for_every_file_that_may_hold_it(tmp_path: Path) -> None:
    """And then it is given up, so that a plan of years holds days."""
    plan = planned(opened(write(tmp_path / "a.csv", ticks(2, 100, symbols=1, days=3))))
    assert [t.day for t in tasks_of(plan, DAY0 + 2)] == [DAY0, DAY0 + 1]
    assert tasks_of(plan, DAY0 + 2) == []
    assert [t.day for t in tasks_of(plan)] == [DAY0 + 2]
    assert plan.tasks == 3


def test_a_range_cuts_its_first_and_last_day(tmp_path: Path) -> None:
    asked = Range(FIRST + 3600 * SECOND, FIRST + DAY + 7200 * SECOND)
    tasks = tasks_of(
        planned(opened(write(tmp_path / "a.csv", ticks(3, 100, symbols=1, days=3))), asked=asked)
    )
    assert [(t.start, t.end) for t in tasks] == [
        (FIRST + 3600 * SECOND, FIRST + DAY),
        (FIRST + DAY, FIRST + DAY + 7200 * SECOND),
    ]


def test_what_is_finished_is_not_given_again(tmp_path: Path) -> None:
    file = opened(write(tmp_path / "a.csv", ticks(4, 100, symbols=2, days=2)))
    finished = {(t.group, t.day): t.fingerprint for t in tasks_of(planned(file))}
    gone = finished.pop(("p/S1", DAY0))
    plan = planned(file, finished={**finished, ("p/S1", DAY0): gone[::-1]})
    assert [(t.symbol, t.day) for t in tasks_of(plan)] == [("S1", DAY0)]
    assert (plan.tasks, plan.take_skipped(), plan.take_skipped()) == (4, 3, 0)


def test_what_changes_a_fingerprint(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ticks(5, 50, symbols=1, days=1))

    def prints(asked: Range = EVERYTHING, options: tuple[object, ...] = OPTIONS, **layout: object) -> str:
        (file,) = files_in(path, dataset(path, **layout), "p", "datasets.d")
        (task,) = tasks_of(scanned(Plan(asked, options, {}), file))
        return task.fingerprint

    first = prints()
    assert prints() == first
    different = [
        prints(options=(1, ())),
        prints(Range(FIRST + SECOND, None)),
        prints(price_scale=0.1),
    ]
    os.utime(path, ns=(0, 1))
    different.append(prints())
    path.write_text(path.read_text() + "\n")
    different.append(prints())
    assert len({first, *different}) == 6


def test_a_name_of_the_configuration_is_no_part_of_a_fingerprint(tmp_path: Path) -> None:
    file = opened(write(tmp_path / "a.csv", ticks(5, 5)))
    piece = Piece(file, Stamp(1, 2), Part(0, 1, 1))
    renamed = replace(piece, file=replace(file, layout=replace(file.layout, key="datasets.other")))
    assert fingerprint(OPTIONS, [piece]) == fingerprint(OPTIONS, [renamed])


def test_a_fault_goes_to_every_task_of_its_file(tmp_path: Path) -> None:
    good, bad = (
        opened(write(tmp_path / name, ticks(6, 40, symbols=2, days=1))) for name in ("a.csv", "b.csv")
    )
    plan = Plan(EVERYTHING, OPTIONS, {})
    plan.add(good, scan_file(good, plan.days, frozenset(), False))
    plan.add(bad, Scan(Stamp(1, 1), [Holding("p", "S0", DAY0, Part(0, 9, 1), 3)], "b.csv is damaged"))
    assert {t.symbol: t.fault for t in tasks_of(plan)} == {"S0": "b.csv is damaged", "S1": None}


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40), st.integers(1, 900_000)), max_size=60))
def test_every_task_is_in_one_bundle(parts: list[tuple[int, int, int]]) -> None:
    """Bundles are of bounded size, and read no more than their tasks one by one would."""
    file = DataFile(Path("f"), "f", layout_of(dataset("f"), "p", "d"))
    tasks = [
        Task("p", f"S{i}", 1, 0, 1, (Piece(file, Stamp(0, 0), Part(start, start + length, 1)),), rows, "")
        for i, (start, length, rows) in enumerate(parts)
    ]
    made = list(bundles(tasks))
    assert sorted(t.symbol for b in made for t in b) == sorted(t.symbol for t in tasks)
    for bundle in made:
        assert len(bundle) <= BUNDLE_TASKS
        assert len(bundle) == 1 or sum(t.rows for t in bundle) <= BUNDLE_ROWS
        spans = [t.pieces[0].part for t in bundle]
        together = max(s.stop for s in spans) - min(s.start for s in spans)
        assert together <= sum(s.stop - s.start for s in spans)


def test_symbols_of_one_block_are_read_at_once_and_days_apart(tmp_path: Path) -> None:
    file = opened(write(tmp_path / "a.csv", ticks(7, 300, symbols=5, days=2)))
    made = list(planned(file).ready())
    assert [len(bundle) for bundle in made] == [5, 5]


def test_files_of_one_symbol_are_apart(tmp_path: Path) -> None:
    for symbol in ("spy", "ibm"):
        (tmp_path / f"20131007_{symbol}_Trade_Tick.csv").write_text("34200000,1770000,100,P,,0\n")
    given = Dataset(path=str(tmp_path / "*.csv"), preset="lean")
    files = [f for path in sorted(tmp_path.iterdir()) for f in files_in(path, given, "lean", "d")]
    assert [[t.symbol for t in bundle] for bundle in planned(*files).ready()] == [["IBM"], ["SPY"]]


@pytest.mark.parametrize(
    ("start", "end", "days"), [(None, None, [0, -5, 99_999]), (DAY + 1, 3 * DAY, [1, 2])]
)
def test_days_of_a_range(start: int | None, end: int | None, days: list[int]) -> None:
    of = Plan(Range(start, end), OPTIONS, {}).days
    assert all(day in of for day in days)
    if start is not None:
        assert (0 in of, 3 in of) == (False, False)
