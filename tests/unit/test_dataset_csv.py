"""CSV to events: what is read, and what is said of what cannot be."""

from __future__ import annotations

import gzip
import io
import random
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_core.batch import EventBatch
from market_data_core.codecs import parse_time
from market_data_core.config import Dataset
from market_data_core.errors import DatasetError
from market_data_core.events import StreamEvent
from market_data_pipeline.producers.csv_file import read_csv
from market_data_pipeline.producers.layout import layout_of
from market_data_pipeline.producers.provider import BadRow
from market_data_pipeline.producers.sources import sources_of

TICKS: dict[str, Any] = {
    "path": "x.csv",
    "columns": {"time": "ts", "symbol": "sym", "price": "px", "volume": "qty"},
}


def dataset(**changes: Any) -> Dataset:
    return Dataset.model_validate({**TICKS, **changes})


def read(
    data: bytes | str, given: Dataset | None = None, block: int = 1 << 21
) -> tuple[list[StreamEvent], list[BadRow]]:
    raw = data.encode() if isinstance(data, str) else data
    layout = layout_of(given or dataset(), "p", "datasets.d")
    items = list(read_csv(io.BytesIO(raw), "f.csv", layout, block))
    return (
        [e for item in items if isinstance(item, EventBatch) for e in item.events()],
        [item for item in items if isinstance(item, BadRow)],
    )


def test_named_columns_in_any_order() -> None:
    events, bad = read("qty,junk,sym,px,ts\n100,x,spy,1.5,2025-01-02T03:04:05.678901Z\n")
    assert bad == []
    at = parse_time("2025-01-02T03:04:05.678901Z")
    assert events == [StreamEvent("p", "SPY", "tick", "1s", at, 0, 1.5, 1.5, 1.5, 1.5, 100.0, 2)]


def test_positions_without_a_header() -> None:
    given = dataset(columns={"time": 0, "price": 1}, symbol="abc", header=False, time_unit="s")
    events, bad = read("1700000000,10\n1700000001,11\n", given)
    assert bad == []
    assert [(e.symbol, e.src_ts, e.c, e.v, e.seq) for e in events] == [
        ("ABC", 1_700_000_000 * 10**9, 10.0, 0.0, 1),
        ("ABC", 1_700_000_001 * 10**9, 11.0, 0.0, 2),
    ]


def test_bars() -> None:
    columns = {"time": "t", "open": "o", "high": "h", "low": "l", "close": "c", "volume": "v"}
    given = dataset(columns=columns, symbol="A", kind="bar", interval="1m")
    events, bad = read("t,o,h,l,c,v\n2025-01-02T03:04:00Z,2,4,1,3,9\n2025-01-02T03:05:00Z,2,1,4,3,9\n", given)
    assert [(e.kind, e.interval, e.o, e.h, e.l, e.c, e.v) for e in events] == [("bar", "1m", 2, 4, 1, 3, 9)]
    assert [(b.place, b.reason) for b in bad] == [("f.csv:3", "l 4 is above h 1")]


@pytest.mark.parametrize(
    ("unit", "written", "ns"),
    [
        ("s", "1700000000", 1_700_000_000 * 10**9),
        ("s", "1700000000.123456", 1_700_000_000_123_456_000),
        ("ms", "1700000000123", 1_700_000_000_123 * 10**6),
        ("ms", "1700000000123.5", 1_700_000_000_123_500_000),
        ("us", "1700000000123456", 1_700_000_000_123_456_000),
        ("ns", "1700000000123456789", 1_700_000_000_123_456_789),
        ("s", "-1", -(10**9)),
        ("iso", "2023-11-14T22:13:20Z", 1_700_000_000 * 10**9),
        ("iso", "2023-11-14 22:13:20.5", 1_700_000_000_500_000_000),
        ("iso", "2023-11-14T17:13:20-05:00", 1_700_000_000 * 10**9),
        ("iso", "2023-11-14T22:13:20.123456789Z", 1_700_000_000_123_456_789),
        ("iso", "2023-11-15", 1_700_006_400 * 10**9),
    ],
)
def test_times(unit: str, written: str, ns: int) -> None:
    events, bad = read(f"ts,sym,px,qty\n{written},A,1,1\n", dataset(time_unit=unit))
    assert (bad, [e.src_ts for e in events]) == ([], [ns])


