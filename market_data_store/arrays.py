"""numpy arrays as PostgreSQL binary arrays and back, whole columns at a time.

The binary form of a one-dimensional array is five big-endian int32 (dimensions, has-nulls, element type,
length, lower bound), then for each element its length as int32 and its bytes. Where all elements have one
size that is a numpy structured array, so a column is written and read without a Python object an element.

Written: int64 as ``int8[]``, int32 as ``int4[]``, float64 as ``float8[]``, datetime64[ns] as ``timestamptz[]``,
:class:`Names` and :class:`Texts` as ``text[]``, :class:`Blobs` as ``bytea[]``, :class:`Documents` as ``jsonb[]``. Read:
the number types as arrays, ``timestamptz[]`` as int64 nanoseconds.
Nulls are not written; reading one raises, so queries wrap nullable columns in ``COALESCE(x, 'NaN')``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.adapt import Buffer, Dumper, Loader, PyFormat
from psycopg.pq import Format

_HEADER = struct.Struct("!iiIii")
_INT32 = struct.Struct("!i")
_TEXT: Final = 25
_BYTEA: Final = 17
_JSONB: Final = 3802
_JSONB_VERSION: Final = b"\x01"

POSTGRES_EPOCH: Final = 946_684_800 * 10**9
"""2000-01-01 UTC in Unix nanoseconds, where timestamptz counts its microseconds from."""


@dataclass(frozen=True, slots=True, eq=False)
class Names:
    """A text column, dictionary-encoded: row ``i`` is ``table[code[i]]``; equal rows side by side are cheap."""

    table: Sequence[str]
    code: NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Blobs:
    """A column of bytes, which psycopg would write as hexadecimal text."""

    values: Sequence[bytes]


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """A text column, row by row."""

    values: Sequence[str]


@dataclass(frozen=True, slots=True, eq=False)
class Documents:
    """A column of JSON, encoded."""

    values: Sequence[bytes]


class _ColumnDumper(Dumper):
    """Base of the dumpers of numpy columns; ``oid`` is the array's type."""

    format = Format.BINARY
    element: ClassVar[int]
    item: ClassVar[np.dtype[Any]]

    def dump(self, obj: NDArray[Any]) -> Buffer:
        rows = np.empty(len(obj), self.item)
        rows["size"] = rows.dtype["value"].itemsize
        rows["value"] = self.values(obj)
        return _HEADER.pack(1, 0, self.element, len(obj), 1) + rows.tobytes()

    def values(self, column: NDArray[Any]) -> NDArray[Any]:
        return column


def _item(value: str) -> np.dtype[Any]:
    return np.dtype([("size", ">i4"), ("value", value)])


class _Int64(_ColumnDumper):
    oid, element, item = 1016, 20, _item(">i8")


class _Int32(_ColumnDumper):
    oid, element, item = 1007, 23, _item(">i4")


class _Float64(_ColumnDumper):
    oid, element, item = 1022, 701, _item(">f8")


class _Timestamp(_ColumnDumper):
    oid, element, item = 1185, 1184, _item(">i8")

    def values(self, column: NDArray[Any]) -> NDArray[Any]:
        return (column.view(np.int64) - POSTGRES_EPOCH) // 1000


_BY_DTYPE: Final[dict[np.dtype[Any], type[_ColumnDumper]]] = {
    np.dtype(np.int64): _Int64,
    np.dtype(np.int32): _Int32,
    np.dtype(np.float64): _Float64,
    np.dtype("datetime64[ns]"): _Timestamp,
}


class _ArrayDumper(Dumper):
    """Chooses the dumper by the array's dtype."""

    format = Format.BINARY

    def dump(self, obj: Any) -> Buffer:
        raise TypeError(f"an array of {obj.dtype} has no PostgreSQL type here")

    def get_key(self, obj: Any, format: PyFormat) -> Any:
        return (self.cls, obj.dtype)

    def upgrade(self, obj: Any, format: PyFormat) -> Dumper:
        chosen = _BY_DTYPE.get(obj.dtype)
        return self if chosen is None else chosen(self.cls)


