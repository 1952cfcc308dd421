"""Records to columns and back: what is an event, what is poison and why, and that no path differs from another."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any, Literal

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_core import event_decoder
from market_data_core.batch import BarBatch, EventBatch
from market_data_core.codecs import (
    DeadLetter,
    EventDecoder,
    decode_bars,
    decode_dead_letter,
    encode_bars,
    encode_dead_letter,
    encode_end_of_lane,
    encode_events,
    encode_frame,
    event_of,
    faults,
)
from market_data_core.errors import PoisonRecord
from market_data_core.events import MAX_NOTIONAL, MAX_PRICE, MAX_VOLUME, Series, StreamEvent
from market_data_core.ohlcv import partial_bars
from market_data_core.times import MAX_TIME, MIN_TIME
from tests.unit.strategies import BASE, SECOND, SEEDS, arrivals, events, records

GOOD: dict[str, Any] = {
    "ver": 1,
    "provider": "ibkr_primary",
    "symbol": "SPY",
    "kind": "tick",
    "interval": "1s",
    "src_ts": "2025-10-24T14:02:01.234567Z",
    "ingest_ts": "2025-10-24T14:02:01.300000Z",
    "o": 425.1,
    "h": 425.2,
    "l": 425.0,
    "c": 425.15,
    "v": 1200,
    "seq": 183,
    "event_id": "ibkr_primary|SPY|2025-10-24T14:02:01.234567Z|183",
}
Change = Callable[[dict[str, Any]], Any]


def json_of(record: Any) -> bytes:
    return json.dumps(record).encode()


def changed(**fields: Any) -> dict[str, Any]:
    """A good event with other fields, and an id that fits them."""
    event = GOOD | fields
    if "event_id" not in fields:
        event["event_id"] = "|".join(str(event[name]) for name in ("provider", "symbol", "src_ts", "seq"))
    return event


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


def poison_of(value: bytes) -> str:
    """Why ``value`` is poison, alone and among good records."""
    good = json_of(GOOD)
    alone = EventDecoder().decode([value])
    assert len(alone.batch) == 0
    [(index, reason)] = alone.poison
    assert index == 0
    among = EventDecoder().decode([good, value, good])
    assert among.poison == [(1, reason)]
    assert among.record is not None
    assert among.record.tolist() == [0, 2]
    with pytest.raises(PoisonRecord) as error:
        event_of(value)
    assert str(error.value) == reason
    assert len(reason) < 400, "a reason is for people to read"
    reason.encode()
    return reason


def test_the_event_of_the_contract() -> None:
    event = event_of(json_of(GOOD))
    assert event == StreamEvent(
        "ibkr_primary",
        "SPY",
        "tick",
        "1s",
        1_761_314_521_234_567_000,
        1_761_314_521_300_000_000,
        425.1,
        425.2,
        425.0,
        425.15,
        1200.0,
        183,
    )
    assert event.event_id == GOOD["event_id"]
    assert event_of(msgpack.packb(GOOD)) == event
    assert event_of(b"  \n" + json.dumps(GOOD, indent=2).encode()) == event
    assert json.loads(encode_events(EventBatch.from_events([event]))[0]) == GOOD


@given(st.lists(events(), min_size=1, max_size=12), st.sampled_from(["json", "msgpack", "frame"]))
def test_events_survive_every_codec(
    some: list[StreamEvent], codec: Literal["json", "msgpack", "frame"]
) -> None:
    batch = EventBatch.from_events(some)
    assert batch.events() == some
    assert faults(batch) == {}
    records = [encode_frame(batch)] if codec == "frame" else encode_events(batch, codec)
    decoded = EventDecoder().decode(records)
    assert decoded.poison == []
    assert decoded.ends == []
    assert decoded.lanes is None
    assert decoded.batch.events() == some


@settings(max_examples=50)
@given(SEEDS, st.integers(1, 60))
def test_mixed_records_are_the_same_rows_in_the_same_order(seed: int, n: int) -> None:
    order = arrivals(seed, n, providers=2).order
    values = records(random.Random(seed), order)
    decoded = EventDecoder().decode(values)
    assert decoded.batch.events() == order
    assert decoded.poison == []
    # And the index of each row's record, as decoding one record at a time tells it.
    rows = [i for i, value in enumerate(values) for _ in range(len(EventDecoder().decode([value]).batch))]
    assert (list(range(len(order))) if decoded.record is None else decoded.record.tolist()) == rows


@given(SEEDS, st.integers(1, 60), st.sampled_from(["json", "msgpack"]))
def test_poison_takes_nothing_with_it(seed: int, n: int, codec: Literal["json", "msgpack"]) -> None:
    """The slow path finds the same rows as the fast one."""
    rng = random.Random(seed)
    order = arrivals(seed, n, copies=0).order
    good = encode_events(EventBatch.from_events(order), codec)
    bad = [
        b"",
        b"{",
        json_of(changed(c=1e300)),
        json_of(changed(src_ts="now")),
        msgpack.packb([1]),
        b"\xc1\xff",
    ]
    values: list[bytes] = list(good)
    for value in rng.choices(bad, k=rng.randint(1, 20)):
        values.insert(rng.randint(0, len(values)), value)
    decoded = EventDecoder().decode(values)
    assert decoded.batch.events() == order
    assert [i for i, _ in decoded.poison] == [i for i, value in enumerate(values) if value in bad]
    assert decoded.record is not None
    assert [values[i] for i in decoded.record.tolist()] == good


POISON: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the record is empty"),
    "spaces": (b"   ", "neither a JSON object"),
    "text": (b"hello", "neither a JSON object"),
    "array": (json_of([GOOD]), "neither a JSON object"),
    "string": (json_of("x"), "neither a JSON object"),
    "null": (b"null", "neither a JSON object"),
    "number": (b"1", "neither a JSON object"),
    "utf-16": (json.dumps(GOOD).encode("utf-16"), "neither a JSON object"),
    "byte order mark": (b"\xef\xbb\xbf" + json_of(GOOD), "neither a JSON object"),
    "msgpack array": (msgpack.packb(list(GOOD)), "neither a JSON object"),
    "two objects": (json_of(GOOD) * 2, "trailing characters"),
    "truncated JSON": (json_of(GOOD)[:-10], "truncated"),
    "truncated msgpack": (msgpack.packb(GOOD)[:-10], "truncated"),
    "trailing msgpack": (msgpack.packb(GOOD) + b"\x01", "trailing"),
    "not UTF-8": (json_of(GOOD).replace(b"SPY", b"S\xffY"), "utf-8|UTF-8"),
    "msgpack not UTF-8": (msgpack.packb(GOOD).replace(b"SPY", b"S\xffY"), "utf-8"),
    "half a surrogate pair": (json_of(GOOD).replace(b"SPY", b"S\\ud800"), "surrogate"),
    "deep nesting": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    "NaN in JSON": (json_of(changed(c=float("nan"))), "malformed"),
    "Infinity in JSON": (json_of(changed(h=float("inf"))), "malformed"),
    "NaN in msgpack": (msgpack.packb(changed(c=float("nan"))), "c is not a finite number"),
    "infinity in msgpack": (msgpack.packb(changed(h=float("inf"))), "h is not a finite number"),
    "NaN volume": (msgpack.packb(changed(v=float("nan"))), "v is not a finite number"),
    "number too large": (json_of(GOOD).replace(b"425.15", b"1e999"), "out of range"),
    "beyond the largest price": (
        json_of(changed(o=2e12, h=2e12, l=2e12, c=2e12)),
        "beyond the largest price",
    ),
    "beyond the largest volume": (json_of(changed(v=2e15)), "v 2e\\+15 is beyond the largest volume"),
    "beyond the largest notional": (
        json_of(changed(o=1e10, h=1e10, l=1e10, c=1e10, v=1e12)),
        "price times volume",
    ),
    "low above high": (json_of(changed(l=426.0)), "l 426 is above h 425.2"),
    "open outside": (json_of(changed(o=424.9)), "outside of l 425 to h 425.2"),
    "close outside": (json_of(changed(c=425.3)), "outside of l 425 to h 425.2"),
    "negative volume": (json_of(changed(v=-1)), "v -1 is negative"),
    "ver 2": (json_of(changed(ver=2)), "ver is not 1"),
    "ver 0": (msgpack.packb(changed(ver=0)), "ver is not 1"),
    "ver as text": (json_of(changed(ver="1")), r"\$\.ver"),
    "seq too large": (json_of(changed(seq=2**63)), r"\$\.seq"),
    "seq a fraction": (json_of(changed(seq=1.5)), r"\$\.seq"),
    "seq true": (json_of(changed(seq=True)), r"\$\.seq"),
    "price as text": (json_of(changed(c="425.15")), r"\$\.c"),
    "price true": (msgpack.packb(changed(c=True)), r"\$\.c"),
    "price null": (json_of(changed(o=None)), r"\$\.o"),
    "price a list": (json_of(changed(l=[1])), r"\$\.l"),
    "symbol a number": (json_of(changed(symbol=5)), r"\$\.symbol"),
    "symbol null": (json_of(changed(symbol=None)), r"\$\.symbol"),
    "symbol bytes": (msgpack.packb(changed(symbol=b"SPY")), r"\$\.symbol"),
    "no symbol": (json_of(changed(symbol="")), "symbol must have 1 to 128 characters, not 0"),
    "no provider": (json_of(changed(provider="")), "provider must have 1 to 128 characters"),
    "symbol of 1 MB": (
        json_of(changed(symbol="S" * 2**20)),
        "symbol must have 1 to 128 characters, not 1048576",
    ),
    "symbol with a bar": (json_of(changed(symbol="A|B")), r"symbol has a '\|'"),
    "symbol with a NUL": (json_of(changed(symbol="A\0B")), "cannot be printed"),
    "symbol with a line break": (json_of(changed(symbol="A\nB")), "cannot be printed"),
    "kind unknown": (json_of(changed(kind="trade")), "kind 'trade' is none of tick, bar, quote"),
    "kind of 1 MB": (json_of(changed(kind="k" * 2**20)), "is none of tick, bar, quote"),
    "interval unknown": (json_of(changed(interval="1 minute")), "interval '1 minute' is not a duration"),
    "interval zero": (json_of(changed(interval="0s")), "interval '0s' is not a duration"),
    "time without a zone": (json_of(changed(src_ts="2025-10-24T14:02:01")), "has no time zone"),
    "time that does not exist": (json_of(changed(src_ts="2025-02-29T14:02:01Z")), "does not exist"),
    "time in the year 9999": (json_of(changed(src_ts="9999-12-31T00:00:00Z")), "outside of the years"),
    "time a number": (json_of(changed(src_ts=1_761_314_521)), r"\$\.src_ts"),
    "time of 1 MB": (json_of(changed(src_ts="2" * 2**20)), "not an RFC 3339 time"),
    "ingest time wrong": (json_of(changed(ingest_ts="yesterday")), "not an RFC 3339 time"),
    "id of another event": (
        json_of(changed(event_id="ibkr_primary|SPY|2025-10-24T14:02:01.234567Z|184")),
        "event_id",
    ),
    "id of 1 MB": (json_of(changed(event_id="x" * 2**20)), "event_id"),
    "id empty": (json_of(changed(event_id="")), "event_id"),
    **{f"without {name}": (json_of(without(name)), f"missing required field `{name}`") for name in GOOD},
    **{
        f"msgpack without {name}": (msgpack.packb(without(name)), f"required field `{name}`") for name in GOOD
    },
}


@pytest.mark.parametrize("what", POISON)
def test_poison_says_why(what: str) -> None:
    value, reason = POISON[what]
    said = poison_of(value)
    assert re.search(reason, said, re.IGNORECASE), said


ACCEPTED: dict[str, Any] = {
    "a field of a later minor version": GOOD | {"venue": {"mic": "XNAS"}},
    "whole numbers as prices": changed(o=425, h=426, l=425, c=425),
    "a whole number with a point as volume": changed(v=1200.0),
    "negative prices": changed(o=-1, h=-1, l=-2, c=-2),
    "zero volume": changed(v=0),
    "the largest price": changed(o=MAX_PRICE, h=MAX_PRICE, l=MAX_PRICE, c=MAX_PRICE, v=1),
    "the largest volume": changed(v=MAX_VOLUME),
    "the largest seq": changed(seq=2**63 - 1),
    "the smallest seq": changed(seq=-(2**63)),
    "a name of 128 characters": changed(symbol="S" * 128),
    "a name in another script": changed(symbol="トヨタ"),
    "a name with spaces and dots": changed(symbol="BRK.B US Equity"),
    "the first time": changed(src_ts="1678-01-01T00:00:00.000000Z"),
    "the last time": changed(src_ts="2261-12-31T23:59:59.999999999Z"),
}


@pytest.mark.parametrize("what", ACCEPTED)
@pytest.mark.parametrize("write", [json_of, msgpack.packb])
def test_what_is_at_the_limit_is_accepted(what: str, write: Callable[[Any], bytes]) -> None:
    record = ACCEPTED[what]
    event = event_of(write(record))
    for name in ("symbol", "o", "h", "l", "c", "v", "seq"):
        assert getattr(event, name) == record[name]


@pytest.mark.parametrize(
    "src_ts", ["2025-10-24T14:02:01Z", "2025-10-24T16:02:01.0+02:00", "2025-10-24t14:02:01.000000000z"]
)
def test_the_id_has_the_time_as_written_or_in_canonical_form(src_ts: str) -> None:
    want = 1_761_314_521 * SECOND
    canonical = "ibkr_primary|SPY|2025-10-24T14:02:01.000000Z|183"
    for event_id in (f"ibkr_primary|SPY|{src_ts}|183", canonical):
        event = event_of(json_of(changed(src_ts=src_ts, event_id=event_id)))
        assert event.src_ts == want
        assert event.event_id == canonical
    assert "event_id" in poison_of(
        json_of(changed(src_ts=src_ts, event_id=canonical.replace("01.0", "02.0")))
    )


def test_intervals_are_canonical_and_one_series() -> None:
    values = [json_of(changed(interval=text, seq=i)) for i, text in enumerate(["60s", "1m", "60000ms", "1m"])]
    batch = EventDecoder().decode(values).batch
    assert batch.series == (Series("ibkr_primary", "SPY", "tick", "1m"),)
    assert batch.code.tolist() == [0, 0, 0, 0]


def test_prices_of_ticks_are_one_array_and_others_are_not() -> None:
    tick, bar = changed(o=5, h=5, l=5, c=5), changed(seq=9)
    flat = EventDecoder().decode([json_of(tick)] * 3).batch
    assert flat.o is flat.h is flat.l is flat.c
    mixed = EventDecoder().decode([json_of(tick), json_of(bar)]).batch
    assert mixed.o.tolist() == [5.0, 425.1]
    assert mixed.c.tolist() == [5.0, 425.15]


def test_the_table_of_series_grows_and_stays_the_same_tuple_between() -> None:
    decoder = EventDecoder()
    first = decoder.decode([json_of(changed(symbol=s)) for s in "ABA"]).batch
    again = decoder.decode([json_of(changed(symbol=s)) for s in "BB"]).batch
    assert again.series is first.series
    assert again.code.tolist() == [1, 1]
    grown = decoder.decode([encode_frame(first), json_of(changed(symbol="C"))]).batch
    assert grown.series[:2] == first.series
    assert [grown.series[code].symbol for code in grown.code] == ["A", "B", "A", "C"]
    poisoned = decoder.decode([json_of(changed(symbol="D|E")), json_of(changed(symbol="C"))])
    assert poisoned.batch.series is grown.series


def test_a_table_beyond_its_bound_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_decoder, "MAX_SERIES", 4)
    decoder = EventDecoder()
    for i in range(40):
        order = arrivals(i, 7, symbols=50, copies=0).order
        batch = EventBatch.from_events(order)
        decoded = decoder.decode([encode_frame(batch)] if i % 2 else encode_events(batch))
        assert decoded.batch.events() == order
        assert len(decoded.batch.series) <= 4 + 7


def test_lanes_of_records_and_of_frames() -> None:
    batch = EventBatch.from_events(arrivals(1, 3, copies=0).order)
    one = json_of(GOOD)
    values = [one, encode_frame(batch, "replay/7/p0"), encode_frame(batch), encode_end_of_lane("replay/7/p0")]
    given_lanes = ["replay/9/x", None, "replay/8/y", None]
    decoded = EventDecoder().decode(values, given_lanes)
    assert decoded.lanes == ["replay/9/x", "replay/7/p0", "replay/8/y", "replay/7/p0"]
    assert decoded.ends == [(3, "replay/7/p0")]
    assert decoded.record is not None
    assert decoded.record.tolist() == [0, 1, 1, 1, 2, 2, 2]
    assert given_lanes == ["replay/9/x", None, "replay/8/y", None], (
        "what the bus delivered is not ours to change"
    )
    assert EventDecoder().decode(values).lanes == [None, "replay/7/p0", None, "replay/7/p0"]
    assert EventDecoder().decode([one, one], ["a", None]).lanes == ["a", None]


@pytest.mark.parametrize("lane", ["", "a\0b", "a\nb", "x" * 401])
def test_a_lane_that_cannot_be_kept_is_poison(lane: str) -> None:
    """The empty name is the partition's own, and the database refuses others."""
    batch = EventBatch.from_events(arrivals(1, 3, copies=0).order)
    good = json_of(GOOD)
    cases: list[tuple[list[bytes], list[str | None] | None]] = [
        ([good, good], [None, lane]),
        ([good, encode_frame(batch)], ["fine", lane]),
        ([good, encode_frame(batch, lane)], None),
        ([good, encode_end_of_lane(lane)], None),
    ]
    for values, lanes in cases:
        decoded = EventDecoder().decode(values, lanes)
        assert [index for index, _ in decoded.poison] == [1]
        assert "a lane must have 1 to 400 printable characters" in decoded.poison[0][1]
        assert len(decoded.batch) == 1
        assert decoded.ends == []


