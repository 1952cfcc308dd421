"""Ten thousand malformed records of thirty kinds among two hundred thousand good ones."""

from __future__ import annotations

import json
import random
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgpack
import numpy as np
import polars as pl
import pytest

from market_data_core.batch import EventBatch
from market_data_core.codecs import encode_end_of_lane, encode_events, encode_frame
from market_data_core.events import Series
from market_data_pipeline.streaming.bus import Bus, Record
from market_data_pipeline.streaming.dead_letters import DeadLetters, Which
from market_data_pipeline.streaming.drivers import open_bus
from market_data_store import StoreClient
from tests.integration.pipeline import BASE, SETTINGS, TOPIC, drain, publish, stored, tick
from tests.servers.redis import RedisServer, running

GOOD = 200_000
BAD_OF_A_KIND = 334
SYMBOLS = 40
CHUNK = 5000
WINDOW = SETTINGS.windows.window_ns


def _event(i: int, **changes: Any) -> dict[str, Any]:
    ts = f"2025-11-13T02:13:{i % 60:02d}.{i % 1000:03d}000Z"
    event: dict[str, Any] = {
        "ver": 1,
        "provider": "bad",
        "symbol": "BAD",
        "kind": "tick",
        "interval": "1s",
        "src_ts": ts,
        "ingest_ts": ts,
        "o": 1.0,
        "h": 1.0,
        "l": 1.0,
        "c": 1.0,
        "v": 1.0,
        "seq": i,
        "event_id": f"bad|BAD|{ts}|{i}",
    }
    event |= changes
    if "src_ts" in changes and "event_id" not in changes:
        event["event_id"] = f"bad|BAD|{event['src_ts']}|{i}"
    return event


def _json(i: int, **changes: Any) -> bytes:
    return json.dumps(_event(i, **changes)).encode()


def _without(i: int, name: str) -> bytes:
    event = _event(i)
    del event[name]
    return json.dumps(event).encode()


def _frame(i: int) -> bytes:
    batch = EventBatch.from_events([tick("BAD", i, 1.0, 1.0, i, "bad")])
    return encode_frame(batch)


KINDS: dict[str, Callable[[int, random.Random], bytes]] = {
    "random bytes": lambda i, r: b"\x05" + r.randbytes(60) + struct.pack("q", i),
    "empty": lambda i, r: b" " * (i % 7),
    "truncated json": lambda i, r: _json(i)[: r.randint(10, 200)],
    "truncated msgpack": lambda i, r: msgpack.packb(_event(i))[: r.randint(10, 200)],
    "truncated frame": lambda i, r: _frame(i)[: r.randint(1, len(_frame(i)) - 1)],
    "frame with a short column": lambda i, r: _frame(i).replace(struct.pack("<d", 1.0), b"\0\0\0\0", 1),
    "frame of bars": lambda i, r: b"\xc1" + msgpack.packb({"t": "bars", "ver": 1, "n": i}),
    "json with a tail": lambda i, r: _json(i) + b"}",
    "two objects": lambda i, r: _json(i) + b"," + _json(i + 1),
    "array": lambda i, r: b"[" + _json(i) + b"]",
    "number": lambda i, r: str(i).encode(),
    "invalid utf-8": lambda i, r: _json(i).replace(b"BAD", b"B\xff\xfe", 1),
    "huge number": lambda i, r: _json(i, o=1e300, h=1e300, l=1e300, c=1e300),
    "number beyond float": lambda i, r: _json(i).replace(b'"c": 1.0', b'"c": 1e999'),
    "infinity": lambda i, r: msgpack.packb(_event(i, h=float("inf"))),
    "nan in msgpack": lambda i, r: msgpack.packb(_event(i, c=float("nan"))),
    "NaN in json": lambda i, r: _json(i, v=float("nan")),
    "price as text": lambda i, r: _json(i, c="1.0"),
    "price as a boolean": lambda i, r: _json(i, c=True),
    "null": lambda i, r: _json(i, symbol=None),
    "missing field": lambda i, r: _without(i, r.choice(["seq", "symbol", "c", "src_ts", "event_id", "kind"])),
    "unknown ver": lambda i, r: _json(i, ver=r.choice([0, 2, 99, "1"])),
    "unknown kind": lambda i, r: _json(i, kind="trade"),
    "bad interval": lambda i, r: _json(i, interval="1 fortnight"),
    "low above high": lambda i, r: _json(i, l=3.0, h=2.0),
    "negative volume": lambda i, r: _json(i, v=-1.0),
    "no time zone": lambda i, r: _json(i, src_ts="2025-11-13T02:13:20.000000"),
    "wrong time zone": lambda i, r: _json(i, src_ts="2025-11-13T02:13:20.000000+99:00"),
    "impossible time": lambda i, r: _json(i, src_ts="2025-02-30T02:13:20.000000Z"),
    "wrong event id": lambda i, r: _json(i, event_id="somebody|else|1|1"),
    "symbol with a control character": lambda i, r: _json(i, symbol="B\x00D"),
    "sequence beyond 64 bits": lambda i, r: _json(i, seq=2**70 + i),
}
LARGE: dict[str, Callable[[int, random.Random], bytes]] = {
    "deep nesting": lambda i, r: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a string of a megabyte": lambda i, r: _json(i, symbol="S" * 1_000_000),
}
"""These are few, since they are large."""


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    yield from running("6.2")


