"""Bars of files, bundle by bundle, against the recount and against one reduction of all events, to the last bit."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_core.batch import BarBatch, EventBatch
from market_data_core.errors import DatasetError
from market_data_core.events import StreamEvent
from market_data_core.ohlcv import merge_bars, partial_bars
from market_data_pipeline.backfill.bars import Made, bars_of, make_bars, slices
from market_data_pipeline.backfill.desk import Desk
from market_data_pipeline.backfill.plan import Plan
from market_data_pipeline.backfill.scan import scan_file
from market_data_pipeline.backfill.task import Bundle
from market_data_pipeline.producers.layout import DAY
from market_data_pipeline.producers.replay import Range
from market_data_pipeline.producers.sources import DataFile
from tests import oracle
from tests.unit.backfill_files import FIRST, SECOND, opened, ticks, write
from tests.unit.strategies import SEEDS

EVERYTHING = Range(None, None)
DESK = Desk(
    store_url="",
    timeout_s=1.0,
    topic="backfill/t",
    window_ns=300 * SECOND,
    kinds=("tick", "bar"),
    horizon_ns=120 * SECOND,
)


def planned(files: list[DataFile], asked: Range = EVERYTHING) -> list[Bundle]:
    plan = Plan(asked, (), {})
    for file in files:
        plan.add(file, scan_file(file, plan.days, frozenset(), False))
    return list(plan.ready())


def made_of(files: list[DataFile], asked: Range = EVERYTHING, desk: Desk = DESK) -> list[Made]:
    return [make_bars(desk, bundle) for bundle in planned(files, asked)]


def bits(bars: BarBatch) -> dict[tuple[str, str, int], tuple[bytes, ...]]:
    names = ("open", "high", "low", "close", "volume", "volume_lo", "notional", "notional_lo")
    more = ("n_events", "first_ts", "first_seq", "last_ts", "last_seq")
    columns = [getattr(bars, name) for name in names + more]
    out = {}
    for i, (code, ts) in enumerate(zip(bars.code.tolist(), bars.ts.tolist(), strict=True)):
        series = bars.series[code]
        out[series.provider, series.symbol, ts] = tuple(column[i].tobytes() for column in columns)
    assert len(out) == len(bars)
    return out


def distinct(events: list[StreamEvent]) -> list[StreamEvent]:
    return list({e.event_id: e for e in events}.values())


@given(
    seed=SEEDS,
    n=st.integers(1, 600),
    files=st.integers(1, 3),
    disorder=st.sampled_from([0.0, 1.0, 50_000.0]),
    name=st.sampled_from(["csv", "csv.gz", "parquet"]),
)
@settings(max_examples=40)
def test_bars_are_those_of_all_events(seed: int, n: int, files: int, disorder: float, name: str) -> None:
    """However symbols, days and files are cut, and in whatever order rows and copies come."""
    made = ticks(seed, n, symbols=4, days=3, disorder_s=disorder)
    with tempfile.TemporaryDirectory() as folder:
        some = [[e for e in made if e.seq % files == i] for i in range(files)]
        written = [
            opened(write(Path(folder) / f"{i}.{name}", part, group=40)) for i, part in enumerate(some) if part
        ]
        results = made_of(written)
    bars = BarBatch.concat([m.bars for m in results])
    want = distinct(made)
    oracle.assert_equal(bars.bars(), oracle.recount(want, DESK.window_ns))
    assert bits(bars) == bits(partial_bars(EventBatch.from_events(want), DESK.window_ns))
    assert sum(m.events for m in results) == len(want)
    assert sum(m.duplicates for m in results) == len(made) - len(want)


@given(seed=SEEDS, start=st.integers(0, 500), length=st.integers(1, 600))
@settings(max_examples=20)
def test_a_range_holds_only_its_events(seed: int, start: int, length: int) -> None:
    asked = Range(FIRST + start * DESK.window_ns, FIRST + (start + length) * DESK.window_ns)
    made = ticks(seed, 400, days=3)
    with tempfile.TemporaryDirectory() as folder:
        results = made_of([opened(write(Path(folder) / "t.csv", made))], asked)
    inside = [e for e in distinct(made) if FIRST + start * DESK.window_ns <= e.src_ts < (asked.end or 0)]
    bars = [bar for m in results for bar in m.bars.bars()]
    oracle.assert_equal(bars, oracle.recount(inside, DESK.window_ns))


def test_rows_too_late_for_the_stream_are_told(tmp_path: Path) -> None:
    """The stream would put them aside; here they count, and so does it only once."""
    (first, *_) = ticks(1, 1, symbols=1, days=1, copies=0)
    at = [0, 121, 0, 1, 2, 122]
    events = [replace(first, src_ts=FIRST + s * SECOND, seq=s) for s in at]
    (made,) = made_of([opened(write(tmp_path / "t.csv", events))])
    assert (made.events, made.duplicates, made.behind) == (5, 1, 2)


def test_kinds_that_make_no_bars_are_passed_over(tmp_path: Path) -> None:
    file = opened(write(tmp_path / "t.csv", ticks(2, 30, copies=0)))
    results = made_of([file], desk=replace(DESK, kinds=("bar",)))
    assert (sum(m.passed_over for m in results), sum(len(m.bars) for m in results)) == (30, 0)


def test_a_row_that_is_no_event(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ticks(3, 30, symbols=1, days=1, copies=0))
    path.write_text(path.read_text() + f"{FIRST + SECOND},S0,-1e99,1,99\n")
    with pytest.raises(DatasetError, match=r"t\.csv:32 is no event: price .*--bad-rows skip"):
        made_of([opened(path)])
    (made,) = made_of([opened(path)], desk=replace(DESK, skip_bad_rows=True))
    assert (made.events, made.bad_rows) == (30, 1)


def test_a_file_that_changes_between_plan_and_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ticks(4, 30, symbols=1, days=1))
    (bundle,) = planned([opened(path)])
    path.write_text(path.read_text() + "\n")
    with pytest.raises(DatasetError, match="was changed while it was read; run the backfill again"):
        make_bars(DESK, bundle)
    path.unlink()
    with pytest.raises(DatasetError, match="cannot be read: No such file"):
        make_bars(DESK, bundle)


def test_two_files_that_give_an_event_twice_are_refused(tmp_path: Path) -> None:
    """As in a replay: nobody knows whether it is one trade or two."""
    events = ticks(5, 10, symbols=1, days=1, copies=0)
    files = [opened(write(tmp_path / name, events)) for name in ("a.csv", "b.csv")]
    with pytest.raises(DatasetError, match="one would pass for a copy of the other"):
        made_of(files)


def test_bars_of_a_symbol_and_slices(tmp_path: Path) -> None:
    (made, _) = made_of([opened(write(tmp_path / "t.csv", ticks(6, 200, symbols=3, days=2)))])
    parts = [bars_of(made.bars, f"S{i}") for i in range(3)]
    assert sum(len(p) for p in parts) == len(made.bars)
    assert all({p.series[c].symbol for c in p.code.tolist()} == {f"S{i}"} for i, p in enumerate(parts))
    cut = list(slices(parts[0], 7))
    assert [len(c) for c in cut[:-1]] == [7] * (len(cut) - 1)
    assert bits(merge_bars(BarBatch.concat(cut))) == bits(parts[0])
    assert list(slices(BarBatch.empty(), 7)) == []
    assert np.all(parts[0].ts // DAY == FIRST // DAY)
