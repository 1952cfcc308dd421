"""A file read in parts is the file read whole, wherever it is cut."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_core.batch import EventBatch
from market_data_core.events import StreamEvent
from market_data_pipeline.producers import parquet_groups
from market_data_pipeline.producers.layout import DAY
from market_data_pipeline.producers.part import Part
from market_data_pipeline.producers.provider import BadRow
from market_data_pipeline.producers.sources import files_in
from tests.unit.backfill_files import FIRST, SECOND, dataset, opened, text_of, ticks, write
from tests.unit.strategies import SEEDS


def events(rows: Iterable[EventBatch | BadRow]) -> list[StreamEvent]:
    out: list[StreamEvent] = []
    for item in rows:
        assert isinstance(item, EventBatch), item
        out += item.events()
    return out


@given(
    seed=SEEDS,
    n=st.integers(1, 300),
    block=st.sampled_from([40, 200, 3000]),
    reading=st.sampled_from([64, 1 << 20]),
    name=st.sampled_from(["t.csv", "t.csv.gz", "t.zip", "t.parquet"]),
)
@settings(max_examples=60)
def test_parts_one_after_another_are_the_file(seed: int, n: int, block: int, reading: int, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = opened(write(Path(folder) / name, ticks(seed, n), group=1 + seed % 70))
        whole = events(file.source().read(1 << 20))
        parts = [part for part, _ in file.parts(block)]
        assert parts[0].start == 0
        assert all(a.stop == b.start for a, b in pairwise(parts))
        assert [e for part in parts for e in events(file.source(part).read(reading))] == whole
        rng = random.Random(seed)
        first, last = sorted((rng.randrange(len(parts)), rng.randrange(len(parts))))
        joined = parts[first].joined(parts[last])
        want = [e for part in parts[first : last + 1] for e in events(file.source(part).read(1 << 20))]
        assert events(file.source(joined).read(reading)) == want


@given(seed=SEEDS, n=st.integers(1, 120), block=st.sampled_from([40, 700]))
@settings(max_examples=30)
def test_row_numbers_are_the_files(seed: int, n: int, block: int) -> None:
    """Without a column of numbers the number of the line is part of what an event is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        header = seed % 2 == 0
        text = text_of(ticks(seed, n), header=header, end="\r\n" if seed % 3 == 0 else "\n")
        if seed % 5 == 0:
            text = text.rstrip("\r\n")
        path.write_bytes((b"\xef\xbb\xbf" if header and seed % 7 == 0 else b"") + text.encode())
        columns = {"time": 0, "symbol": 1, "price": 2, "volume": 3}
        (file,) = files_in(path, dataset(path, columns=columns, header=header), "p", "d")
        whole = events(file.source().read(1 << 20))
        assert [e.seq for e in whole] == list(range(2 if header else 1, n_lines(text) + 1))
        parts = [part for part, _ in file.parts(block)]
        assert [e for part in parts for e in events(file.source(part).read(block))] == whole


def n_lines(text: str) -> int:
    return len(text.splitlines())


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet"])
def test_parts_tell_times_and_symbols(tmp_path: Path, name: str) -> None:
    made = ticks(1, 200)
    file = opened(write(tmp_path / name, made))
    told = [(e.symbol, e.src_ts) for _, rows in file.parts(500) for e in events(rows)]
    assert told == [(e.symbol, e.src_ts) for e in made]


def test_statistics_spare_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = sorted(ticks(2, 400, copies=0), key=lambda e: (e.symbol, e.src_ts))
    path = tmp_path / "t.parquet"
    with pq.ParquetWriter(path, _table(made[:1]).schema) as writer:
        for symbol in ("S0", "S1", "S2"):
            for day in (FIRST, FIRST + DAY):
                writer.write_table(
                    _table([e for e in made if e.symbol == symbol and e.src_ts // DAY == day // DAY])
                )

    def unread(*_: object, **__: object) -> None:
        raise AssertionError("rows were read")

    monkeypatch.setattr(parquet_groups, "read_parquet", unread)
    told = [(part, events(rows)) for part, rows in opened(path).parts(0)]
    assert [part.start for part, _ in told] == list(range(6))
    for (part, rows), (symbol, day) in zip(
        told, [(f"S{i}", FIRST + j * DAY) for i in range(3) for j in range(2)], strict=True
    ):
        want = [e for e in made if e.symbol == symbol and e.src_ts // DAY == day // DAY]
        assert {(e.symbol, e.src_ts // DAY) for e in rows} == {(symbol, day // DAY)}
        assert (len(rows), part.row) == (len(want), 1 + made.index(want[0]))


def _table(made: list[StreamEvent]) -> pa.Table:
    times = pa.array([e.src_ts // 1000 for e in made], pa.timestamp("us", "UTC"))
    rest = {"price": [e.c for e in made], "size": [e.v for e in made], "seq": [e.seq for e in made]}
    return pa.table({"time": times, "symbol": [e.symbol for e in made], **rest})


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_a_zone_of_the_file_moves_the_days(tmp_path: Path, zone: str) -> None:
    """Statistics of times with a zone are of UTC; those of wall times are not asked."""
    at = FIRST + 23 * 3600 * SECOND  # an hour before midnight in UTC, five before it in New York
    aware = zone != "UTC"
    kind = pa.timestamp("us", zone) if aware else pa.timestamp("us")
    times = pa.array([at // 1000, at // 1000 + 60_000_000], kind)
    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.table({"time": times, "symbol": ["A"] * 2, "price": [1.0] * 2, "size": [1.0] * 2, "seq": [1, 2]}),
        path,
    )
    file = opened(path)
    days = {e.src_ts // DAY for _, rows in file.parts(0) for e in events(rows)}
    assert days == {e.src_ts // DAY for e in events(file.source().read(1 << 20))} == {FIRST // DAY}


def test_the_smallest_part_that_covers_both() -> None:
    assert Part(10, 20, 3).joined(Part(0, 5, 1)) == Part(0, 20, 1)
    assert Part(0, 30, 1).joined(Part(10, 20, 3)) == Part(0, 30, 1)