@pytest.fixture
async def bus(server: RedisServer) -> AsyncIterator[Bus]:
    server.client().flushall()
    async with open_bus("redis", server.uri) as bus:
        await bus.ensure_topic(TOPIC, 1)
        yield bus


def _good() -> EventBatch:
    rng = np.random.default_rng(7)
    series = tuple(Series("good", f"G{i}", "tick", "1s") for i in range(SYMBOLS))
    ts = BASE + np.arange(GOOD, dtype=np.int64) * 100_000
    price = np.round(rng.uniform(10, 20, GOOD), 2)
    size = rng.integers(1, 500, GOOD).astype(float)
    code = rng.integers(0, SYMBOLS, GOOD).astype(np.int32)
    return EventBatch(series, code, ts, ts, price, price, price, price, size, np.arange(GOOD, dtype=np.int64))


def _bad() -> list[tuple[str, bytes]]:
    rng = random.Random(11)
    bad = [(kind, make(i, rng)) for kind, make in KINDS.items() for i in range(BAD_OF_A_KIND)]
    bad += [(kind, make(i, rng)) for kind, make in LARGE.items() for i in range(3)]
    rng.shuffle(bad)
    return bad


def _oracle(good: EventBatch) -> pl.DataFrame:
    frame = pl.DataFrame({"code": good.code, "t": good.src_ts, "q": good.seq, "p": good.c, "v": good.v})
    return (
        frame.sort("t", "q")
        .group_by("code", (pl.col("t") // WINDOW * WINDOW).alias("w"))
        .agg(
            pl.col("p").first().alias("open"),
            pl.col("p").max().alias("high"),
            pl.col("p").min().alias("low"),
            pl.col("p").last().alias("close"),
            pl.col("v").sum().alias("volume"),
            pl.len().alias("n"),
        )
    )


@pytest.mark.slow
async def test_thirty_kinds_of_poison_among_good_events(bus: Bus, store: StoreClient) -> None:
    good, bad = _good(), _bad()
    assert len(KINDS) + len(LARGE) >= 30
    assert len(bad) >= 10_000
    records = [Record("G", value) for value in encode_events(good)]
    rng = random.Random(13)
    for _, value in bad:
        records.insert(rng.randint(0, len(records)), Record("B", value))
    for i in range(0, len(records), CHUNK):
        await bus.publish(TOPIC, records[i : i + CHUNK], partition=0)

    stats = await drain(bus, store, idle=1.0)

    bars = await stored(store)
    want = _oracle(good)
    assert len(bars) == len(want)
    for row in want.iter_rows(named=True):
        bar = bars["good", f"G{row['code']}", row["w"]]
        got = (bar.open, bar.high, bar.low, bar.close, bar.volume, bar.n_events)
        assert got == tuple(row[name] for name in ("open", "high", "low", "close", "volume", "n"))

    letters = DeadLetters(bus, TOPIC)
    listed = await letters.letters()
    assert Counter(b.letter.value for b in listed) == Counter(value for _, value in bad), (
        "each once, byte by byte"
    )
    assert all(b.letter.reason for b in listed)
    assert stats.dead_lettered == len(bad)
    reasons = await letters.reasons()
    assert sum(reasons.values()) == len(bad)
    no_zone = [b for b in listed if b.letter.value == _json(5, src_ts="2025-11-13T02:13:20.000000")]
    assert "no time zone" in no_zone[0].letter.reason


async def test_a_dead_letter_is_mended_requeued_and_counts(bus: Bus, store: StoreClient) -> None:
    await publish(bus, [tick("A", i * 100, 10.0, 1, i) for i in range(5)])
    broken = tick("A", 450, 99.0, 5, 5)
    value = encode_events(EventBatch.from_events([broken]))[0]
    await bus.publish(TOPIC, [Record("A", value.replace(b'"c":99.0', b'"c":"99"'))], partition=0)
    await drain(bus, store)
    letters = DeadLetters(bus, TOPIC)
    (buried,) = await letters.letters()
    assert (await letters.show(buried.id)).letter.value == value.replace(b'"c":99.0', b'"c":"99"')
    assert (await stored(store))["p", "A", BASE].n_events == 5

    assert await letters.requeue(Which(ids=[buried.id]), value=value) == 1
    assert await letters.letters() == []
    await drain(bus, store)
    bar = (await stored(store))["p", "A", BASE]
    assert (bar.n_events, bar.close, bar.high, bar.revision) == (6, 99.0, 99.0, 2)


async def test_requeueing_what_is_still_broken_brings_it_back_and_purging_removes_it(
    bus: Bus, store: StoreClient
) -> None:
    bad = [Record("A", b"not an event %d" % i) for i in range(20)]
    await bus.publish(TOPIC, bad, partition=0)
    await drain(bus, store)
    letters = DeadLetters(bus, TOPIC)
    assert await letters.requeue(Which()) == 20
    await drain(bus, store)
    assert len(await letters.letters()) == 20
    assert await letters.purge(Which()) == 20
    assert await letters.letters() == []


async def test_poison_alone_is_acknowledged_and_not_buried_again(bus: Bus, store: StoreClient) -> None:
    await bus.publish(TOPIC, [Record("A", b"?"), Record("A", encode_end_of_lane("nobody"))], partition=0)
    await drain(bus, store)
    stats = await drain(bus, store)
    assert stats.dead_lettered == 0
    (topic,) = await bus.status([TOPIC])
    assert [(p.lag, p.pending) for g in topic.groups for p in g.partitions] == [(0, 0)]
    assert (await stored(store)) == {}
