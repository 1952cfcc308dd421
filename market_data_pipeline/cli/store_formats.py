"""How ``mdp store`` prints what it read: a table for people; JSON lines, CSV and Parquet for programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Protocol, TypeVar

import typer

from market_data_core.events import BarSeries
from market_data_pipeline.cli import context

if TYPE_CHECKING:
    from market_data_core.batch import I32, BarBatch
    from market_data_core.events import Signal

_Batch_contra = TypeVar("_Batch_contra", contravariant=True)

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
"""``meta`` is JSON in a table, in CSV and in Parquet; nothing where there is none."""


class RowFormat(StrEnum):
    """What rows of any kind can be printed as."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class BatchFormat(StrEnum):
    """What bars, features and signals can be printed as, also to a file."""

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


class Rows(Protocol[_Batch_contra]):
    """How batches of one kind become rows, and columns of Parquet."""

    @property
    def columns(self) -> Sequence[str]:
        """The names in order; :meth:`rows` gives a value for each."""
        ...

    def rows(self, batch: _Batch_contra) -> list[tuple[Any, ...]]:
        """One tuple a row; what is not known is None."""
        ...

    def schema(self) -> Any:
        """The schema for pyarrow."""
        ...

    def arrays(self, batch: _Batch_contra) -> list[Any]:
        """The arrays for pyarrow, in the order of the schema."""
        ...


class _Bars:
    """Bars as they are stored."""

    columns = BAR_COLUMNS

    def rows(self, batch: BarBatch) -> list[tuple[Any, ...]]:
        import math

        from market_data_core.codecs import format_times

        names = [tuple(batch.series[code]) for code in batch.code.tolist()]
        vwap = [None if math.isnan(value) else value for value in batch.vwap.tolist()]
        numbers = [getattr(batch, name).tolist() for name in ("open", "high", "low", "close", "volume")]
        counts = (batch.n_events.tolist(), batch.revision.tolist())
        columns = zip(names, format_times(batch.ts), *numbers, vwap, *counts, strict=True)
        return [(*series, *rest) for series, *rest in columns]

    def schema(self) -> Any:
        import pyarrow as pa

        prices = [pa.field(name, pa.float64()) for name in BAR_COLUMNS[4:10]]
        counts = [pa.field("n_events", pa.int64()), pa.field("revision", pa.int32())]
        return pa.schema([*series_fields(), pa.field("ts", pa.timestamp("ns", tz="UTC")), *prices, *counts])

    def arrays(self, batch: BarBatch) -> list[Any]:
        import pyarrow as pa

        columns = series_arrays(batch.series, batch.code)
        columns.append(pa.array(batch.ts).cast(pa.timestamp("ns", tz="UTC")))
        columns += [pa.array(getattr(batch, name), from_pandas=True) for name in BAR_COLUMNS[4:]]
        return columns


class _Signals:
    """Signals as they are stored; ``meta`` is JSON, or what it says where the whole row becomes ``as_json``."""

    columns = SIGNAL_COLUMNS

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def rows(self, batch: Sequence[Signal]) -> list[tuple[Any, ...]]:
        from market_data_core.codecs import format_time

        return [
            (
                s.provider,
                s.symbol,
                format_time(s.ts),
                s.name,
                s.value,
                s.score,
                s.meta if self._as_json else _cell(s.meta),
            )
            for s in batch
        ]

    def schema(self) -> Any:
        import pyarrow as pa

        words = pa.dictionary(pa.int32(), pa.string())
        kinds = (words, words, pa.timestamp("ns", tz="UTC"), words, pa.float64(), pa.float64(), pa.string())
        return pa.schema(list(zip(self.columns, kinds, strict=True)))

    def arrays(self, batch: Sequence[Signal]) -> list[Any]:
        import pyarrow as pa

        values = ([getattr(s, name) for s in batch] for name in self.columns[:-1])
        columns = [*values, [_cell(s.meta) or None for s in batch]]
        return [pa.array(v, kind) for v, kind in zip(columns, self.schema().types, strict=True)]


def bar_writer(name: str, path: Path | None) -> AbstractContextManager[Callable[[BarBatch], None]]:
    """:func:`writer` for bars."""
    return writer(name, path, _Bars())


def signal_writer(name: str, path: Path | None) -> AbstractContextManager[Callable[[Sequence[Signal]], None]]:
    """:func:`writer` for signals."""
    return writer(name, path, _Signals(as_json=name == "json"))


@contextmanager
def writer(
    name: str, path: Path | None, kind: Rows[_Batch_contra]
) -> Iterator[Callable[[_Batch_contra], None]]:
    """A function that prints batches as they come; what must be ended is ended with the block.

    Raises:
        UsageError: Parquet would go to a terminal, or a table to a file. MissingExtra: Parquet needs pyarrow.
    """
    from market_data_core.errors import UsageError

    if name == "table" and path is not None:
        raise UsageError("--output: choose --format json, csv or parquet for a file")
    if name == "parquet":
        with _parquet(path, kind) as write:
            yield write
        return
    if name == "table":
        rows: list[tuple[Any, ...]] = []
        yield lambda batch: rows.extend(kind.rows(batch))
        context.table(None, kind.columns, rows)
        return
    with _binary(path) as out:
        if name == "csv":
            import csv
            import io

            out.write((",".join(kind.columns) + "\n").encode())

            def write_csv(batch: _Batch_contra) -> None:
                text = io.StringIO()
                csv.writer(text, lineterminator="\n").writerows(kind.rows(batch))
                out.write(text.getvalue().encode())

            yield write_csv
        else:
            yield lambda batch: _json_lines(
                out, [dict(zip(kind.columns, row, strict=True)) for row in kind.rows(batch)]
            )


def series_fields() -> list[Any]:
    """Provider, symbol and interval for the schema of pyarrow."""
    import pyarrow as pa

    return [pa.field(name, pa.dictionary(pa.int32(), pa.string())) for name in BarSeries._fields]


def series_arrays(series: Sequence[BarSeries], code: I32) -> list[Any]:
    """Provider, symbol and interval of each row for pyarrow."""
    import pyarrow as pa

    names = [pa.array([s[i] for s in series], pa.string()) for i in range(3)]
    return [pa.DictionaryArray.from_arrays(pa.array(code), column) for column in names]


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
def _parquet(path: Path | None, kind: Rows[_Batch_contra]) -> Iterator[Callable[[_Batch_contra], None]]:
    from market_data_core.errors import MissingExtra, UsageError

    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra("writing Parquet needs pyarrow; run: pip install 'mdp[parquet]'") from None
    if path is None and sys.stdout.isatty():
        raise UsageError("--format parquet is not for a terminal: add --output FILE or redirect stdout")
    schema = kind.schema()

    def write(batch: _Batch_contra) -> None:
        file.write_table(pa.Table.from_arrays(kind.arrays(batch), schema=schema))

    with _binary(path) as out, pq.ParquetWriter(out, schema) as file:
        yield write


def _cell(value: Any) -> Any:
    """A value for one cell: what is no plain value is JSON."""
    if isinstance(value, dict | list):
        import msgspec

        return msgspec.json.encode(value).decode() if value else ""
    return value
