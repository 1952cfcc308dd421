"""Records read by the text around their values, against the same records read one at a time by a parser of JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_core import json_columns
from market_data_core.batch import EventBatch
from market_data_core.codecs import EventDecoder, encode_events, encode_frame
from market_data_core.events import StreamEvent
from market_data_core.json_columns import JsonColumns
from market_data_core.series_codes import SeriesCodes
from market_data_core.text_columns import LONGEST_FLOAT, LONGEST_INT, TextColumns
from tests.unit.strategies import BASE, SECOND, SEEDS, arrivals, records

FIELDS: Final = (
    "ver",
    "provider",
    "symbol",
    "kind",
    "interval",
    "src_ts",
    "ingest_ts",
    *"ohlcv",
    "seq",
    "event_id",
)
NUMBERS: Final = (
    *(
        "0",
        "0.0",
        "00",
        "01",
        "01.5",
        "1.",
        ".5",
        ".",
        "",
        "1..2",
        "1.2.3",
        "-1",
        "-0",
        "+1",
        "1e3",
        "1E-2",
        " 5",
        "5 ",
    ),
    *("9007199254740991", "9007199254740992", "9007199254740993", "12345678.12345678", "0.30000000000000004"),
    *(
        "1234567.8",
        "12345678",
        "123456789",
        "999999999999999",
        "0.000000000000001",
        "1e400",
        "NaN",
        "null",
        '"5"',
        "[5]",
    ),
    *("5/", "5:", "5;", "5\\u0030", "5\x00", "1\xa0", "5,6", '5,"c":6', "5}", "5}{", "5\n"),
)
SYMBOLS: Final = (
    *(
        "S1",
        "S2",
        "BRK.B",
        "a" * 8,
        "b" * 9,
        "c" * 31,
        "d" * 32,
        "e" * 33,
        "f" * 128,
        "g" * 129,
        "",
        "A|B",
        "トヨタ",
    ),
    *('A"', '","symbol":"S1', "A\\", "\\u0041", "A\\u0042", "A\x01", "\xa0", "S1\x00", "€" * 10),
)
TIMES: Final = (
    *("2025-10-24T14:02:01Z", "2025-10-24T14:59:59.9Z", "2025-10-24T23:59:59.999999999Z"),
    *("2025-10-24T14:02:60.000000Z", "2025-10-24T14:60:01.000000Z", "2025-10-24T24:02:01.000000Z"),
    *("2025-02-29T14:02:01.000000Z", "1677-12-31T23:59:59.000000Z", "2262-01-01T00:00:00.000000Z"),
    *("2025-10-24t14:02:01.000000z", "2025-10-24 14:02:01.000000Z", "2025-10-24T14:02:01.00000:Z"),
    *("2025-10-24T14:02:01.0000 0Z", "2025-10-24T14:02:01+00:00", "2025-10-24T14:02:01.000000", "0"),
    "\uff12025-10-24T14:02:01.0000Z",
)


@pytest.fixture(autouse=True)
def _even_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever number of records, they are read by their text first."""
    monkeypatch.setattr(json_columns, "FEWEST", 1)
    monkeypatch.setattr(json_columns, "_REST", 0)


def one_by_one(values: list[bytes]) -> tuple[list[StreamEvent], list[tuple[int, str]]]:
    """Events and poison, by a decoder that has one record at a time and never reads by text."""
    events: list[StreamEvent] = []
    poison: list[tuple[int, str]] = []
    decoder = EventDecoder()
    for i, value in enumerate(values):
        decoder._json._resting = 10
        decoded = decoder.decode([value])
        events += decoded.batch.events()
        poison += [(i, reason) for _, reason in decoded.poison]
    return events, poison


def both_agree(values: list[bytes], decoder: EventDecoder | None = None) -> None:
    decoded = (decoder or EventDecoder()).decode(values)
    events, poison = one_by_one(values)
    assert decoded.poison == poison
    assert list(map(repr, decoded.batch.events())) == list(map(repr, events)), "to the sign of a zero"
    if poison:
        assert decoded.record is not None
        bad = {index for index, _ in poison}
        assert decoded.record.tolist() == [i for i in range(len(values)) if i not in bad]


