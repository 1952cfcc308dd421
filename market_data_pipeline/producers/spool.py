"""Records kept on disk while the bus is away: a queue in one SQLite file.

The file outlives the process: whoever starts the same producer again publishes what is in it first. One process
holds it at a time, by a lock beside it; a second producer of the same name takes the next free file.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Self

import msgspec
from filelock import FileLock, Timeout

from market_data_core.errors import MdpError
from market_data_pipeline.producers.framing import Parcel
from market_data_pipeline.streaming.bus import Record

MAX_FILES: Final = 64
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS parcels (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    partitions INTEGER NOT NULL, partition INTEGER NOT NULL,
    events INTEGER NOT NULL, size INTEGER NOT NULL, records BLOB NOT NULL
)
"""
_FULL: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)
"""What SQLite says of a disk without room; the second where a quota or a limit of the process ends a write."""
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[str, bytes, str | None]]).decode


class Spooled(NamedTuple):
    """A parcel on disk. ``partitions``: how many the topic had when it was made."""

    id: int
    partitions: int
    parcel: Parcel


class SpoolError(MdpError):
    """The spool cannot be written or read; the message names the file."""


class SpoolFull(SpoolError):
    """The disk has no room, for now. Nothing was written; what is on it stays."""

    retriable = True


class Spool:
    """A bounded queue of parcels on disk, for one thread: a call takes milliseconds, and only during an outage.

    ``max_bytes`` bounds the values it holds; who appends asks :meth:`has_room` first.
    """

    def __init__(self, path: Path, max_bytes: int, lock: FileLock) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._lock = lock
        with self._told():
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute(_SCHEMA)
            row = self._db.execute(
                "SELECT count(*), coalesce(sum(events), 0), coalesce(sum(size), 0) FROM parcels"
            )
            held: tuple[int, int, int] = row.fetchone()
        self.parcels, self.events, self.bytes = held
        self._removed = 0
        """The last parcel that is on the bus, also where a full disk does not let its row be deleted yet."""

    @classmethod
    def open(cls, folder: Path, name: str, max_bytes: int) -> Self:
        """The first spool of this producer that no running process holds, with what dead ones left in others.

        Raises:
            SpoolError: the folder cannot be written, or all files are held.
        """
        own: Self | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(MAX_FILES):
                path = folder / (f"{name}.sqlite" if number == 0 else f"{name}.{number}.sqlite")
                if own is not None and not path.exists():
                    continue
                lock = FileLock(f"{path}.lock", timeout=0, thread_local=False)
                try:
                    lock.acquire()
                except Timeout:
                    continue
                try:
                    found = cls(path, max_bytes, lock)
                except BaseException:
                    lock.release()
                    raise
                if own is None:
                    own = found
                else:
                    own._adopt(found)
        except OSError as error:
            raise SpoolError(
                f"the spool in {folder} cannot be written: {error.strerror or error}; set producers.spool.path"
            ) from error
        if own is None:
            raise SpoolError(
                f"{MAX_FILES} producers named {name} hold their spools in {folder}; give this one another name"
            )
        return own

    def _adopt(self, other: Spool) -> None:
        """Moves what ``other`` holds to the end of this one; both files hold it until the move is whole, which
        readers dedupe."""
        try:
            while batch := other.head(1 << 24):
                for spooled in batch:
                    self.append(spooled.partitions, [spooled.parcel])
                other.remove(batch)
        finally:
            other.close()

    def __len__(self) -> int:
        return self.parcels

    def has_room(self, size: int) -> bool:
        """Whether parcels of ``size`` bytes fit."""
        return self.bytes + size <= self.max_bytes

    def append(self, partitions: int, parcels: Sequence[Parcel]) -> None:
        """Put ``parcels`` at the end, all or none."""
        with self._told(), self._transaction():
            self._db.executemany(
                "INSERT INTO parcels (partitions, partition, events, size, records) VALUES (?, ?, ?, ?, ?)",
                (
                    (
                        partitions,
                        p.partition,
                        p.events,
                        p.size,
                        _encode([(r.key, r.value, r.lane) for r in p.records]),
                    )
                    for p in parcels
                ),
            )
        self.parcels += len(parcels)
        self.events += sum(p.events for p in parcels)
        self.bytes += sum(p.size for p in parcels)

    def head(self, max_bytes: int) -> list[Spooled]:
        """The first parcels, up to ``max_bytes`` of them and at least one; empty when there is none."""
        out: list[Spooled] = []
        size = 0
        with self._told():
            rows = self._db.execute(
                "SELECT id, partitions, partition, events, size, records FROM parcels WHERE id > ? ORDER BY id",
                (self._removed,),
            )
            for ident, partitions, partition, events, bytes_, packed in rows:
                size += bytes_
                if out and size > max_bytes:
                    break
                records = [Record(*each) for each in _decode(packed)]
                out.append(Spooled(ident, partitions, Parcel(partition, records, events, bytes_)))
            rows.close()
        return out

    def remove(self, done: Sequence[Spooled]) -> None:
        """Forget the first parcels, which are on the bus.

        A full disk does not take a deletion either. Then their rows go with those of a later call, or are published
        again by the next start, which readers dedupe.
        """
        self._removed = max((s.id for s in done), default=self._removed)
        with contextlib.suppress(SpoolFull), self._told(), self._transaction():
            self._db.execute("DELETE FROM parcels WHERE id <= ?", (self._removed,))
        self.parcels -= len(done)
        self.events -= sum(s.parcel.events for s in done)
        self.bytes -= sum(s.parcel.size for s in done)

    def close(self) -> None:
        """Give the file back; an empty one is deleted."""
        self._db.close()
        if self.parcels == 0:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        self._lock.release()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:  # on a full disk SQLite has rolled back by itself
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            kind = SpoolFull if getattr(error, "sqlite_errorcode", None) in _FULL else SpoolError
            raise kind(
                f"the spool {self.path} cannot be used: {error}; free the disk, or move the file away (its events "
                "are then not published)"
            ) from error