class _NamesDumper(Dumper):
    format = Format.BINARY
    oid = 1009

    def dump(self, obj: Names) -> Buffer:
        items = []
        for name in obj.table:
            raw = name.encode("utf-8", "surrogatepass")
            items.append(_INT32.pack(len(raw)) + raw)
        code = obj.code
        if len(code) == 0:
            return _HEADER.pack(1, 0, _TEXT, 0, 1)
        starts = np.concatenate(([0], np.flatnonzero(code[1:] != code[:-1]) + 1))
        counts = np.diff(np.append(starts, len(code))).tolist()
        body = b"".join([items[c] * n for c, n in zip(code[starts].tolist(), counts, strict=True)])
        return _HEADER.pack(1, 0, _TEXT, len(code), 1) + body


class _ItemsDumper(Dumper):
    """Base of the dumpers of values of any length."""

    format = Format.BINARY
    element: ClassVar[int]

    def dump(self, obj: Any) -> Buffer:
        parts = [_HEADER.pack(1, 0, self.element, len(obj.values), 1)]
        for value in self.items(obj.values):
            parts += (_INT32.pack(len(value)), value)
        return b"".join(parts)

    def items(self, values: Sequence[Any]) -> Iterable[bytes]:
        return values


class _BlobsDumper(_ItemsDumper):
    oid, element = 1001, _BYTEA


class _TextsDumper(_ItemsDumper):
    oid, element = 1009, _TEXT

    def items(self, values: Sequence[Any]) -> Iterable[bytes]:
        return (value.encode("utf-8", "surrogatepass") for value in values)


class _DocumentsDumper(_ItemsDumper):
    oid, element = 3807, _JSONB

    def items(self, values: Sequence[Any]) -> Iterable[bytes]:
        return (_JSONB_VERSION + value for value in values)


class _ColumnLoader(Loader):
    format = Format.BINARY
    item: ClassVar[np.dtype[Any]]
    native: ClassVar[np.dtype[Any]]

    def load(self, data: Buffer) -> NDArray[Any]:
        if len(data) < _HEADER.size:
            return np.empty(0, self.native)
        _, nulls, _, length, _ = _HEADER.unpack_from(data)
        if nulls:
            raise psycopg.DataError("a column read as an array has nulls")
        rows = np.frombuffer(data, self.item, length, _HEADER.size)
        return rows["value"].astype(self.native)


class _Int64Loader(_ColumnLoader):
    item, native = _item(">i8"), np.dtype(np.int64)


class _Int32Loader(_ColumnLoader):
    item, native = _item(">i4"), np.dtype(np.int32)


class _Float64Loader(_ColumnLoader):
    item, native = _item(">f8"), np.dtype(np.float64)


class _TimestampLoader(_Int64Loader):
    def load(self, data: Buffer) -> NDArray[Any]:
        return super().load(data) * 1000 + POSTGRES_EPOCH


def register(connection: psycopg.AsyncConnection[Any]) -> None:
    """Teach ``connection`` the columns of this module; other connections stay as they are."""
    adapters = connection.adapters
    adapters.register_dumper(np.ndarray, _ArrayDumper)
    adapters.register_dumper(Names, _NamesDumper)
    adapters.register_dumper(Blobs, _BlobsDumper)
    adapters.register_dumper(Texts, _TextsDumper)
    adapters.register_dumper(Documents, _DocumentsDumper)
    for name, loader in (
        ("int8", _Int64Loader),
        ("int4", _Int32Loader),
        ("float8", _Float64Loader),
        ("timestamptz", _TimestampLoader),
    ):
        adapters.register_loader(adapters.types[name].array_oid, loader)


def timestamps(ns: NDArray[np.int64]) -> NDArray[np.datetime64]:
    """Nanoseconds marked as times, to be written as ``timestamptz[]`` (whole microseconds, rounded down)."""
    return ns.astype(np.int64, copy=False).view("datetime64[ns]")