@pytest.mark.parametrize("name", ["src_ts", "ingest_ts"])
@pytest.mark.parametrize("at", [MIN_TIME - 1, MAX_TIME + 1, -(2**63), 2**63 - 1])
def test_times_of_frames_are_within_the_years_of_the_contract(name: str, at: int) -> None:
    """Otherwise one row would overflow the arithmetic of windows."""
    events = arrivals(1, 3, copies=0).order
    batch = EventBatch.from_events(events)
    column = getattr(batch, name)
    column[1] = at
    decoded = EventDecoder().decode([encode_frame(batch)])
    assert decoded.poison == [(0, f"frame row 1: {name} is outside of the years 1678 to 2261")]


@given(
    st.lists(st.one_of(st.binary(max_size=40), st.binary(max_size=40).map(lambda b: b"\xc1" + b)), max_size=8)
)
def test_random_bytes_never_do_more_than_become_poison(values: list[bytes]) -> None:
    good = json_of(GOOD)
    decoded = EventDecoder().decode([good, *values, b"", good])
    assert decoded.record is not None
    assert {0, len(values) + 2} <= set(decoded.record.tolist())
    for _, reason in decoded.poison:
        assert reason


@given(st.integers(0, 2**31), st.integers(1, 6), st.booleans())
def test_damaged_records_never_do_more_than_become_poison(seed: int, flips: int, as_json: bool) -> None:
    rng = random.Random(seed)
    value = bytearray(json_of(GOOD) if as_json else msgpack.packb(GOOD))
    for _ in range(flips):
        value[rng.randrange(len(value))] = rng.randrange(256)
    decoded = EventDecoder().decode([bytes(value)])
    assert len(decoded.batch) + len(decoded.poison) == 1
    assert faults(decoded.batch) == {}