def test_times_without_a_zone_are_of_the_time_zone() -> None:
    """Winter and summer, with and without a zone of their own, in one file."""
    rows = ["2025-01-02T09:30:00", "2025-07-02T09:30:00", "2025-07-02T09:30:00Z", "2025-07-02T09:30:00+02:00"]
    events, bad = read(
        "ts,sym,px,qty\n" + "".join(f"{r},A,1,1\n" for r in rows), dataset(time_zone="America/New_York")
    )
    assert bad == []
    assert [e.src_ts for e in events] == [
        parse_time(t)
        for t in (
            "2025-01-02T14:30:00Z",
            "2025-07-02T13:30:00Z",
            "2025-07-02T09:30:00Z",
            "2025-07-02T07:30:00Z",
        )
    ]


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
@pytest.mark.parametrize(
    "word",
    [
        "now",
        "today",
        "NaT",
        "",
        "2025-02-30T00:00:00Z",
        "2025-01-01T25:00:00",
        "9999-01-01T00:00:00Z",
        "1381152600000",
    ],
)
def test_what_is_no_time(zone: str, word: str) -> None:
    events, bad = read(
        f"ts,sym,px,qty\n2025-01-02T09:30:00Z,A,1,1\n{word},A,1,1\n2025-01-02T09:30:00Z,A,1,1\n",
        dataset(time_zone=zone),
    )
    assert [e.seq for e in events] == [2, 4]
    assert [(b.place, b.value) for b in bad] == [("f.csv:3", f"{word},A,1,1".encode())]
    assert "is not a time in a year from 1678 to 2261" in bad[0].reason


def test_numbers_since_midnight_of_a_day() -> None:
    given = dataset(time_unit="ms", base_date="2013-10-07", time_zone="America/New_York")
    events, _ = read("ts,sym,px,qty\n34200000,A,1,1\n", given)
    assert events[0].src_ts == parse_time("2013-10-07T13:30:00Z")


@pytest.mark.parametrize(
    ("scale", "want"), [(0.0001, 167.41), (0.01, 16741.0), (100.0, 167410000.0), (1.0, 1674100.0)]
)
def test_price_scale_rounds_as_the_decimal_does(scale: float, want: float) -> None:
    events, _ = read("ts,sym,px,qty\n2025-01-02T03:04:05Z,A,1674100,1\n", dataset(price_scale=scale))
    assert events[0].c == want


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e12, 1e12, allow_nan=False), min_size=1, max_size=30))
def test_prices_are_the_nearest_floats(prices: list[float]) -> None:
    text = "ts,sym,px,qty\n" + "".join(f"2025-01-02T03:04:05Z,A,{p!r},1\n" for p in prices)
    events, bad = read(text)
    assert (bad, [e.c for e in events]) == ([], prices)


def test_a_seq_column() -> None:
    given = dataset(columns={**TICKS["columns"], "seq": "n"})
    events, bad = read(
        "n,ts,sym,px,qty\n77,2025-01-02T03:04:05Z,A,1,1\nx,2025-01-02T03:04:05Z,A,1,1\n", given
    )
    assert [e.seq for e in events] == [77]
    assert bad[0].reason == "seq 'x' is not a whole number"


BAD_LINES = [
    ("2025-01-02T03:04:05Z,A,1", "has 3 columns, not 4"),
    ("2025-01-02T03:04:05Z,A,1,1,9", "has 5 columns, not 4"),
    ("2025-01-02T03:04:05Z,A,x,1", "price 'x' is not a number"),
    ("2025-01-02T03:04:05Z,A,,1", "price '' is not a number"),
    ("2025-01-02T03:04:05Z,A,nan,1", "price 'nan' is not a number"),
    ("2025-01-02T03:04:05Z,A,inf,1", "price is not a finite number"),
    ("2025-01-02T03:04:05Z,A,1_0,1", "price '1_0' is not a number"),
    ("2025-01-02T03:04:05Z,A,0x10,1", "price '0x10' is not a number"),
    ("2025-01-02T03:04:05Z,A,1e400,1", "price is not a finite number"),
    ("2025-01-02T03:04:05Z,A,1e13,1", "price 1e+13 is beyond the largest price 1e+12"),
    ("2025-01-02T03:04:05Z,A,1,-1", "volume -1 is negative"),
    ("2025-01-02T03:04:05Z,A,1,1e16", "volume 1e+16 is beyond the largest volume 1e+15"),
    ("2025-01-02T03:04:05Z,,1,1", "symbol: symbol must have 1 to 128 characters, not 0"),
    ("2025-01-02T03:04:05Z,A|B,1,1", "symbol: symbol has a '|' or a character that cannot be printed"),
    ('2025-01-02T03:04:05Z,"A,1,1', "is no CSV row: unexpected end of data"),
    ("2025-01-02T03:04:05Z,\udcff,1,1", "is not UTF-8 text"),
    ("2025-01-02T03:04:05Z,A,1\x00,1", "price '1\\x00' is not a number"),
]
GOOD = "2025-01-02T03:04:05Z,A,1,1"


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
@pytest.mark.parametrize("block", [30, 1 << 21])
def test_a_bad_line_is_told_and_its_neighbours_are_read(line: str, reason: str, block: int) -> None:
    raw = f"ts,sym,px,qty\n{GOOD}\n{GOOD}\n{line}\n{GOOD}\n".encode("utf-8", "surrogateescape")
    events, bad = read(raw, block=block)
    assert [e.seq for e in events] == [2, 3, 5]
    assert [(b.place, b.reason) for b in bad] == [("f.csv:4", reason)]
    assert bad[0].value == line.encode("utf-8", "surrogateescape")