def written(order: tuple[str, ...], gaps: tuple[str, str], fields: dict[str, str]) -> bytes:
    """One record, its fields in an ``order``; values as they are to be written."""
    fields = {"ver": "1"} | fields
    before, between = gaps
    return ("{" + f",{before}".join(f'"{name}":{between}{fields[name]}' for name in order) + "}").encode()


def event(rng: random.Random, seq: int) -> dict[str, str]:
    """A good event, as the texts of its values."""
    at = f"2025-10-24T14:{rng.randrange(58, 60)}:{rng.randrange(60):02d}.{rng.randrange(10**6):06d}Z"
    price = f"{rng.randrange(10 ** rng.randrange(1, 8)) / 100}"
    symbol, provider = rng.choice(("S1", "S2", "LONGSYMBOL", "X" * 20)), rng.choice(("p", "provider"))
    low, high = (price, price) if rng.random() < 0.5 else ("0", f"{float(price) + 1:.2f}")
    return {
        "provider": f'"{provider}"',
        "symbol": f'"{symbol}"',
        "kind": '"tick"' if rng.random() < 0.8 else '"bar"',
        "interval": '"1s"',
        "src_ts": f'"{at}"',
        "ingest_ts": f'"{at}"',
        "o": price,
        "h": high,
        "l": low,
        "c": price,
        "v": rng.choice(("0", "1.0", "250", "12.5")),
        "seq": str(seq),
        "event_id": f'"{provider}|{symbol}|{at}|{seq}"',
    }


def damaged(rng: random.Random, fields: dict[str, str]) -> dict[str, str]:
    """``fields`` with one value of another form, mostly with the id that goes with it."""
    name = rng.choice((*FIELDS[1:], "symbol", "src_ts", "seq"))
    if name in "ohlcv" or name == "seq":
        fields[name] = rng.choice(NUMBERS)
    elif name in ("src_ts", "ingest_ts"):
        fields[name] = f'"{rng.choice(TIMES)}"'
    elif name == "event_id":
        fields[name] = fields[name][: rng.randrange(2, len(fields[name]))] + rng.choice(
            ('"', 'x"', '|1"', "")
        )
        return fields
    else:
        fields[name] = f'"{rng.choice(SYMBOLS)}"'
    if rng.random() < 0.8:
        parts = (fields[n].strip('"') for n in ("provider", "symbol", "src_ts", "seq"))
        fields["event_id"] = f'"{"|".join(parts)}"'
    return fields


@given(SEEDS, st.integers(1, 40), st.sampled_from([0.0, 0.1, 0.5]))
@settings(max_examples=200)
def test_what_is_read_by_text_is_what_a_parser_reads(seed: int, n: int, bad: float) -> None:
    rng = random.Random(seed)
    order = FIELDS
    if rng.random() < 0.3:
        order = (*rng.sample(FIELDS[:-1], len(FIELDS) - 1), "event_id")
    if rng.random() < 0.1:
        order = tuple(rng.sample(FIELDS, len(FIELDS)))
    gaps = rng.choice((("", ""), (" ", " "), ("", " "), ("\n", "\t")))
    values = []
    for seq in range(n):
        fields = event(rng, rng.choice((seq, seq * 10**12, -seq)))
        if rng.random() < bad:
            fields = damaged(rng, fields)
        value = bytearray(written(order, gaps, fields))
        if rng.random() < bad / 3:
            value[rng.randrange(len(value))] = rng.randrange(256)
        values.append(bytes(value))
    both_agree(values)


@given(SEEDS)
@settings(max_examples=150)
def test_records_that_are_cut_elsewhere_are_no_others(seed: int) -> None:
    """Bytes are moved from a record to the next one, so that all of them together stay the same."""
    rng = random.Random(seed)
    values = [written(FIELDS, ("", ""), event(rng, seq)) for seq in range(12)]
    for _ in range(rng.randrange(1, 4)):
        i = rng.randrange(len(values) - 1)
        both = values[i] + rng.choice((b"", b",", b"\n", b" ")) + values[i + 1]
        cut = rng.choice(
            (0, 1, len(values[i]) - 1, len(values[i]) + 1, len(both) - 1, rng.randrange(len(both)))
        )
        values[i : i + 2] = [both[:cut], both[cut:]]
    both_agree(values)


