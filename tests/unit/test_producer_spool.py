"""The spool on disk: a bounded queue that outlives its process."""

from __future__ import annotations

import sqlite3
from collections import deque
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline.producers.framing import Parcel
from market_data_pipeline.producers.spool import Spool, SpoolError, SpoolFull
from market_data_pipeline.streaming.bus import Record

parcels = st.builds(
    lambda partition, values, lane: Parcel(
        partition,
        [Record(f"k{i}", v, lane) for i, v in enumerate(values)],
        len(values),
        sum(map(len, values)),
    ),
    st.integers(0, 7),
    st.lists(st.binary(max_size=20), min_size=1, max_size=4),
    st.sampled_from([None, "replay/1/p"]),
)


def parcel(value: bytes, partition: int = 0) -> Parcel:
    return Parcel(partition, [Record("k", value)], 1, len(value))


def drained(spool: Spool, at_once: int = 10) -> list[Parcel]:
    out = []
    while head := spool.head(at_once):
        out += [s.parcel for s in head]
        spool.remove(head)
    return out


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.one_of(st.lists(parcels, max_size=3), st.integers(1, 60), st.just("reopen")), max_size=15
    )
)
def test_it_is_a_queue(
    tmp_path_factory: pytest.TempPathFactory, steps: list[list[Parcel] | int | str]
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool.open(folder, "p", 1 << 20)
    model: deque[Parcel] = deque()
    for step in steps:
        if isinstance(step, list):
            spool.append(4, step)
            model.extend(step)
        elif isinstance(step, int):
            head = spool.head(step)
            assert [s.parcel for s in head] == list(model)[: len(head)]
            assert all(s.partitions == 4 for s in head)
            assert bool(head) == bool(model)
            assert len(head) <= 1 or sum(s.parcel.size for s in head) <= step
            spool.remove(head)
            for _ in head:
                model.popleft()
        else:
            spool.close()
            spool = Spool.open(folder, "p", 1 << 20)
        assert len(spool) == len(model)
        assert spool.events == sum(p.events for p in model)
        assert spool.bytes == sum(p.size for p in model)
    assert drained(spool) == list(model)
    spool.close()


def test_the_bound_counts_bytes(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, "p", 100)
    assert not spool.has_room(101)
    spool.append(1, [parcel(b"x" * 60)])
    assert spool.has_room(40)
    assert not spool.has_room(41)
    spool.remove(spool.head(1))
    assert spool.has_room(100)
    spool.close()


def test_an_emptied_spool_leaves_no_file(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, "p", 100)
    spool.append(1, [parcel(b"x")])
    assert drained(spool) == [parcel(b"x")]
    spool.close()
    assert [f.name for f in tmp_path.iterdir() if not f.name.endswith(".lock")] == []


def test_two_producers_of_one_name_have_a_file_each(tmp_path: Path) -> None:
    first = Spool.open(tmp_path, "p", 100)
    second = Spool.open(tmp_path, "p", 100)
    assert first.path != second.path
    first.append(1, [parcel(b"first")])
    second.append(1, [parcel(b"second")])
    second.close()
    third = Spool.open(tmp_path, "p", 100)
    assert third.path == second.path, "the first is still held"
    assert drained(third) == [parcel(b"second")]
    first.close()
    third.close()


def test_who_starts_alone_takes_what_both_left(tmp_path: Path) -> None:
    first, second = Spool.open(tmp_path, "p", 100), Spool.open(tmp_path, "p", 100)
    first.append(1, [parcel(b"a"), parcel(b"b")])
    second.append(1, [parcel(b"c"), parcel(b"d")])
    first.close()
    second.close()
    alone = Spool.open(tmp_path, "p", 100)
    assert drained(alone) == [parcel(b"a"), parcel(b"b"), parcel(b"c"), parcel(b"d")]
    alone.close()
    assert [f.name for f in tmp_path.iterdir() if not f.name.endswith(".lock")] == []


def test_producers_of_other_names_are_left_alone(tmp_path: Path) -> None:
    other = Spool.open(tmp_path, "other", 100)
    other.append(1, [parcel(b"x")])
    other.close()
    mine = Spool.open(tmp_path, "p", 100)
    assert len(mine) == 0
    mine.close()


def test_what_is_wrong_with_the_disk_is_told(tmp_path: Path) -> None:
    (tmp_path / "p.sqlite").write_bytes(b"this is no database" * 100)
    with pytest.raises(SpoolError, match=r"p\.sqlite cannot be used: file is not a database; free the disk"):
        Spool.open(tmp_path, "p", 100)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(
        SpoolError, match=r"the spool in .* cannot be written: .*; set producers\.spool\.path"
    ):
        Spool.open(file / "below", "p", 100)


def test_an_append_is_whole_or_not_at_all(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, "p", 1 << 20)
    limit = sqlite3.connect(spool.path)
    pages = limit.execute("PRAGMA page_count").fetchone()[0]
    limit.close()
    spool._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(SpoolError, match="full"):
        spool.append(1, [parcel(b"small"), parcel(b"x" * 100_000)])
    assert (len(spool), spool.bytes, spool.head(10)) == (0, 0, [])
    spool.append(1, [parcel(b"small")])
    assert drained(spool) == [parcel(b"small")]
    spool.close()


def test_a_deletion_that_a_full_disk_refuses_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool.open(tmp_path, "p", 1 << 20)
    spool.append(1, [parcel(b"a")])
    spool.append(1, [parcel(b"b")])
    with monkeypatch.context() as patch:
        patch.setattr(spool, "_db", _Refusing(spool._db))
        spool.remove(spool.head(1))
    assert [s.parcel for s in spool.head(100)] == [parcel(b"b")], "it is on the bus, so it is not sent again"
    assert len(spool) == 1
    spool.remove(spool.head(1))
    assert spool._db.execute("SELECT count(*) FROM parcels").fetchone() == (0,)
    spool.close()


class _Refusing:
    """A database on a disk that is full for deletions."""

    def __init__(self, real: sqlite3.Connection) -> None:
        self._real = real
        self.in_transaction = False

    def execute(self, statement: str, *values: tuple[int, ...]) -> sqlite3.Cursor:
        if statement.startswith("DELETE"):
            self._real.execute("ROLLBACK")
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        return self._real.execute(statement, *values)


def test_a_full_disk_is_told_from_a_broken_file(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, "p", 1 << 20)
    spool._db.execute(f"PRAGMA max_page_count = {spool._db.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(SpoolFull, match="free the disk") as told:
        spool.append(1, [parcel(b"x" * 100_000)])
    assert told.value.retriable
    spool.close()
