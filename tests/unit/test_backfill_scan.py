"""What a scan finds, against pandas; and what it says of files that are broken."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_core.config import Dataset
from market_data_pipeline.backfill.scan import Scan, scan_file
from market_data_pipeline.backfill.task import Stamp
from market_data_pipeline.producers.layout import DAY
from market_data_pipeline.producers.sources import files_in
from tests.unit.backfill_files import FIRST, opened, text_of, ticks, write
from tests.unit.strategies import SEEDS

ALL = range(0, 100_000)
DAY0 = FIRST // DAY


def rows_by_key(scan: Scan) -> dict[tuple[str, int], int]:
    assert len({(h.symbol, h.day) for h in scan.holdings}) == len(scan.holdings)
    return {(h.symbol, h.day): h.rows for h in scan.holdings}


@given(seed=SEEDS, n=st.integers(1, 400), name=st.sampled_from(["t.csv", "t.zip", "t.parquet"]))
@settings(max_examples=30)
def test_rows_by_symbol_and_day(seed: int, n: int, name: str) -> None:
    made = ticks(seed, n, symbols=4, days=3)
    with tempfile.TemporaryDirectory() as folder:
        file = opened(write(Path(folder) / name, made))
        scan = scan_file(file, ALL, frozenset(), False)
    frame = pd.DataFrame({"symbol": [e.symbol for e in made], "day": [e.src_ts // DAY for e in made]})
    assert rows_by_key(scan) == frame.value_counts().to_dict()
    assert scan.fault is None


def test_only_what_was_asked(tmp_path: Path) -> None:
    made = ticks(3, 300, symbols=3, days=3)
    scan = scan_file(
        opened(write(tmp_path / "t.csv", made)), range(DAY0 + 1, DAY0 + 2), frozenset({"S1"}), False
    )
    assert list(rows_by_key(scan)) == [("S1", DAY0 + 1)]
    assert scan.stamp == Stamp.of(tmp_path / "t.csv")


def test_a_row_that_is_no_event(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text_of(ticks(4, 20, symbols=1, days=1)) + "soon,S0,1,1,99\n")
    failed = scan_file(opened(path), ALL, frozenset(), False)
    assert failed.fault is not None
    assert failed.fault.startswith(f"{path}:")
    assert "--bad-rows skip" in failed.fault
    skipped = scan_file(opened(path), ALL, frozenset(), True)
    assert (skipped.fault, len(skipped.holdings)) == (None, 1)


@pytest.mark.parametrize("name", ["t.csv.gz", "t.parquet"])
def test_a_file_that_is_cut_short(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ticks(5, 4000, days=1), group=4000)
    file = opened(path)
    path.write_bytes(path.read_bytes()[:-3000])
    scan = scan_file(file, ALL, frozenset(), False)
    assert scan.fault is not None
    assert str(path) in scan.fault


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ticks(6, 4))
    file = opened(path)
    path.unlink()
    scan = scan_file(file, ALL, frozenset(), False)
    assert (scan.fault, scan.stamp, scan.holdings) == (
        f"{path} cannot be read: No such file or directory; check the file",
        None,
        [],
    )


def test_a_day_of_an_exchange_is_of_two_days_in_utc(tmp_path: Path) -> None:
    """A trade at 19:30 in New York, in winter, is of the next day."""
    path = tmp_path / "20131209_ibm_Trade_Tick.csv"
    path.write_text("34200000,1770000,100,P,,0\n70200000,1770500,50,P,,0\n")
    (file,) = files_in(path, Dataset(path=str(path), preset="lean"), "lean", "d")
    day = (pd.Timestamp("2013-12-09") - pd.Timestamp("1970-01-01")).days
    assert rows_by_key(scan_file(file, ALL, frozenset(), False)) == {("IBM", day): 1, ("IBM", day + 1): 1}