TWISTS: dict[str, Callable[[bytes], list[bytes]]] = {
    "two objects with a comma, and none": lambda v: [v + b"," + v, b""],
    "two objects, and none": lambda v: [v + v, b"", v],
    "two objects in two lines, and none": lambda v: [v + b"\n" + v, b" "],
    "an object cut in two": lambda v: [v[:40], v[40:], v],
    "a record that goes on in the next": lambda v: [v[:-1], b"}" + v],
    "a field twice": lambda v: (
        [v.replace(b'"o":', b'"c":1,"o":'), v.replace(b'"ver":1', b'"ver":2,"ver":1')] * 3
    ),
    "a field in the place of another": lambda v: [v.replace(b'"o":', b'"x":'), v],
    "a field more, and more in that": lambda v: [v[:-1] + b',"more":{"symbol":"Z","c":[1]}}'] * 3 + [v],
    "another version": lambda v: [v, v.replace(b'"ver":1', b'"ver":2'), v],
    "names in capitals": lambda v: [v, v.replace(b'"src_ts"', b'"SRC_TS"'), v],
    "an array": lambda v: [b"[" + v + b"]", v],
    "white space around it": lambda v: [b" " + v, v + b"\r\n", b"\n" + v + b" "] * 3,
    "a record that is longer than any template": lambda v: [v + b" " * 2000, v] * 2,
    "one that ends within its last value": lambda v: [v, v[:-2], v[:-1], v + b"}"],
    "zero bytes behind it": lambda v: [v, v + b"\0", v + bytes(80)],
    "an escape in a symbol": lambda v: [v, *[v.replace(json.loads(v)["symbol"].encode(), b"\\u0041")] * 3],
    "a control character in a symbol": lambda v: [
        v,
        *[v.replace(json.loads(v)["symbol"].encode(), b"A\x01")] * 3,
    ],
    "a frame, and msgpack": lambda v: [
        v,
        encode_frame(EventBatch.from_events(arrivals(1, 1, copies=0).order)),
        *encode_events(EventBatch.from_events(arrivals(2, 3, copies=0).order), "msgpack"),
    ],
}


@pytest.mark.parametrize("what", TWISTS)
@pytest.mark.parametrize("first", [True, False])
def test_what_is_not_one_object_a_record_is_never_taken_for_it(what: str, first: bool) -> None:
    rng = random.Random(what)
    good = [written(FIELDS, ("", ""), event(rng, seq)) for seq in range(6)]
    twisted = TWISTS[what](good[0])
    decoder = EventDecoder()
    if not first:
        decoder.decode(good)
    both_agree(twisted + good if first else good + twisted, decoder)


