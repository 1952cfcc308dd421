"""Files of random events for the tests of backfills, and the same events for an oracle."""

from __future__ import annotations

import gzip
import random
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from market_data_core.config import Dataset
from market_data_core.events import StreamEvent
from market_data_pipeline.producers.layout import DAY
from market_data_pipeline.producers.sources import DataFile, files_in

NAMES = ("time", "symbol", "price", "size", "seq")
COLUMNS = {"time": "time", "symbol": "symbol", "price": "price", "volume": "size", "seq": "seq"}
FIRST = 20_000 * DAY
SECOND = 10**9


def dataset(path: Path | str, **other: object) -> Dataset:
    """How the files here are read."""
    given = {"path": str(path), "provider": "p", "columns": COLUMNS, "time_unit": "ns"} | other
    return Dataset.model_validate(given)


def opened(path: Path) -> DataFile:
    """The one file of rows at ``path``."""
    (file,) = files_in(path, dataset(path), "p", "datasets.d")
    return file


def ticks(
    seed: int, n: int, *, symbols: int = 3, days: int = 2, copies: float = 0.1, disorder_s: float = 0.0
) -> list[StreamEvent]:
    """Ticks of whole microseconds on ``days`` from FIRST on, in order but for ``disorder_s``; some come twice."""
    rng = random.Random(seed)
    out = []
    for seq in range(n):
        at = FIRST + rng.randrange(days * DAY) // 1000 * 1000
        price = round(rng.uniform(10, 500), 2)
        symbol, size = f"S{rng.randrange(symbols)}", float(rng.randrange(900))
        out.append(StreamEvent("p", symbol, "tick", "1s", at, 0, price, price, price, price, size, seq))
    out += [e for e in out if rng.random() < copies]
    return sorted(out, key=lambda e: e.src_ts + rng.uniform(0, disorder_s) * SECOND)


def text_of(events: Sequence[StreamEvent], *, header: bool = True, end: str = "\n") -> str:
    """The events as a CSV."""
    rows = [f"{e.src_ts},{e.symbol},{e.c!r},{e.v!r},{e.seq}" for e in events]
    return end.join([",".join(NAMES), *rows] if header else rows) + end


def write(path: Path, events: Sequence[StreamEvent], *, group: int = 50) -> Path:
    """The events in a file, of the format that its name says; ``group`` rows a row group of Parquet."""
    text = text_of(events)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("ticks.csv", text)
    elif path.suffix == ".parquet":
        rows = {
            "time": [e.src_ts for e in events],
            "symbol": [e.symbol for e in events],
            "price": [e.c for e in events],
            "size": [e.v for e in events],
            "seq": [e.seq for e in events],
        }
        pq.write_table(pa.table(rows), path, row_group_size=group)
    else:
        path.write_text(text)
    return path
