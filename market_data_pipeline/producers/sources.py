"""Files and what is in them: plain, gzip, each file of a zip, Parquet."""

from __future__ import annotations

import glob
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, BinaryIO, Final, cast

from market_data_core.batch import EventBatch
from market_data_core.config import Dataset
from market_data_core.errors import DatasetError
from market_data_pipeline.producers.csv_file import csv_parts, read_csv
from market_data_pipeline.producers.layout import Layout, layout_of, lean_layout
from market_data_pipeline.producers.part import Part
from market_data_pipeline.producers.provider import BadRow

_PARQUET: Final = (".parquet", ".pq")
_DAMAGED: Final = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, gzip.BadGzipFile)


Rows = Iterator[EventBatch | BadRow]


@dataclass(frozen=True, slots=True)
class Source:
    """One file of rows, to be opened when it is its turn.

    ``earliest``, ``end``: no event is before, none at or after (UTC ns), where that is known without reading.
    """

    place: str
    earliest: int | None
    end: int | None
    read: Callable[[int], Rows]


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file, or a file within a zip, and how to read it; goes to other processes as it is.

    ``place``: where it is, for people, and which no other file has.
    """

    path: Path
    place: str
    layout: Layout
    member: str | None = None
    parquet: bool = False

    def source(self, part: Part | None = None) -> Source:
        """Its rows, or those of a part."""
        return Source(self.place, self.layout.earliest, self.layout.end, lambda size: self._read(size, part))

    def _read(self, block_bytes: int, part: Part | None) -> Rows:
        if self.parquet:
            from market_data_pipeline.producers.parquet_file import read_parquet

            with _readable(self.place):
                yield from read_parquet(self.path, self.layout, max(1024, block_bytes // 32), part)
            return
        with _readable(self.place), _opened(self.path, self.member) as stream:
            yield from read_csv(stream, self.place, self.layout, block_bytes, part)

    def parts(self, block_bytes: int) -> Iterator[tuple[Part, Rows]]:
        """Its parts, and the times and symbols of what is in each; prices and sizes are not read, and 0."""
        columns = {k: v for k, v in self.layout.columns.items() if k in ("time", "symbol")}
        layout = replace(self.layout, columns=columns)
        if self.parquet:
            from market_data_pipeline.producers.parquet_groups import parquet_parts

            with _readable(self.place):
                yield from parquet_parts(self.path, layout)
            return
        with _readable(self.place), _opened(self.path, self.member) as stream:
            yield from csv_parts(stream, self.place, layout, block_bytes)


def sources_of(dataset: Dataset, locate: Callable[[str], Path], provider: str, key: str) -> list[Source]:
    """The files that ``dataset`` names, in the order of their names.

    Raises:
        DatasetError: there is none, or one is not what the dataset says.
    """
    return [
        file.source()
        for path in paths_of(dataset.path, locate, key)
        for file in files_in(path, dataset, provider, key)
    ]


def paths_of(given: str, locate: Callable[[str], Path], key: str) -> list[Path]:
    """The files of a path or a pattern, in the order of their names.

    Raises:
        DatasetError: there is none.
    """
    path = locate(given)
    if path.is_file():
        return [path]
    if path.is_dir():
        raise DatasetError(f"{path} is a folder; name its files, such as {path}/*.csv, in {key}")
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    found = [name for name in found if name.is_file()]
    if not found:
        raise DatasetError(f"there is no file {given}; correct {key}")
    return found


def files_in(path: Path, dataset: Dataset, provider: str, key: str) -> list[DataFile]:
    """The file of rows at ``path``, or those within it if it is a zip.

    Raises:
        DatasetError: it is not what the dataset says.
    """
    if dataset.format == "parquet" or (dataset.format is None and path.suffix.lower() in _PARQUET):
        if dataset.preset is not None:
            raise DatasetError(
                f"{path} is Parquet, which the preset {dataset.preset} does not read; leave it out"
            )
        return [DataFile(path, str(path), layout_of(dataset, provider, key), parquet=True)]
    with _readable(str(path)):
        zipped = zipfile.is_zipfile(path)
        if path.suffix.lower() == ".zip" and not zipped:
            raise zipfile.BadZipFile("it is no zip, or cut short")
        members = _members(path) if zipped else [path.name]
    out = []
    for member in members:
        place = f"{path}/{member}" if zipped else str(path)
        name = member.removesuffix(".gz")
        layout = (
            lean_layout(name, dataset, provider, key) if dataset.preset else layout_of(dataset, provider, key)
        )
        out.append(DataFile(path, place, layout, member if zipped else None))
    return out


def _members(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        names = [i.filename for i in archive.infolist() if not i.is_dir()]
    # macOS adds a shadow file to each.
    names = sorted(
        n for n in names if not n.startswith("__MACOSX/") and not n.rpartition("/")[2].startswith(".")
    )
    if not names:
        raise DatasetError(f"{path} is a zip without a file; give one that has CSV files")
    return names


@contextmanager
def _opened(path: Path, member: str | None) -> Iterator[BinaryIO]:
    """The bytes of a file, or of a file within a zip, decompressed on the way."""
    if member is not None:
        with zipfile.ZipFile(path) as archive, _unlocked(archive, member) as inner:
            if member.endswith(".gz"):
                with gzip.open(inner) as stream:
                    yield cast(BinaryIO, stream)
            else:
                yield cast(BinaryIO, inner)
        return
    with path.open("rb") as plain:
        zipped = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        if zipped:
            with gzip.open(plain) as stream:
                yield cast(BinaryIO, stream)
        else:
            yield plain


def _unlocked(archive: zipfile.ZipFile, member: str) -> IO[bytes]:
    info = archive.getinfo(member)
    if info.flag_bits & 1:
        raise DatasetError(f"{archive.filename}/{member} is encrypted; unpack it with its password first")
    try:
        return archive.open(info)
    except NotImplementedError as error:
        raise DatasetError(
            f"{archive.filename}/{member} cannot be unpacked: {error}; unpack it first"
        ) from error


@contextmanager
def _readable(place: str) -> Iterator[None]:
    """What goes wrong with a file, in one sentence."""
    try:
        yield
    except _DAMAGED as error:
        raise DatasetError(
            f"{place} is damaged ({error or type(error).__name__}); get the file again"
        ) from error
    except OSError as error:
        raise DatasetError(f"{place} cannot be read: {error.strerror or error}; check the file") from error
