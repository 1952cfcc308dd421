"""Records as they lie in what a broker hands out: whole batches, decoded one at a time.

Used as they come: building aiokafka's ConsumerRecord of every one would cost more than all the rest of a read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Final

from aiokafka.errors import CorruptRecordException
from aiokafka.record.memory_records import MemoryRecords

from market_data_pipeline.streaming.bus import TRACEPARENT, Offset, Record, StoredRecord, Trace

LANE: Final = "lane"
"""The header that names a record's lane."""

Header = tuple[str, bytes | None]


def headers(record: Record) -> list[Header]:
    """What is written of a record beside its key and value."""
    named = ((LANE, record.lane), (TRACEPARENT, record.traceparent))
    return [(name, text.encode()) for name, text in named if text is not None]


def header(found: Iterable[Header], wanted: str) -> str | None:
    for name, value in found:
        if name == wanted and value is not None:
            return value.decode("utf-8", "backslashreplace")
    return None


def batches(buffer: bytes, first: Offset, gone: Collection[Offset] = ()) -> Iterator[list[Any]]:
    """The records from ``first`` on that are not ``gone``, by batch. The first batch may begin before ``first``.

    Raises:
        CorruptRecordException: a checksum is wrong.
    """
    found = MemoryRecords(buffer)
    while found.has_next():
        batch = found.next_batch()
        if not batch.validate_crc():
            raise CorruptRecordException("a batch of records has a wrong checksum")
        if batch.is_control_batch:
            continue
        records = list(batch)
        if records and records[0].offset < first:
            records = [r for r in records if r.offset >= first]
        if gone:
            records = [r for r in records if r.offset not in gone]
        if records:
            yield records


def after(buffer: bytes, first: Offset) -> Offset:
    """Where the next read goes on: past the last whole batch, or ``first`` when there is none."""
    found = MemoryRecords(buffer)
    while found.has_next():
        first = max(first, found.next_batch().next_offset)
    return first


def columns(
    records: Sequence[Any],
) -> tuple[list[Offset], list[bytes], list[str | None] | None, list[Trace]]:
    """Offsets, values, lanes and traces of ``records``, one or more; lanes are None when no record names one."""
    first, last = records[0].offset, records[-1].offset
    # Hardly ever is an offset left out, and asking each record costs as much as its value does.
    whole = last - first == len(records) - 1
    offsets = list(range(first, last + 1)) if whole else [r.offset for r in records]
    values = [r.value or b"" for r in records]
    headed = [r.headers for r in records]
    if not any(headed):
        return offsets, values, None, []
    lanes = [header(found, LANE) if found else None for found in headed]
    traced = ((place, header(found, TRACEPARENT)) for place, found in enumerate(headed) if found)
    traces = [(place, trace) for place, trace in traced if trace is not None]
    return offsets, values, lanes if any(lane is not None for lane in lanes) else None, traces


def stored(records: Iterable[Any]) -> list[StoredRecord]:
    """``records`` of a range read."""
    return [
        StoredRecord(
            r.offset,
            (r.key or b"").decode("utf-8", "backslashreplace"),
            r.value or b"",
            header(r.headers, LANE),
            r.timestamp,
            header(r.headers, TRACEPARENT),
        )
        for r in records
    ]
