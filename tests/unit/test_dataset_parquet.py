"""Parquet to events."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from market_data_core.batch import EventBatch
from market_data_core.codecs import parse_time
from market_data_core.config import Dataset
from market_data_core.errors import DatasetError, MissingExtra
from market_data_core.events import StreamEvent
from market_data_pipeline.producers.provider import BadRow
from market_data_pipeline.producers.sources import sources_of

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

COLUMNS = {"time": "ts", "symbol": "sym", "price": "px", "volume": "qty"}
AT = parse_time("2025-01-02T14:30:00Z")


def read(path: Path, table: Any, **changes: Any) -> tuple[list[StreamEvent], list[BadRow]]:
    file = path / "t.parquet"
    pq.write_table(table, file)
    given = Dataset.model_validate({"path": str(file), "columns": COLUMNS, **changes})
    (source,) = sources_of(given, Path, "p", "datasets.d")
    items = list(source.read(1 << 16))
    return (
        [e for item in items if isinstance(item, EventBatch) for e in item.events()],
        [item for item in items if isinstance(item, BadRow)],
    )


def table(**columns: Any) -> Any:
    given = {
        "ts": pa.array([AT], pa.timestamp("ns", "UTC")),
        "sym": ["spy"],
        "px": [1.5],
        "qty": [10],
        "junk": [None],
    }
    return pa.table({**given, **columns})


@pytest.mark.parametrize(
    ("times", "changes"),
    [
        (pa.array([AT], pa.timestamp("ns", "UTC")), {"time_zone": "Europe/Berlin"}),
        (pa.array([AT // 10**6], pa.timestamp("ms", "America/New_York")), {}),
        (pa.array([datetime(2025, 1, 2, 14, 30)], pa.timestamp("us")), {}),
        (pa.array([datetime(2025, 1, 2, 9, 30)], pa.timestamp("us")), {"time_zone": "America/New_York"}),
        (pa.array([AT]), {"time_unit": "ns"}),
        (pa.array([AT // 10**9], pa.int32()), {"time_unit": "s"}),
        (pa.array([AT / 10**9]), {"time_unit": "s"}),
        (pa.array(["2025-01-02T14:30:00Z"]), {}),
        (pa.array(["2025-01-02 09:30"]), {"time_zone": "America/New_York"}),
    ],
)
def test_times_of_every_type(tmp_path: Path, times: Any, changes: dict[str, Any]) -> None:
    events, bad = read(tmp_path, table(ts=times), **changes)
    assert bad == []
    assert events == [StreamEvent("p", "SPY", "tick", "1s", AT, 0, 1.5, 1.5, 1.5, 1.5, 10.0, 1)]


def test_numbers_and_symbols_of_other_types(tmp_path: Path) -> None:
    columns = {
        "sym": pa.array(["a"]).dictionary_encode(),
        "px": pa.array([Decimal("425.15")]),
        "qty": pa.array([3], pa.uint16()),
    }
    events, _ = read(tmp_path, table(**columns))
    assert [(e.symbol, e.c, e.v) for e in events] == [("A", 425.15, 3.0)]


def test_many_row_groups_are_numbered_through(tmp_path: Path) -> None:
    n = 20_000
    file = tmp_path / "t.parquet"
    many = pa.table(
        {"ts": list(range(n)), "sym": [f"S{i % 9}" for i in range(n)], "px": [1.0] * n, "qty": [1] * n}
    )
    pq.write_table(many, file, row_group_size=3000)
    given = Dataset.model_validate({"path": str(file), "columns": COLUMNS, "time_unit": "s"})
    (source,) = sources_of(given, Path, "p", "d")
    batches = [b for b in source.read(1 << 16) if isinstance(b, EventBatch)]
    assert len(batches) > 5
    events = [e for b in batches for e in b.events()]
    assert [(e.seq, e.src_ts, e.symbol) for e in events] == [
        (i + 1, i * 10**9, f"S{i % 9}") for i in range(n)
    ]


def test_bad_rows_are_told(tmp_path: Path) -> None:
    five = table(
        ts=pa.array([AT, None, AT, AT, AT], pa.timestamp("ns", "UTC")),
        sym=["a", "a", None, "a", "a"],
        px=[1.0, 1.0, 1.0, float("nan"), 2.0],
        qty=[1, 1, 1, 1, -1],
        junk=[None] * 5,
    )
    events, bad = read(tmp_path, five)
    assert [e.seq for e in events] == [1]
    assert [(b.place.rpartition(":")[2], b.reason) for b in bad] == [
        ("2", "a value is missing"),
        ("3", "a value is missing"),
        ("4", "price is not a finite number"),
        ("5", "volume -1 is negative"),
    ]
    assert b'"px": 2.0' in bad[3].value


@pytest.mark.parametrize(
    ("columns", "changes", "message"),
    [
        (
            {},
            {"columns": {**COLUMNS, "price": "cost"}},
            "has no column 'cost'; it has ts, sym, px, qty, junk",
        ),
        ({}, {"columns": {**COLUMNS, "price": 8}}, "has 5 columns, so none at position 8"),
        ({"ts": [AT]}, {}, "is int64, which time_unit iso does not fit; correct datasets.d.time_unit"),
        ({"ts": ["x"]}, {"time_unit": "s"}, "is string, which time_unit s does not fit"),
        ({"px": ["dear"]}, {}, "the column of price in .* has no numbers"),
    ],
)
def test_a_wrong_mapping_is_explained(
    tmp_path: Path, columns: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        read(tmp_path, table(**columns), **changes)


def test_no_parquet_inside(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    file.write_text("ts,sym,px,qty\n")
    given = Dataset.model_validate({"path": str(file), "columns": COLUMNS})
    (source,) = sources_of(given, Path, "p", "d")
    with pytest.raises(DatasetError, match="cannot be read as Parquet"):
        list(source.read(1 << 16))


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    given = Dataset.model_validate({"path": __file__, "format": "parquet", "columns": COLUMNS})
    (source,) = sources_of(given, Path, "p", "d")
    with pytest.raises(MissingExtra, match=r"pip install 'mdp\[parquet\]'"):
        list(source.read(1 << 16))


def test_utc_means_utc() -> None:
    assert datetime(2025, 1, 2, 14, 30, tzinfo=UTC).timestamp() * 10**9 == AT
