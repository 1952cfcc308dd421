"""Batches to records: every event once, in its partition, in order."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_core.batch import EventBatch
from market_data_core.codecs import EventDecoder
from market_data_core.events import Series, StreamEvent
from market_data_core.partitioner import partition_of
from market_data_pipeline.producers.framing import Framer, Parcel

SYMBOLS = [f"S{i}" for i in range(12)]

rows = st.lists(
    st.builds(
        lambda symbol, provider, kind, at, price, spread, size: StreamEvent(
            provider, symbol, kind, "1s", at * 1000, 7000, price, price + spread, price, price, float(size), 0
        ),
        st.sampled_from(SYMBOLS),
        st.sampled_from(["p", "q"]),
        st.sampled_from(["tick", "bar"]),
        st.integers(0, 2**40),
        st.floats(-1e6, 1e6, allow_nan=False),
        st.sampled_from([0.0, 1.0]),
        st.integers(0, 1000),
    ),
    max_size=60,
)


def numbered(events: list[StreamEvent]) -> EventBatch:
    batch = EventBatch.from_events(events)
    batch.seq[:] = np.arange(len(batch))
    return batch


def decoded(parcel: Parcel) -> list[StreamEvent]:
    got = EventDecoder().decode([r.value for r in parcel.records], [r.lane for r in parcel.records])
    assert got.poison == []
    return got.batch.events()


@settings(max_examples=150, deadline=None)
@given(
    batches=st.lists(rows, max_size=4),
    partitions=st.integers(1, 8),
    codec=st.sampled_from(["frame", "json", "msgpack"]),
    most=st.integers(1, 20),
    lanes=st.booleans(),
)
def test_every_event_once_in_its_partition_in_order(
    batches: list[list[StreamEvent]],
    partitions: int,
    codec: Literal["frame", "json", "msgpack"],
    most: int,
    lanes: bool,
) -> None:
    framer = Framer(partitions, codec, (lambda p: f"replay/1/{p}") if lanes else lambda p: None, most)
    for events in batches:
        batch = numbered(events)
        parcels = framer.parcels(batch)
        seen: dict[tuple[int, str | None], list[StreamEvent]] = {}
        for parcel in parcels:
            got = decoded(parcel)
            assert 1 <= len(got) == parcel.events <= most
            assert parcel.size == sum(len(r.value) for r in parcel.records)
            assert len(parcel.records) == (1 if codec == "frame" else parcel.events)
            (lane,) = {r.lane for r in parcel.records}
            for event in got:
                assert partition_of(event.symbol, partitions) == parcel.partition
                assert lane == (f"replay/1/{event.provider}" if lanes else None)
            assert {partition_of(r.key, partitions) for r in parcel.records} == {parcel.partition}
            seen.setdefault((parcel.partition, lane), []).extend(got)
        everything = [e for part in seen.values() for e in part]
        assert sorted(everything, key=lambda e: e.seq) == batch.events()
        for part in seen.values():
            assert [e.seq for e in part] == sorted(e.seq for e in part)
    want = {
        (partition_of(e.symbol, partitions), f"replay/1/{e.provider}" if lanes else None)
        for events in batches
        for e in events
    }
    assert set(framer.lanes) == want


def test_a_new_table_of_series_is_learnt() -> None:
    framer = Framer(4)
    for symbols in (SYMBOLS[:3], SYMBOLS[::-1], SYMBOLS[5:6]):
        events = [
            StreamEvent("p", s, "tick", "1s", i, 1, 1.0, 1.0, 1.0, 1.0, 1.0, i) for i, s in enumerate(symbols)
        ]
        for parcel in framer.parcels(EventBatch.from_events(events)):
            assert {partition_of(e.symbol, 4) for e in decoded(parcel)} == {parcel.partition}


@pytest.mark.parametrize("symbols", [1, 300, 70_000])
def test_many_symbols(symbols: int) -> None:
    n = max(symbols, 1000)
    series = tuple(Series(f"p{i % 3}", f"S{i}", "tick", "1s") for i in range(symbols))
    price = np.ones(n)
    at = np.arange(n, dtype=np.int64)
    batch = EventBatch(series, (at % symbols).astype(np.int32), at, at, price, price, price, price, price, at)
    parcels = Framer(1000, lane=lambda p: f"replay/1/{p}", max_rows=50).parcels(batch)
    assert sum(p.events for p in parcels) == n
    assert sorted(e.seq for p in parcels for e in decoded(p)) == list(range(n))
