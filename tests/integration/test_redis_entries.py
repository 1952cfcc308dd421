"""Entries of a stream as records, ours and those of other programs."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market_data_core.errors import BusUnavailable
from market_data_pipeline.streaming import redis_entries
from market_data_pipeline.streaming.bus import Record
from market_data_pipeline.streaming.redis_bus import RedisBus
from market_data_pipeline.streaming.redis_entries import (
    Offsets,
    additions,
    columns,
    format_id,
    parse_id,
    stored,
)
from tests.servers.redis import VERSIONS, RedisServer, running

u64 = st.integers(0, 2**64 - 1)


@pytest.fixture(scope="module", params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    yield from running(request.param)


@given(u64, u64)
def test_ids_are_offsets_and_back(ms: int, seq: int) -> None:
    text = f"{ms}-{seq}"
    assert format_id(parse_id(text)) == text
    assert parse_id(text.encode()) == parse_id(text)


@given(st.lists(st.tuples(u64, u64), min_size=2, max_size=20, unique=True))
def test_offsets_are_ordered_as_redis_orders_ids(pairs: list[tuple[int, int]]) -> None:
    pairs.sort()
    offsets = Offsets([f"{ms}-{seq}".encode() for ms, seq in pairs])
    listed = list(offsets)
    assert listed == sorted(set(listed))
    for i, offset in enumerate(listed):
        assert bisect_left(offsets, offset) == i
        assert bisect_right(offsets, offset) == i + 1
    assert list(offsets[1:]) == listed[1:]
    assert offsets[-1] == listed[-1]
    assert listed[0] in offsets


@pytest.mark.parametrize("text", ["", "5", "-", "5-", "-5", "a-1", "1-2-3", "1.0-2", "+1-2", " 1-2"])
def test_what_is_not_an_id(text: str) -> None:
    with pytest.raises(ValueError, match="not the id of a Redis stream entry"):
        parse_id(text)


def test_entries_of_ours_in_any_order_of_fields() -> None:
    entries = [
        [b"1-0", [b"v", b"one", b"k", b"K"]],
        [b"2-0", [b"k", b"K", b"v", b"two"]],
        [b"3-0", [b"l", b"lane", b"v", b"three", b"k", b"K"]],
        [b"4-0", [b"v", b"four"]],
        [b"5-0", [b"v", b"", b"k", b"K", b"l", b""]],
    ]
    ids, values, lanes, traces = columns(entries)
    assert ids == [b"1-0", b"2-0", b"3-0", b"4-0", b"5-0"]
    assert values == [b"one", b"two", b"three", b"four", b""]
    assert lanes == [None, None, "lane", None, ""]
    assert columns(entries[:2])[2] is None
    assert columns(entries[:1])[2] is None
    assert traces == []


def test_an_entry_that_was_deleted_while_pending_is_a_record_without_content() -> None:
    ids, values, _, _ = columns([[b"1-0", None], [b"2-0", [b"v", b"x", b"k", b"K"]]])
    assert ids == [b"1-0", b"2-0"]
    assert values[1] == b"x"


async def test_entries_of_other_programs_are_delivered_as_json(server: RedisServer) -> None:
    with server.client() as client:
        event = {"ver": "1", "provider": "other", "symbol": "SPY", "kind": "tick", "interval": "1s"}
        event |= {"src_ts": "2025-10-24T14:02:01Z", "o": "1.50", "c": "1e2", "v": "1200", "seq": "-3"}
        odd = {"note": 'a "quoted"\n株', b"\xff\x00": b"\xfe", "o": "01", "h": "NaN", "l": "1.", "c": "1e5x"}
        client.delete("theirs")
        client.xadd("theirs", event)
        client.xadd("theirs", odd)
        client.xadd("theirs", {"k": "K", "x": "1"})
    async with RedisBus(server.uri) as bus:
        # A stream that another program made is a topic of one partition.
        assert await bus.partitions("theirs") == 1
        assert await bus.ensure_topic("theirs", 4) == 1
        stored = await bus.read("theirs", 0, None, 10)
        assert [r.key for r in stored] == ["SPY", "", "K"]
        async with bus.consumer("theirs", "g", "a") as consumer:
            assert (await consumer.poll(5)).assigned == [0]
            await consumer.seek(0, None)
            values: list[bytes] = []
            while len(values) < 3:
                for delivery in (await consumer.poll(5)).deliveries:
                    values += delivery.values
        assert values == [r.value for r in stored]
        first, second, third = map(json.loads, values)
        assert first == {
            **event,
            **{"ver": 1, "o": 1.5, "c": 100.0, "v": 1200, "seq": -3},
        }
        # The text of a number is kept, so that no digit of a price is lost.
        assert b'"o": 1.50' in values[0]
        assert second == {
            "note": odd["note"],
            "\\xff\x00": "\\xfe",
            "o": "01",
            "h": "NaN",
            "l": "1.",
            "c": "1e5x",
        }
        assert third == {"k": "K", "x": "1"}


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
published = st.builds(Record, names, st.binary(max_size=12), st.none() | names, st.none() | names)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(published, max_size=30))
def test_what_is_added_is_found_in_order_whatever_the_size_of_the_pieces(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, records: list[Record]
) -> None:
    monkeypatch.setattr(redis_entries, "APPEND_RECORDS", 7)
    monkeypatch.setattr(redis_entries, "APPEND_BYTES", 40)
    with server.client() as client:
        client.delete("mdp.added")
        pieces = list(additions("mdp.added", records))
        connection = client.connection_pool.get_connection()
        for piece in pieces:
            connection.send_packed_command([piece])
            assert connection.read_response() == b"OK"
        found = stored(
            [
                [name, [part for pair in fields.items() for part in pair]]
                for name, fields in client.xrange("mdp.added")
            ]
        )
    assert [Record(r.key, r.value, r.lane, r.traceparent) for r in found] == records
    assert (len(pieces) == 0) is (len(records) == 0)
    assert len(pieces) >= len(records) / 7


async def test_records_of_a_partition_are_one_command(server: RedisServer) -> None:
    """Which the server has done, and written to its file, wholly or not at all."""
    with server.client() as client:
        async with RedisBus(server.uri) as bus:
            await bus.ensure_topic("mdp.once", 1)
            client.config_resetstat()
            await bus.publish("mdp.once", [Record("K", b"x" * 300)] * 2000)
        done = client.info("commandstats")
    assert (done["cmdstat_eval"]["calls"], done["cmdstat_xadd"]["calls"]) == (1, 2000)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("maxmemory", "cannot take commands now: (OOM )?command not allowed when used memory"),
        ("min-replicas-to-write", "cannot take commands now: NOREPLICAS"),
    ],
)
async def test_a_refusal_is_that_of_the_server_and_nothing_was_added(
    server: RedisServer, option: str, said: str
) -> None:
    topic = f"mdp.refused.{option}"
    some = [Record("K", b"x")] * 100
    with server.client() as client:
        async with RedisBus(server.uri) as bus:
            await bus.ensure_topic(topic, 1)
            client.config_set(option, "1")
            try:
                with pytest.raises(BusUnavailable, match=said):
                    await bus.publish(topic, some)
            finally:
                client.config_set(option, "0")
            assert client.xlen(topic) == 0
            await bus.publish(topic, some)
        assert client.xlen(topic) == 100
