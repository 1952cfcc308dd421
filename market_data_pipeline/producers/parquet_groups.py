"""Row groups of a Parquet file as parts: which symbols and times are in each, by its statistics where they tell."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from market_data_core.batch import EventBatch
from market_data_pipeline.producers.event_maker import EventMaker
from market_data_pipeline.producers.layout import DAY, Layout
from market_data_pipeline.producers.parquet_file import columns_of, opened, read_parquet
from market_data_pipeline.producers.part import Part
from market_data_pipeline.producers.provider import BadRow


def parquet_parts(path: Path, layout: Layout) -> Iterator[tuple[Part, Iterator[EventBatch | BadRow]]]:
    """Every row group with its symbols and times.

    ``layout`` has the columns of time and symbol alone. Where the statistics say that all rows are of one symbol and
    of one day, no row is read, and every row is said to be at the first time of the group.

    Raises:
        MissingExtra, DatasetError: as ``read_parquet``.
    """
    with opened(path) as file:
        names, exact = columns_of(path, file, layout)
        row = 1
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            part = Part(number, number + 1, row)
            known = _by_statistics(file, group, names, exact)
            yield part, iter([known]) if known is not None else read_parquet(path, layout, part=part)
            row += group.num_rows


def _by_statistics(file: Any, group: Any, names: dict[str, str], layout: Layout) -> EventBatch | None:
    """The times and symbols of a row group, where its statistics tell enough of them."""
    n = group.num_rows
    ends = _ends(file, group, names["time"])
    if ends is None or n == 0 or (layout.time_zone != "UTC" and layout.base is not None):
        return None
    symbols = None
    if "symbol" in names:
        named = _ends(file, group, names["symbol"])
        if named is None or named[0] != named[1]:
            return None
        symbols = (np.zeros(2, np.int32), [str(named[0])])
    if isinstance(ends[0], datetime):
        if layout.time_zone != "UTC":
            return None  # the hour that a change of clocks makes or takes has no order
        plain = [t if t.tzinfo is None else t.astimezone(UTC).replace(tzinfo=None) for t in ends]
        times = np.array(plain, "M8[us]")
    elif isinstance(ends[0], int):
        times = np.array(ends, np.int64)
    else:
        return None
    batch, reasons = EventMaker(layout).make({"time": times}, np.arange(1, 3), symbols)
    if reasons or batch.src_ts[0] // DAY != batch.src_ts[1] // DAY:
        return None
    return batch.take(np.zeros(n, np.intp))


def _ends(file: Any, group: Any, name: str) -> tuple[Any, Any] | None:
    """The least and the greatest value of a column, if that is known of all of its rows."""
    index = file.schema_arrow.get_field_index(name)
    if index < 0 or group.num_columns != len(file.schema_arrow.names):
        return None
    found = group.column(index).statistics
    if found is None or not found.has_min_max or found.null_count != 0 or not found.has_null_count:
        return None
    return found.min, found.max
