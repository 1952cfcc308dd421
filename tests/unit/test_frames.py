"""Frames: what is damaged, cut or made up becomes a PoisonRecord and nothing else."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_core import frames
from market_data_core.batch import EventBatch
from market_data_core.codecs import EventDecoder, encode_bars, encode_end_of_lane, encode_frame, faults
from market_data_core.errors import PoisonRecord
from market_data_core.events import Series, StreamEvent
from market_data_core.ohlcv import partial_bars
from tests.unit.strategies import BASE, SECOND, SEEDS, arrivals

EVENTS = arrivals(5, 12, providers=2, copies=0).order
BATCH = EventBatch.from_events(EVENTS)
FRAME = encode_frame(BATCH)
TICKS = encode_frame(EventBatch.from_events([e for e in EVENTS if e.kind == "tick"]))
BARS = encode_bars(partial_bars(BATCH, SECOND))


def fields_of(frame: bytes) -> dict[str, Any]:
    return msgspec.msgpack.decode(frame[1:])  # type: ignore[no-any-return]


def frame_with(frame: bytes, **fields: Any) -> bytes:
    """``frame`` with other fields; None takes one away."""
    changed = {name: value for name, value in (fields_of(frame) | fields).items() if value is not None}
    return b"\xc1" + msgspec.msgpack.encode(changed)


def read(frame: bytes) -> EventBatch:
    """The events of ``frame``, or the reason why there are none."""
    decoded = EventDecoder().decode([frame])
    if decoded.poison:
        assert len(decoded.batch) == 0
        raise PoisonRecord(decoded.poison[0][1])
    return decoded.batch


def test_every_cut_of_a_frame_is_poison() -> None:
    for frame in (FRAME, TICKS, encode_end_of_lane("replay/1/p")):
        for length in range(1, len(frame)):
            with pytest.raises(PoisonRecord):
                read(frame[:length])
    for length in range(len(BARS)):
        with pytest.raises(PoisonRecord):
            frames.decode_bars(BARS[:length])
    with pytest.raises(PoisonRecord, match="not a frame"):
        read(FRAME + b"\0")


@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_damaged_frames_are_poison_or_events_within_the_limits(seed: int, flips: int) -> None:
    rng = random.Random(seed)
    for original in (FRAME, TICKS, BARS):
        frame = bytearray(original)
        for _ in range(flips):
            frame[rng.randrange(1, len(frame))] = rng.randrange(256)
        decoded = EventDecoder().decode([bytes(frame)])
        assert all(0 < len(reason) < 400 for _, reason in decoded.poison)
        assert faults(decoded.batch) == {}
        assert set(decoded.batch.code.tolist()) <= set(range(len(decoded.batch.series)))
        with contextlib.suppress(PoisonRecord):
            bars = frames.decode_bars(bytes(frame))
            assert set(bars.code.tolist()) <= set(range(len(bars.series)))


@given(st.binary(max_size=200))
def test_random_bytes_behind_the_mark_are_poison(noise: bytes) -> None:
    with pytest.raises(PoisonRecord):
        read(b"\xc1" + noise)


COLUMNS = ("code", "src_ts", "c", "v", "seq", "o", "h", "l", "ingest_ts")


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw[:-1],
        lambda raw: raw + b"\0",
        lambda raw: raw[:-8],
        lambda raw: raw * 2,
        lambda raw: b"",
    ],
)
def test_a_column_of_another_length_is_poison(name: str, change: Callable[[bytes], bytes]) -> None:
    fields = fields_of(FRAME)
    assert set(COLUMNS) <= fields.keys(), "the sample must have every column"
    with pytest.raises(PoisonRecord, match=rf"frame column {name} has \d+ bytes, not 12 values of"):
        read(frame_with(FRAME, **{name: change(fields[name])}))


@pytest.mark.parametrize("codes", [[0] * 11 + [99], [-1] + [0] * 11, [2**31 - 1] * 12, [-(2**31)] * 12])
def test_codes_without_a_series_are_poison(codes: list[int]) -> None:
    with pytest.raises(PoisonRecord, match="codes outside of its"):
        read(frame_with(FRAME, code=np.array(codes, "<i4").tobytes()))


TWELVE = "A|B|C|D|E|F|G|H|I|J|K|L"
POISON: dict[str, tuple[dict[str, Any], str]] = {
    "no rows claimed": ({"n": 0}, "more than 3 series|has 96 bytes, not 0"),
    "negative rows": ({"n": -12}, "more than 3 series"),
    "too many rows": ({"n": 2**40}, "bytes, not 1099511627776 values"),
    "rows as text": ({"n": "12"}, r"\$\.n"),
    "no series": ({"series": []}, "codes outside of its 0 series"),
    "series as text": ({"series": "p"}, r"\$\.series"),
    "a series of three": ({"series": [["p", "tick", "1s"]]}, r"\$\.series"),
    "a bad provider": ({"series": [["p\0", "tick", "1s", TWELVE]]}, "cannot be printed"),
    "an empty symbol": (
        {"series": [["p", "tick", "1s", TWELVE[1:]]]},
        "symbol must have 1 to 128 characters, not 0",
    ),
    "a bad kind": ({"series": [["p", "trade", "1s", TWELVE]]}, "kind 'trade' is none of"),
    "a bad interval": ({"series": [["p", "tick", "0s", TWELVE]]}, "interval '0s'"),
    "too many series": (
        {"series": [["p", "tick", "1s", "|".join(map(str, range(37)))]]},
        "more than 3 series",
    ),
    "another version": ({"ver": 2}, r"\$\.ver"),
    "another kind of frame": ({"t": "x" * 100_000}, "not a frame"),
    "no kind of frame": ({"t": None}, r"missing required field `t`"),
    "no prices": ({"c": None}, "missing required field `c`"),
    "prices as numbers": ({"c": [1.0] * 12}, r"\$\.c"),
    "a stamp out of range": ({"ingest_ts": 2**63}, "ingest_ts is out of range"),
    "a stamp of another age": ({"ingest_ts": -(2**63)}, "ingest_ts is outside of the years"),
    "a lane as number": ({"lane": 5}, r"\$\.lane"),
    "a price that is none": ({"c": np.full(12, np.nan).tobytes()}, "frame row 0: c is not a finite number"),
    "a negative volume": ({"v": np.array([1.0] * 7 + [-1.0] * 5).tobytes()}, "frame row 7: v -1 is negative"),
}


@pytest.mark.parametrize("what", POISON)
def test_a_made_up_frame_says_what_is_wrong(what: str) -> None:
    fields, reason = POISON[what]
    with pytest.raises(PoisonRecord, match=reason) as error:
        read(frame_with(FRAME, **fields))
    assert len(str(error.value)) < 400


def test_bars_frames_that_lack_something_are_poison() -> None:
    fields = fields_of(BARS)
    for name in fields["columns"]:
        rest = {key: raw for key, raw in fields["columns"].items() if key != name}
        with pytest.raises(PoisonRecord, match=f"no column '{name}'"):
            frames.decode_bars(frame_with(BARS, columns=rest))
        with pytest.raises(PoisonRecord, match=f"column {name} has"):
            frames.decode_bars(frame_with(BARS, columns=rest | {name: b"\0" * 7}))
    with pytest.raises(PoisonRecord, match="codes outside"):
        frames.decode_bars(frame_with(BARS, series=[]))
    with pytest.raises(PoisonRecord, match="column revision"):
        frames.decode_bars(frame_with(BARS, revision=b""))


def test_poison_leaves_the_decoder_as_it_was() -> None:
    decoder = EventDecoder()
    before = decoder.decode([FRAME]).batch
    for fields, _ in POISON.values():
        decoder.decode([frame_with(FRAME, **fields)])
    after = decoder.decode([FRAME]).batch
    assert after.events() == before.events() == EVENTS
    assert after.series[: len(before.series)] == before.series


@pytest.mark.parametrize("bad", ["A|B", "", "x" * 129, "a\0"])
def test_a_name_in_the_table_that_no_row_refers_to_harms_nobody(bad: str) -> None:
    """Readers of files put rows aside and keep their table."""
    table = (*BATCH.series, Series("p0", bad, "tick", "1s"), Series("p0", "Z", "tick", "1s"))
    frame = encode_frame(BATCH.with_series(table))
    decoder = EventDecoder()
    for _ in range(2):
        assert decoder.decode([frame]).batch.events() == EVENTS


@pytest.mark.parametrize("bad", ["", "x" * 129, "a\0"])
def test_a_row_of_a_bad_name_is_poison(bad: str) -> None:
    frame = encode_frame(BATCH.with_series(tuple(s._replace(symbol=bad) for s in BATCH.series)))
    decoder = EventDecoder()
    for _ in range(2):
        [(_, reason)] = decoder.decode([frame]).poison
        assert reason.startswith("symbol ")


def test_a_symbol_with_a_bar_cannot_be_framed() -> None:
    names = tuple(Series("p", f"A|{i}", "tick", "1s") for i in range(len(BATCH.series)))
    with pytest.raises(ValueError, match=r"a symbol has a '\|'"):
        encode_frame(BATCH.with_series(names))


@given(SEEDS, st.integers(1, 40), st.integers(1, 200))
def test_frames_of_parts_of_a_large_table(seed: int, rows: int, symbols: int) -> None:
    """Whether the whole table is sent or what of it is used, the names are the same."""
    rng = random.Random(seed)
    pool = [
        StreamEvent(f"p{i % 3}", f"S{i}", "tick", f"{1 + i % 2}s", BASE, BASE, 1, 1, 1, 1, 1, i)
        for i in range(symbols)
    ]
    table = EventBatch.from_events(pool)
    decoder = EventDecoder()
    for _ in range(3):
        chosen = [rng.randrange(symbols) for _ in range(rows)]
        frame = encode_frame(table.take(np.array(chosen)))
        assert decoder.decode([frame]).batch.events() == [pool[i] for i in chosen]


def test_ticks_send_their_price_once_and_one_stamp_once() -> None:
    flat = EventBatch.from_events(
        [StreamEvent("p", "A", "tick", "1s", BASE + i, BASE, 5, 5, 5, 5, 1, i) for i in range(9)]
    )
    fields = fields_of(encode_frame(flat))
    assert not {"o", "h", "l", "lane"} & fields.keys()
    assert fields["ingest_ts"] == BASE
    batch = read(encode_frame(flat))
    assert batch.o is batch.h is batch.l is batch.c
    assert batch.ingest_ts.tolist() == [BASE] * 9


def test_an_empty_frame_has_no_events() -> None:
    frame = encode_frame(EventBatch.empty())
    decoded = EventDecoder().decode([frame, FRAME, frame])
    assert decoded.poison == []
    assert decoded.batch.events() == EVENTS
    assert decoded.record is not None
    assert set(decoded.record.tolist()) == {1}