@given(SEEDS)
@settings(max_examples=30)
def test_records_of_many_writers_and_codecs_keep_their_order(seed: int) -> None:
    rng = random.Random(seed)
    order = arrivals(seed, 60, providers=3, symbols=9).order
    values = records(rng, order, longest_frame=3)
    decoder = EventDecoder()
    for some in (values[: len(values) // 2], values[len(values) // 2 :]):
        json_first = min(range(len(some)), key=lambda i: some[i][:1] != b"{")
        half = some[json_first:] + some[:json_first]
        assert decoder.decode(half).batch.events() == one_by_one(half)[0]


def test_it_is_by_text_that_plain_records_are_read() -> None:
    """What all tests above would not notice: that everything is left to the parser."""
    batch = EventBatch.from_events(arrivals(3, 500, providers=2, copies=0).order)
    batch = replace(batch, ingest_ts=batch.ingest_ts // 1000 * 1000)
    values = encode_events(batch)
    columns_of_four = JsonColumns(SeriesCodes())
    columns_of_four.read(values)  # learns two writers a time
    parts, left = columns_of_four.read(values)
    assert not len(left)
    assert sum(len(rows) for _, rows in parts) == len(values)
    spaced = [json.dumps(json.loads(value)).encode() for value in values]
    assert len(JsonColumns(SeriesCodes()).read(spaced)[1]) < len(spaced) / 2
    ticks = [v for v in values if b'"tick"' in v and b"p0" in v]
    ((columns, _),), _ = JsonColumns(SeriesCodes()).read(ticks)
    assert columns.o is columns.h is columns.l is columns.c


def test_a_consumer_does_not_try_for_ever_what_never_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_columns, "_REST", 3)
    never = [json.dumps(json.loads(v) | {"venue": "X"}).encode() for v in encode_events(_ticks(20))]
    columns = JsonColumns(SeriesCodes())
    tried = []
    for _ in range(8):
        tried.append(not columns._resting)
        assert len(columns.read(never)[1]) == len(never)
    assert tried == [True, False, False, False, True, False, False, False]


def _ticks(n: int) -> EventBatch:
    return EventBatch.from_events(
        [
            StreamEvent("p", "S", "tick", "1s", BASE + i * SECOND, BASE, 1.5, 1.5, 1.5, 1.5, 1.0, i)
            for i in range(n)
        ]
    )


TEXTS: Final = st.text("0123456789", min_size=1, max_size=20) | st.text("0123456789.-eE /:", max_size=20)
PLAIN: Final = st.one_of(
    st.decimals(0, 10**12, places=3).map(str),
    st.integers(0, 10**19).map(str),
    st.integers(2**53 - 9, 2**53 + 9).map(str),
    st.from_regex(r"[0-9]{1,7}\.[0-9]{1,7}\.?[0-9]{1,3}", fullmatch=True),
)


def _plain_float(text: str) -> bool:
    """Whether JSON has the number so, without a sign and an exponent, short enough."""
    digits = text.replace(".", "", 1)
    whole = text.partition(".")[0]
    return (
        digits.isdecimal()
        and len(text) <= LONGEST_FLOAT
        and int(digits) < 2**53
        and text[0] != "."
        and text[-1] != "."
        and (whole == "0" or whole[0] != "0")
    )


@given(st.lists(st.tuples(TEXTS | PLAIN, st.sampled_from("0123456789.,\x00 9")), min_size=1, max_size=30))
def test_numbers_are_those_of_python(given_texts: list[tuple[str, str]]) -> None:
    """Also where digits follow behind their ends and come before their beginnings, which are none of them."""
    columns = TextColumns([f"9{text}{behind}".encode() for text, behind in given_texts])
    texts = [text for text, _ in given_texts]
    at, width = columns.start + 1, np.array(list(map(len, texts)))
    floats, good = columns.floats(at, width)
    ints, whole = columns.ints(at, width)
    for text, number, is_good, integer, is_whole in zip(
        texts, floats.tolist(), good.tolist(), ints.tolist(), whole.tolist(), strict=True
    ):
        assert (is_good and len(text) <= LONGEST_FLOAT) == _plain_float(text)
        if _plain_float(text):
            assert number.hex() == float(text).hex()
        plain_int = text.isdecimal() and (text == "0" or text[0] != "0") and len(text) <= LONGEST_INT
        assert (is_whole and len(text) <= LONGEST_INT) == plain_int
        if plain_int:
            assert integer == int(text)


@given(
    st.lists(st.binary(max_size=45), min_size=1, max_size=20),
    st.integers(0, 255),
    st.sampled_from([8, 16, 18, 32]),
)
def test_texts_end_where_they_end(texts: list[bytes], ending: int, longest: int) -> None:
    columns = TextColumns([text + bytes([ending]) for text in texts])
    widths = columns.widths(columns.start, ending, longest).tolist()
    want = [(text + bytes([ending])).index(ending) for text in texts]
    assert widths == [width if width <= longest else -1 for width in want]
    lengths = columns.end - columns.start
    other: Any = np.roll(columns.start, 1)
    shorter = np.minimum(lengths, np.roll(lengths, 1))
    same = columns.same(columns.start, other, shorter).tolist()
    for i, text in enumerate(texts):
        mine, theirs = text + bytes([ending]), texts[i - 1] + bytes([ending])
        assert same[i] == (mine[: shorter[i]] == theirs[: shorter[i]])