@settings(max_examples=30, deadline=None)
@given(
    lines=st.lists(st.one_of(st.just((GOOD, "")), st.sampled_from(BAD_LINES)), max_size=40),
    block=st.sampled_from([100, 300, 1 << 21]),
    ending=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
)
def test_no_row_is_lost_silently(
    lines: Sequence[tuple[str, str]], block: int, ending: str, last: bool
) -> None:
    text = ending.join(["ts,sym,px,qty", *(line for line, _ in lines)]) + (ending if last else "")
    events, bad = read(text.encode("utf-8", "surrogateescape"), block=block)
    assert [e.seq for e in events] == [i for i, (_, reason) in enumerate(lines, 2) if not reason]
    found = {b.place: (b.value, b.reason) for b in bad}
    assert found == {
        f"f.csv:{i}": (line.encode("utf-8", "surrogateescape"), reason)
        for i, (line, reason) in enumerate(lines, 2)
        if reason
    }


@pytest.mark.parametrize("block", [16, 64, 1000])
def test_many_rows_are_numbered_through(block: int) -> None:
    rows = "".join(f"{1_700_000_000 + i},S{i % 7},{i},{i}\n" for i in range(500))
    events, bad = read("ts,sym,px,qty\n" + rows, dataset(time_unit="s"), block)
    assert bad == []
    assert [(e.seq, e.symbol, e.c) for e in events] == [(i + 2, f"S{i % 7}", float(i)) for i in range(500)]


def test_quotes_spaces_blank_lines_and_a_byte_order_mark() -> None:
    text = (
        '﻿"ts","sym","px","qty"\r\n"2025-01-02T03:04:05Z","A","1.5","10"\r\n\r\n'
        "2025-01-02T03:04:05Z, A , 2.5, 20\r\n"
    )
    events, bad = read(text)
    assert bad == []
    assert [(e.symbol, e.c, e.v, e.seq) for e in events] == [("A", 1.5, 10.0, 2), ("A", 2.5, 20.0, 4)]


def test_another_delimiter() -> None:
    events, bad = read("ts;sym;px;qty\n2025-01-02T03:04:05Z;A;1.5;2\n", dataset(delimiter=";"))
    assert (bad, [e.c for e in events]) == ([], [1.5])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"price": "cost"},
            "f.csv has no column 'cost'; it has ts, sym, px, qty; correct datasets.d.columns.price",
        ),
        (
            {"volume": 9},
            "f.csv has 4 columns, so none at position 9, counted from 0; correct datasets.d.columns.volume",
        ),
    ],
)
def test_a_wrong_mapping_names_the_columns_that_exist(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=f"^{message}$"):
        read(f"ts,sym,px,qty\n{GOOD}\n", dataset(columns={**TICKS["columns"], **columns}))


def test_a_column_that_is_there_twice() -> None:
    with pytest.raises(DatasetError, match="two columns 'px'"):
        read(f"ts,sym,px,qty,px\n{GOOD},1\n")


def test_an_empty_file() -> None:
    with pytest.raises(DatasetError, match=r"f\.csv is empty"):
        read("")
    assert read("ts,sym,px,qty\n") == ([], [])
    assert read("", dataset(columns={"time": 0, "price": 1}, symbol="A", header=False)) == ([], [])


