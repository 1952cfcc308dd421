"""What is carried over when symbols move to other partitions: ids that must be remembered, positions, outboxes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from market_data_core.batch import EventBatch
from market_data_core.codecs import EventDecoder, encode_events, encode_frame
from market_data_core.errors import PoisonRecord
from market_data_core.frames import decode_bars, encode_bars
from market_data_core.partitioner import partition_of
from market_data_core.protocols import Claim, OutboxRecord, Position
from market_data_core.signal_codec import parcel_of
from market_data_pipeline.consumers.micro_batcher import PARTITION_LANE
from market_data_pipeline.streaming.bus import Offset, Record, StoredRecord
from market_data_pipeline.windows.tumbling import FOREVER, NEVER
from market_data_store.repartitions import GroupPosition

Parse = Callable[[str], Offset]


def remembered(claims: Iterable[Claim], parse: Parse) -> dict[int, tuple[Offset, Offset]]:
    """The records of each old partition, first and last, whose ids some group must remember."""
    out: dict[int, tuple[Offset, Offset]] = {}
    for claim in claims:
        for position in claim.positions.values():
            if position.dedupe_offset and position.watermark != FOREVER:
                first, last = out.get(claim.partition, (parse(position.dedupe_offset), 0))
                first = min(first, parse(position.dedupe_offset))
                out[claim.partition] = first, max(last, parse(position.read_offset))
    return out


def lanes_of(claims: Iterable[Claim]) -> dict[str, int]:
    """The watermark of every lane that goes on: the highest that it has in any partition.

    What lies below it in a partition that was behind is late there, and amends its bar, which is right. The lowest
    would open a second window beside one that is stored.
    """
    out: dict[str, int] = {}
    for claim in claims:
        for lane, position in claim.positions.items():
            if position.watermark != FOREVER:
                out[lane] = max(out.get(lane, NEVER), position.watermark)
    return out


def split_events(
    found: Sequence[StoredRecord], partitions: int, lanes: Iterable[str]
) -> Iterator[tuple[int, Record]]:
    """The events of ``found`` as records of the new partitions, those of lanes that have ended left out."""
    going_on = set(lanes)
    kept = [r for r in found if r.lane is None or r.lane in going_on]
    if not kept:
        return
    decoded = EventDecoder().decode([r.value for r in kept], [r.lane for r in kept])
    batch = decoded.batch
    if not len(batch):
        return
    of_series = np.array([partition_of(s.symbol, partitions) for s in batch.series], np.int64)
    record = np.arange(len(batch)) if decoded.record is None else decoded.record
    explicit = decoded.lanes or [None] * len(kept)
    names = sorted({lane or "" for lane in explicit})
    of_lane = np.array([names.index(lane or "") for lane in explicit], np.int64)[record]
    place = of_lane * partitions + of_series[batch.code]
    for code in np.unique(place).tolist():
        lane, partition = names[code // partitions] or None, code % partitions
        rows = batch.take(np.flatnonzero(place == code))
        for made in _records(rows, lane):
            yield partition, made


def _records(rows: EventBatch, lane: str | None) -> list[Record]:
    keys = [rows.series[code].symbol for code in rows.code.tolist()]
    if any("|" in key for key in keys):
        return [Record(key, value, lane) for key, value in zip(keys, encode_events(rows), strict=True)]
    return [Record(keys[0], encode_frame(rows, lane), lane)]


def split_outbox(row: OutboxRecord, partitions: int) -> list[tuple[int | None, Record]]:
    """What a flush of the old partitions may not have published, for the new ones; None: where the key belongs."""
    parcel = parcel_of(row.value)
    if parcel is not None:
        return [(None, Record(key, value, row.lane)) for key, value in parcel]
    try:
        bars = decode_bars(row.value)
    except PoisonRecord:
        return [(None, Record(row.key, row.value, row.lane))]
    of_series = np.array([partition_of(s.symbol, partitions) for s in bars.series], np.int64)
    place = of_series[bars.code]
    found = np.unique(place).tolist()
    return [(p, Record(row.key, encode_bars(bars.take(np.flatnonzero(place == p))), row.lane)) for p in found]


def positions_after(
    claims: Sequence[Claim], ends: Sequence[tuple[str, str]], *, lanes_remember: bool
) -> list[GroupPosition]:
    """The positions of every group in the new partitions, of each of which ``ends`` says the offset of the newest
    record and that of the first one that was carried over, empty for none."""
    out = []
    for group in sorted({claim.group for claim in claims}):
        watermarks = lanes_of(c for c in claims if c.group == group)
        for partition, (end, first) in enumerate(ends):
            for lane, watermark in watermarks.items():
                holds = first if lanes_remember and lane != PARTITION_LANE else ""
                out.append(GroupPosition(group, partition, Position(lane, watermark, end, "", holds)))
    return out
