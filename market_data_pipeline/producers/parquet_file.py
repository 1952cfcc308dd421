"""Parquet to events, a batch of rows at a time. Needs the extra ``parquet``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from market_data_core.batch import EventBatch
from market_data_core.errors import DatasetError, MissingExtra
from market_data_pipeline.producers.event_maker import EventMaker
from market_data_pipeline.producers.layout import Layout
from market_data_pipeline.producers.part import Part
from market_data_pipeline.producers.provider import BadRow


def read_parquet(
    path: Path, layout: Layout, rows: int = 65_536, part: Part | None = None
) -> Iterator[EventBatch | BadRow]:
    """Events of a Parquet file in file order, and its bad rows (as JSON); ``seq`` is the row number, from 1.

    ``part``: only those of these row groups.

    Raises:
        MissingExtra: pyarrow is not installed.
        DatasetError: the file is no Parquet, or a column is missing or of a type that cannot be it.
    """
    with opened(path) as file:
        names, layout = columns_of(path, file, layout)
        maker = EventMaker(layout)
        first = 1 if part is None else part.row
        groups = None if part is None else range(part.start, part.stop)
        wanted = sorted(set(names.values()))
        for table in file.iter_batches(batch_size=rows, row_groups=groups, columns=wanted):
            yield from _events(path, table, names, maker, first)
            first += table.num_rows


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A ``pyarrow.parquet.ParquetFile``; what is wrong with it becomes a DatasetError."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra("reading Parquet needs pyarrow; run: pip install 'mdp[parquet]'") from None
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            yield file
    except pa.ArrowException as error:
        raise DatasetError(f"{path} cannot be read as Parquet: {error}; get the file again") from error


def columns_of(path: Path, file: Any, layout: Layout) -> tuple[dict[str, str], Layout]:
    """The names of the mapped columns by field, and the layout as the type of the time column asks for it."""
    schema = file.schema_arrow
    names = {
        field: _name(path, field, column, schema.names, layout) for field, column in layout.columns.items()
    }
    return names, _with_time_type(path, schema.field(names["time"]), layout)


def _name(path: Path, field: str, column: str | int, names: list[str], layout: Layout) -> str:
    key = f"{layout.key}.columns.{field}"
    if isinstance(column, int):
        if column >= len(names):
            raise DatasetError(
                f"{path} has {len(names)} columns, so none at position {column}, counted from 0; correct {key}"
            )
        return names[column]
    if column not in names:
        raise DatasetError(f"{path} has no column {column!r}; it has {', '.join(names)}; correct {key}")
    return column


def _with_time_type(path: Path, column: Any, layout: Layout) -> Layout:
    """The layout as the type of the time column asks for it: a timestamp with a zone is UTC already."""
    from pyarrow import types

    if types.is_timestamp(column.type):
        return replace(layout, time_zone="UTC", base=None) if column.type.tz is not None else layout
    number = types.is_integer(column.type) or types.is_floating(column.type)
    if number == (layout.time_unit == "iso"):
        raise DatasetError(
            f"the column {column.name!r} of {path} is {column.type}, which time_unit {layout.time_unit} does not fit; "
            f"correct {layout.key}.time_unit"
        )
    return layout


def _events(
    path: Path, table: Any, names: dict[str, str], maker: EventMaker, first: int
) -> Iterator[EventBatch | BadRow]:
    from pyarrow import compute

    missing = np.zeros(table.num_rows, np.bool_)
    for name in set(names.values()):
        if table.column(name).null_count:
            missing |= compute.is_null(table.column(name)).to_numpy(zero_copy_only=False)
    for index in np.flatnonzero(missing).tolist():
        yield _bad(path, table, index, first, "a value is missing")
    numbers = np.arange(first, first + table.num_rows, dtype=np.int64)
    if missing.any():
        keep = np.flatnonzero(~missing)
        table, numbers = table.take(keep), numbers[keep]
    if table.num_rows == 0:
        return
    columns: dict[str, NDArray[Any]] = {}
    symbols = None
    for field, name in names.items():
        column = table.column(name)
        if field == "symbol":
            coded = column if hasattr(column, "dictionary") else column.cast("string").dictionary_encode()
            symbols = (
                coded.indices.to_numpy().astype(np.int32),
                [str(x) for x in coded.dictionary.to_pylist()],
            )
        else:
            columns[field] = _numbers(path, field, column)
    batch, reasons = maker.make(columns, numbers, symbols)
    for index in sorted(reasons):
        yield _bad(path, table, index, int(numbers[index]) - index, reasons[index])
    if len(batch):
        yield batch


def _numbers(path: Path, field: str, column: Any) -> NDArray[Any]:
    """The column as an array: times as timestamps, whole numbers or texts; everything else as numbers."""
    import pyarrow as pa
    from pyarrow import types

    kind = column.type
    if field == "time":
        if types.is_timestamp(kind):
            plain = column.cast(pa.timestamp(kind.unit))
            array: NDArray[Any] = plain.to_numpy(zero_copy_only=False)
            return array
        if types.is_integer(kind):
            return np.asarray(column.cast(pa.int64()).to_numpy(zero_copy_only=False))
        return np.asarray(column.to_numpy(zero_copy_only=False))
    if types.is_decimal(kind):
        column = column.cast(pa.string())  # which becomes the nearest float; decimal to float does not
    try:
        return np.asarray(
            column.cast(pa.int64() if field == "seq" else pa.float64()).to_numpy(zero_copy_only=False)
        )
    except pa.ArrowException as error:
        raise DatasetError(
            f"the column of {field} in {path} has no numbers: {error}; correct the mapping"
        ) from error


def _bad(path: Path, table: Any, index: int, first: int, reason: str) -> BadRow:
    row = {name: values[0] for name, values in table.slice(index, 1).to_pydict().items()}
    return BadRow(f"{path}:{first + index}", reason, json.dumps(row, default=str).encode())
