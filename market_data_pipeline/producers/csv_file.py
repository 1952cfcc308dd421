"""CSV to events, a block of lines at a time, in bounded memory.

A block is parsed whole by the C parser of pandas. Only when its shape is not regular, or a value in it is no number,
is it looked at line by line, to find the bad lines and say why; the rest is parsed the fast way again. A row is a
line: quoted fields are understood, a line break inside of quotes is not.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from market_data_core.batch import I64, EventBatch
from market_data_core.errors import DatasetError
from market_data_pipeline.producers.event_maker import EventMaker
from market_data_pipeline.producers.layout import Layout
from market_data_pipeline.producers.part import Part
from market_data_pipeline.producers.provider import BadRow

MAX_LINE: Final = 1 << 20
_BOM: Final = b"\xef\xbb\xbf"
# Infinity is a number here, as it is to the parser; the rules for events refuse it.
_NUMBER: Final = re.compile(
    r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf(?:inity)?)\Z", re.ASCII | re.IGNORECASE
)
_WHOLE: Final = re.compile(r"[+-]?\d{1,18}\Z", re.ASCII)
# From pandas 3.1 the C parser always gives the nearest float64, and the option is deprecated.
_EXACT: Final[dict[str, Any]] = (
    {}
    if tuple(int(x) for x in pd.__version__.split(".")[:2]) >= (3, 1)
    else {"float_precision": "round_trip"}
)


def read_csv(
    stream: BinaryIO, place: str, layout: Layout, block_bytes: int = 1 << 21, part: Part | None = None
) -> Iterator[EventBatch | BadRow]:
    """Events of a CSV in file order, and its bad rows; ``seq`` is the line number, from 1, unless mapped.

    ``part``: only those of this part.

    Raises:
        DatasetError: a column is missing, or a line is longer than 1 MiB.
    """
    for _, rows in csv_parts(stream, place, layout, block_bytes, part):
        yield from rows


def csv_parts(
    stream: BinaryIO, place: str, layout: Layout, block_bytes: int, part: Part | None = None
) -> Iterator[tuple[Part, Iterator[EventBatch | BadRow]]]:
    """The parts of a CSV, of about ``block_bytes`` each, with what is in them: see :func:`read_csv`."""
    reader: _Reader | None = None
    at, line = 0, 1
    if part is not None and part.start:
        head = stream.readline(MAX_LINE).removeprefix(_BOM)
        reader = _Reader(place, layout, head.rstrip(b"\n"))
        at, line = stream.seek(part.start), part.row
    for block in _blocks(stream, place, block_bytes, None if part is None else part.stop - part.start):
        data, first = block, line
        if reader is None:
            head, _, rest = data.removeprefix(_BOM).partition(b"\n")
            reader = _Reader(place, layout, head)
            data, first = (rest, 2) if layout.header else (head + b"\n" + rest, 1)
        yield Part(at, at + len(block), line), reader.events(data, first)
        at, line = at + len(block), line + block.count(b"\n")
    if reader is None and layout.header:
        raise DatasetError(f"{place} is empty, without a header; give a file with rows")


def _blocks(stream: BinaryIO, place: str, size: int, limit: int | None) -> Iterator[bytes]:
    """The next ``limit`` bytes of ``stream``, or all, in blocks that end with a line."""
    rest = b""
    left = sys.maxsize if limit is None else limit
    while chunk := stream.read(min(size, left)):
        left -= len(chunk)
        data = rest + chunk
        cut = data.rfind(b"\n") + 1
        rest = data[cut:]
        if cut:
            yield data[:cut]
        if len(rest) > MAX_LINE:
            raise DatasetError(f"{place} has a line longer than 1 MiB; lines must end with \\n")
    if rest:
        yield rest + b"\n"


class _Reader:
    """One file: its shape, known from its first line, and the symbols met so far."""

    def __init__(self, place: str, layout: Layout, first_line: bytes) -> None:
        self._place = place
        self._layout = layout
        self._maker = EventMaker(layout)
        names = _fields(first_line.rstrip(b"\r").decode("utf-8", "replace"), layout.delimiter)
        self._width = len(names)
        self._at = {field: self._position(field, column, names) for field, column in layout.columns.items()}
        self._time_is_number = layout.time_unit != "iso"
        self._time_type: str = "int64" if self._time_is_number else "object"

    def _position(self, field: str, column: str | int, names: Sequence[str]) -> int:
        key = f"{self._layout.key}.columns.{field}"
        if isinstance(column, int):
            if column >= self._width:
                raise DatasetError(
                    f"{self._place} has {self._width} columns, so none at position {column}, counted from 0; "
                    f"correct {key}"
                )
            return column
        stripped = [name.strip() for name in names]
        if column not in stripped:
            raise DatasetError(
                f"{self._place} has no column {column!r}; it has {', '.join(stripped)}; correct {key}"
            )
        if stripped.count(column) > 1:
            raise DatasetError(f"{self._place} has two columns {column!r}; name one by its position in {key}")
        return stripped.index(column)

    def events(self, data: bytes, first_line: int) -> Iterator[EventBatch | BadRow]:
        """The events of whole lines, of which the first has the number ``first_line``."""
        rows = self._regular(data)
        if rows is not None:
            try:
                frame = self._parse(data)
            except _PARSE_ERRORS:
                pass
            else:
                if len(frame) == rows:
                    numbers = np.arange(first_line, first_line + rows, dtype=np.int64)
                    yield from self._made(frame, numbers, lambda i: data.split(b"\n")[i])
                    return
        yield from self._line_by_line(data, first_line)

    def _regular(self, data: bytes) -> int | None:
        """How many rows, when every line has as many fields as the first line of the file; else None."""
        delimiter = ord(self._layout.delimiter)
        if delimiter > 127:
            return None
        if b'"' in data:
            text = data.decode("utf-8", "replace")
            try:
                widths = [
                    len(row)
                    for row in csv.reader(io.StringIO(text, newline=""), delimiter=self._layout.delimiter)
                ]
            except csv.Error:
                return None
            regular = len(widths) == data.count(b"\n") and widths.count(self._width) == len(widths)
            return len(widths) if regular else None
        raw = np.frombuffer(data, np.uint8)
        marks = raw[(raw == delimiter) | (raw == 10)] == 10
        if len(marks) % self._width:
            return None
        table = marks.reshape(-1, self._width)
        return len(table) if table[:, -1].all() and not table[:, :-1].any() else None

    def _parse(self, data: bytes) -> pd.DataFrame:
        """The mapped columns, by position.

        Raises:
            ValueError, OverflowError: some value has not its column's type.
        """
        if self._time_type == "int64":
            try:
                return self._read(data)
            except (ValueError, OverflowError):
                self._time_type = "float64"
                try:
                    return self._read(data)
                except (ValueError, OverflowError):
                    self._time_type = "int64"
                    raise
        return self._read(data)

    def _read(self, data: bytes) -> pd.DataFrame:
        kinds: dict[str, Any] = {"time": self._time_type, "seq": "int64", "symbol": "category"}
        types = {at: kinds.get(field, "float64") for field, at in self._at.items()}
        frame: pd.DataFrame = pd.read_csv(
            io.BytesIO(data),
            sep=self._layout.delimiter,
            header=None,
            names=range(self._width),
            usecols=sorted(types),
            dtype=types,
            na_filter=False,
            index_col=False,
            skip_blank_lines=False,
            engine="c",
            **_EXACT,
        )
        return frame

    def _made(
        self, frame: pd.DataFrame, numbers: I64, line: Callable[[int], bytes]
    ) -> Iterator[EventBatch | BadRow]:
        columns: dict[str, NDArray[Any]] = {
            field: frame[at].to_numpy() for field, at in self._at.items() if field != "symbol"
        }
        symbols = None
        if "symbol" in self._at:
            category = frame[self._at["symbol"]].cat
            symbols = np.asarray(category.codes, np.int32), [str(name) for name in category.categories]
        batch, reasons = self._maker.make(columns, numbers, symbols)
        for index in sorted(reasons):
            yield BadRow(f"{self._place}:{numbers[index]}", reasons[index], line(index).rstrip(b"\r"))
        if len(batch):
            yield batch

    def _line_by_line(self, data: bytes, first_line: int) -> Iterator[EventBatch | BadRow]:
        """Puts the bad lines aside and parses the others; blank lines are no rows."""
        good: list[tuple[int, bytes]] = []
        for number, raw in enumerate(data[:-1].split(b"\n"), first_line):
            line = raw.rstrip(b"\r")
            if not line.strip():
                continue
            reason = self._explain(line)
            if reason is None:
                good.append((number, line))
            else:
                yield BadRow(f"{self._place}:{number}", reason, line)
        yield from self._halves(good)

    def _halves(self, lines: list[tuple[int, bytes]]) -> Iterator[EventBatch | BadRow]:
        """Parses lines that look good; a line that the parser refuses all the same is found by halving."""
        if not lines:
            return
        raw = [line for _, line in lines]
        try:
            frame = self._parse(b"\n".join(raw) + b"\n")
            if len(frame) != len(lines):
                raise ValueError(f"{len(lines)} lines were read as {len(frame)} rows")
        except _PARSE_ERRORS as error:
            if len(lines) == 1:
                yield BadRow(f"{self._place}:{lines[0][0]}", f"cannot be read: {error}", raw[0])
                return
            middle = len(lines) // 2
            yield from self._halves(lines[:middle])
            yield from self._halves(lines[middle:])
            return
        numbers = np.array([number for number, _ in lines], np.int64)
        yield from self._made(frame, numbers, raw.__getitem__)

    def _explain(self, line: bytes) -> str | None:
        """Why a line cannot be a row; None when it looks like one."""
        try:
            fields = _fields(line.decode(), self._layout.delimiter)
        except UnicodeDecodeError:
            return "is not UTF-8 text"
        except csv.Error as error:
            return f"is no CSV row: {error}"
        if len(fields) != self._width:
            return f"has {len(fields)} columns, not {self._width}"
        for field, at in self._at.items():
            if field == "symbol" or (field == "time" and not self._time_is_number):
                continue
            value = fields[at].strip(" ")
            if not (_WHOLE if field == "seq" else _NUMBER).match(value):
                what = "a whole number" if field == "seq" else "a number"
                return f"{field} {value[:64]!r} is not {what}"
        return None


_PARSE_ERRORS: Final = (ValueError, OverflowError)
"""What pandas raises for a value of the wrong type (its ParserError is a ValueError)."""


def _fields(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter, strict=True), [""])
