"""How ``mdp store`` prints what it read: a table for people; JSON lines, CSV and Parquet for programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import typer

from market_data_pipeline.cli import context

if TYPE_CHECKING:
    from market_data_core.batch import BarBatch

BAR_COLUMNS: Final = (
    "provider",
    "symbol",
    "interval",
    "ts",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "vwap",
    "n_events",
    "revision",
)

SIGNAL_COLUMNS: Final = ("provider", "symbol", "ts", "name", "value", "score", "meta")
"""``meta`` is JSON in a table and in CSV; nothing where there is none."""


class RowFormat(StrEnum):
    """What rows of any kind can be printed as."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class BarFormat(StrEnum):
    """What bars can be printed as."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


def chosen(ctx: typer.Context, given: str | None) -> str:
    """The format asked for; without one, JSON under ``--json`` and else a table."""
    return given or ("json" if context.options(ctx).json else "table")


def show(name: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """All of ``rows``; tables and CSV have only ``columns``, JSON has everything."""
    with row_writer(name, columns) as write:
        write(rows)


@contextmanager
def row_writer(name: str, columns: Sequence[str]) -> Iterator[Callable[[Sequence[dict[str, Any]]], None]]:
    """A function that prints rows as they come; a table waits for all of them. See :func:`show`."""
    if name == "json":
        yield lambda rows: _json_lines(sys.stdout.buffer, rows)
    elif name == "csv":
        import csv

        out = csv.writer(sys.stdout, lineterminator="\n")
        out.writerow(columns)
        yield lambda rows: out.writerows([_cell(row[column]) for column in columns] for row in rows)
    else:
        cells: list[list[Any]] = []
        yield lambda rows: cells.extend([_cell(row[column]) for column in columns] for row in rows)
        context.table(None, columns, cells)


@contextmanager
def bar_writer(name: str, path: Path | None) -> Iterator[Callable[[BarBatch], None]]:
    """A function that prints batches of bars as they come; what must be ended is ended with the block.

    Raises:
        UsageError: Parquet would go to a terminal, or a table to a file. MissingExtra: Parquet needs pyarrow.
    """
    from market_data_core.errors import UsageError

    if name == "table" and path is not None:
        raise UsageError("--output: choose --format json, csv or parquet for a file")
    if name == "parquet":
        with _parquet(path) as write:
            yield write
        return
    if name == "table":
        rows: list[tuple[Any, ...]] = []
        yield lambda bars: rows.extend(_rows(bars))
        context.table(None, BAR_COLUMNS, rows)
        return
    with _binary(path) as out:
        if name == "csv":
            import csv
            import io

            out.write((",".join(BAR_COLUMNS) + "\n").encode())

            def write_csv(bars: BarBatch) -> None:
                text = io.StringIO()
                csv.writer(text, lineterminator="\n").writerows(_rows(bars))
                out.write(text.getvalue().encode())

            yield write_csv
        else:
            yield lambda bars: _json_lines(
                out, [dict(zip(BAR_COLUMNS, row, strict=True)) for row in _rows(bars)]
            )


def _rows(bars: BarBatch) -> list[tuple[Any, ...]]:
    """The bars as rows of :data:`BAR_COLUMNS`; an unknown vwap is None."""
    import math

    from market_data_core.codecs import format_times

    names = [tuple(bars.series[code]) for code in bars.code.tolist()]
    vwap = [None if math.isnan(value) else value for value in bars.vwap.tolist()]
    numbers = [getattr(bars, name).tolist() for name in ("open", "high", "low", "close", "volume")]
    counts = (bars.n_events.tolist(), bars.revision.tolist())
    columns = zip(names, format_times(bars.ts), *numbers, vwap, *counts, strict=True)
    return [(*series, *rest) for series, *rest in columns]


@contextmanager
def _binary(path: Path | None) -> Iterator[IO[bytes]]:
    from market_data_core.errors import UsageError

    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        file = path.open("wb")
    except OSError as error:
        raise UsageError(f"--output: cannot write {path} ({error.strerror}); name another file") from None
    with file:
        yield file


def _json_lines(out: IO[bytes], rows: Sequence[dict[str, Any]]) -> None:
    import msgspec

    encode = msgspec.json.Encoder().encode
    out.write(b"".join(encode(row) + b"\n" for row in rows))
    out.flush()


@contextmanager
def _parquet(path: Path | None) -> Iterator[Callable[[BarBatch], None]]:
    from market_data_core.errors import MissingExtra, UsageError

    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra("writing Parquet needs pyarrow; run: pip install 'mdp[parquet]'") from None
    if path is None and sys.stdout.isatty():
        raise UsageError("--format parquet is not for a terminal: add --output FILE or redirect stdout")
    names = [pa.field(name, pa.dictionary(pa.int32(), pa.string())) for name in BAR_COLUMNS[:3]]
    prices = [pa.field(name, pa.float64()) for name in BAR_COLUMNS[4:10]]
    counts = [pa.field("n_events", pa.int64()), pa.field("revision", pa.int32())]
    schema = pa.schema([*names, pa.field("ts", pa.timestamp("ns", tz="UTC")), *prices, *counts])

    def write(bars: BarBatch) -> None:
        code = pa.array(bars.code)
        columns = [
            pa.DictionaryArray.from_arrays(code, pa.array([s[i] for s in bars.series], pa.string()))
            for i in range(3)
        ]
        columns.append(pa.array(bars.ts).cast(pa.timestamp("ns", tz="UTC")))
        columns += [pa.array(getattr(bars, name), from_pandas=True) for name in BAR_COLUMNS[4:]]
        writer.write_table(pa.Table.from_arrays(columns, schema=schema))

    with _binary(path) as out, pq.ParquetWriter(out, schema) as writer:
        yield write


def _cell(value: Any) -> Any:
    """A value for one cell: what is no plain value is JSON."""
    if isinstance(value, dict | list):
        import msgspec

        return msgspec.json.encode(value).decode() if value else ""
    return value