def test_a_line_without_end() -> None:
    with pytest.raises(DatasetError, match="longer than 1 MiB"):
        read(b"ts,sym,px,qty\n" + b"1" * (3 << 20))


def rows_of(path: Path, given: Dataset | None = None) -> list[StreamEvent]:
    found = given or dataset(path=str(path), time_unit="s")
    out: list[StreamEvent] = []
    for source in sources_of(found, Path, "p", "datasets.d"):
        for item in source.read(1 << 16):
            assert isinstance(item, EventBatch)
            out += item.events()
    return out


CONTENT = "ts,sym,px,qty\n" + "".join(f"{1_700_000_000 + i},A,{i},1\n" for i in range(100))


def test_plain_gzip_and_zip(tmp_path: Path) -> None:
    plain, packed, archive = tmp_path / "a.csv", tmp_path / "a.csv.gz", tmp_path / "a.zip"
    plain.write_text(CONTENT)
    packed.write_bytes(gzip.compress(CONTENT.encode()))
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("b.csv", CONTENT)
        out.writestr("folder/", "")
        out.writestr("__MACOSX/b.csv", "rubbish")
        out.writestr("c.csv.gz", gzip.compress(CONTENT.encode()))
    want = rows_of(plain)
    assert len(want) == 100
    assert rows_of(packed) == want
    assert rows_of(archive) == want + want, "each inner file"
    assert rows_of(tmp_path / "a.csv*") == want + want, "a pattern names several"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(DatasetError) as raised:
            rows_of(path)
        return str(raised.value)

    assert "there is no file" in message(tmp_path / "none.csv")
    assert "is a folder" in message(tmp_path)
    cut = tmp_path / "cut.csv.gz"  # one endless line, so that nothing is read before the damage
    cut.write_bytes(gzip.compress(random.Random(1).randbytes(50_000).hex().encode())[:-100])
    assert "cut.csv.gz is damaged" in message(cut)
    empty = tmp_path / "empty.zip"
    with zipfile.ZipFile(empty, "w"):
        pass
    assert "zip without a file" in message(empty)
    broken = tmp_path / "broken.zip"
    with zipfile.ZipFile(broken, "w", zipfile.ZIP_STORED) as out:
        out.writestr("b.csv", CONTENT)
    broken.write_bytes(broken.read_bytes().replace(b"1700000050", b"1700000059", 1))
    assert "broken.zip/b.csv is damaged" in message(broken)


def test_a_file_without_permission_or_with_a_password(tmp_path: Path) -> None:
    locked = tmp_path / "locked.zip"
    with zipfile.ZipFile(locked, "w") as out:
        out.writestr("b.csv", CONTENT)
    raw = bytearray(locked.read_bytes())
    central = raw.index(b"PK\x01\x02")
    raw[central + 8] |= 1  # the flag of encryption
    locked.write_bytes(raw)
    with pytest.raises(DatasetError, match="is encrypted"):
        rows_of(locked)


def test_bounded_memory(tmp_path: Path) -> None:
    """A file is read in blocks: no batch is larger than a block of lines."""
    path = tmp_path / "big.csv"
    with path.open("w") as out:
        out.write("ts,sym,px,qty\n")
        for i in range(200_000):
            out.write(f"{1_700_000_000 + i},A,1,1\n")
    (source,) = sources_of(dataset(path=str(path), time_unit="s"), Path, "p", "d")
    sizes = [len(item) for item in source.read(1 << 16) if isinstance(item, EventBatch)]
    assert sum(sizes) == 200_000
    assert max(sizes) <= (1 << 16) // len("1700000000,A,1,1\n") + 1


def test_symbols_keep_their_codes() -> None:
    layout = layout_of(dataset(time_unit="s"), "p", "d")
    text = "ts,sym,px,qty\n" + "".join(f"{i},{s},1,1\n" for i, s in enumerate(["b", "a", "B", "c", "a"] * 40))
    batches = [b for b in read_csv(io.BytesIO(text.encode()), "f", layout, 64) if isinstance(b, EventBatch)]
    assert len(batches) > 3
    assert {s.symbol for s in batches[-1].series} == {"A", "B", "C"}
    names = np.concatenate([np.array([s.symbol for s in b.series])[b.code] for b in batches])
    assert names.tolist() == ["B", "A", "B", "C", "A"] * 40