def test_a_frame_of_bars_is_no_event_and_a_frame_no_single_event() -> None:
    batch = EventBatch.from_events(arrivals(1, 3, copies=0).order)
    assert "frame of bars" in poison_of(encode_bars(partial_bars(batch, SECOND)))
    with pytest.raises(PoisonRecord, match="a frame, not a single event"):
        event_of(encode_frame(batch))
    for value in (json_of(GOOD), b"", encode_frame(batch)):
        with pytest.raises(PoisonRecord, match="bars"):
            decode_bars(value)


@given(SEEDS, st.integers(1, 80))
def test_bars_survive_a_frame(seed: int, n: int) -> None:
    bars = partial_bars(EventBatch.from_events(arrivals(seed, n, providers=2).distinct), 5 * SECOND)
    again = decode_bars(encode_bars(bars))
    assert again.bars() == bars.bars()
    for name in ("volume_lo", "notional", "notional_lo", "first_seq", "last_seq"):
        assert getattr(again, name).tobytes() == getattr(bars, name).tobytes()
    assert len(decode_bars(encode_bars(BarBatch.empty()))) == 0


@given(
    st.text(max_size=20).map(lambda s: s.encode("utf-8", "replace").decode()),
    st.binary(max_size=200),
    st.none() | st.just("replay/1/p"),
)
def test_dead_letters_keep_the_original_bytes(reason: str, value: bytes, lane: str | None) -> None:
    letter = DeadLetter(reason, "mdp.events", 3, "1763-0", "SPY", lane, value, BASE)
    assert decode_dead_letter(encode_dead_letter(letter)) == letter


@pytest.mark.parametrize("value", [b"", b"\xff", b"{}", msgpack.packb({"ver": 2}), json_of(GOOD)])
def test_what_is_no_dead_letter_is_poison(value: bytes) -> None:
    with pytest.raises(PoisonRecord, match="not a dead letter"):
        decode_dead_letter(value)


def test_faults_name_each_bad_row() -> None:
    batch = EventBatch.from_events([event_of(json_of(changed(seq=i))) for i in range(5)])
    batch.v[1] = -1
    batch.h[3] = np.nan
    batch.src_ts[4] = MAX_TIME + 1
    assert faults(batch) == {
        1: "v -1 is negative",
        3: "h is not a finite number",
        4: "src_ts is outside of the years 1678 to 2261",
    }
    # Whichever limit is passed by a hair.
    for c, v, ok in (
        (1e9, MAX_NOTIONAL / 1e9, True),
        (1.01e9, MAX_NOTIONAL / 1e9, False),
        (-1.01e9, 1e12, False),
    ):
        row = EventBatch.from_events([event_of(json_of(changed(o=c, h=c, l=c, c=c)))])
        row.v[0] = v
        assert bool(faults(row)) is not ok
