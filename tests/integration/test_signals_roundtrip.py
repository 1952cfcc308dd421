"""Signals from ticks to the store and the bus and back: written, read, given again, withdrawn, silent for a while."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pytest

from market_data_core.clock import ManualClock
from market_data_core.codecs import decode_dead_letter
from market_data_core.events import Signal, StreamEvent
from market_data_core.times import format_time
from market_data_pipeline.consumers.signal_stats import SignalStats
from market_data_pipeline.streaming.bus import Bus, Record
from market_data_pipeline.streaming.drivers import open_bus
from market_data_store import StoreClient
from market_data_store.signals import SignalsStoreClient
from tests.integration.pipeline import BASE, SECOND, TOPIC, drain, publish, tick, until
from tests.integration.signals_pipeline import BARS, SIGNALS, Decides, infer, inferring
from tests.servers.redis import RedisServer, running

RULES: Final = """\
- {name: dear, condition: price > 102.5, signal: 1, score: 0.8}
- {name: rises, condition: momentum > 0.011, signal: 2, score: 0.6}
- {name: under, condition: price < vwap_6s, signal: -1, score: 0.5, symbols: [B], meta: {note: "{symbol} fell"}}
"""
PRICES: Final = (100.0, 101.0, 103.0, 102.0, 104.0, 101.0, 99.0, 103.0)
"""Closes of A; those of B run the other way."""


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    yield from running("6.2")


@pytest.fixture
async def bus(server: RedisServer) -> AsyncIterator[Bus]:
    server.client().flushall()
    async with open_bus("redis", server.uri) as bus:
        for topic in (TOPIC, BARS, SIGNALS):
            await bus.ensure_topic(topic, 2)
        yield bus


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def decides(tmp_path: Path, clock: ManualClock) -> Decides:
    return _decides(tmp_path, clock, RULES)


def _decides(folder: Path, clock: ManualClock, rules: str) -> Decides:
    file = folder / "rules.yaml"
    file.write_text(rules)
    return Decides(file, clock)


def ticks(symbol: str, prices: Sequence[float], first: int = 0) -> list[StreamEvent]:
    """One tick in each window of two seconds, from window ``first`` on."""
    return [tick(symbol, n * 2000 + 500, p, 10.0, n) for n, p in enumerate(prices, first)]


def both() -> list[StreamEvent]:
    a, b = ticks("A", PRICES), ticks("B", [203.0 - p for p in PRICES])
    return [event for pair in zip(a, b, strict=True) for event in pair]


async def batched(bus: Bus, store: StoreClient, events: list[StreamEvent]) -> None:
    """``events`` as bars, stored and published."""
    await publish(bus, events)
    await drain(bus, store)


async def published(bus: Bus) -> list[dict[str, Any]]:
    """The topic of signals, as it is on the wire."""
    found = []
    for partition in range(await bus.partitions(SIGNALS)):
        found += [json.loads(r.value) for r in await bus.read(SIGNALS, partition, None, 10_000)]
    return found


def expected() -> set[tuple[str, int, str, float]]:
    """(symbol, ts, name, value) that the rules give for :func:`both`, by pandas."""
    found = set()
    for symbol, prices in (("A", PRICES), ("B", [203.0 - p for p in PRICES])):
        close = pd.Series(prices)
        oldest = close.shift(9).fillna(close.iloc[0])  # momentum looks at ten windows, and these are eight
        average = close.rolling(3, min_periods=1).mean()  # all volumes are the same
        rules = [("dear", close > 102.5, 1.0), ("rises", close / oldest - 1 > 0.011, 2.0)]
        if symbol == "B":
            rules.append(("under", close < average - 1e-9, -1.0))
        for name, true, value in rules:
            found |= {(symbol, BASE + (int(n) + 1) * 2 * SECOND, name, value) for n in close.index[true]}
    return found


def keys(signals: Sequence[Signal]) -> set[tuple[str, int, str, float]]:
    return {(s.symbol, s.ts, s.name, s.value) for s in signals if "withdrawn" not in s.meta}


async def test_signals_are_written_published_and_read_by_every_filter(
    bus: Bus, store: StoreClient, decides: Decides
) -> None:
    await batched(bus, store, both())
    stats = await infer(bus, store, decides)
    every = await store.signals()
    assert keys(every) == expected()
    assert stats.stored == len(every) == len(expected())
    assert {s.name for s in every} == {"dear", "rises", "under"}

    reader = SignalsStoreClient(store)
    middle = BASE + 8 * SECOND
    choices: dict[str, tuple[Any, ...]] = {
        "symbols": (None, ["A"], ["A", "B"], ["C"], []),
        "provider": (None, "p", "nobody"),
        "name": (None, "dear", "nothing"),
        "start": (None, middle),
        "end": (None, middle),
        "limit": (None, 3),
    }
    for values in itertools.product(*choices.values()):
        filters = dict(zip(choices, values, strict=True))
        symbols, provider, name, start, end, limit = values
        want = [
            s
            for s in every
            if (symbols is None or s.symbol in symbols)
            and provider in (None, s.provider)
            and name in (None, s.name)
            and (start is None or s.ts >= start)
            and (end is None or s.ts < end)
        ][:limit]
        assert await store.signals(**filters) == want, filters
        assert await reader.read(**filters) == want, filters


async def test_a_record_on_the_bus_is_a_signal_of_version_1(
    bus: Bus, store: StoreClient, decides: Decides
) -> None:
    await batched(bus, store, both())
    await infer(bus, store, decides)
    records = await published(bus)
    every = await store.signals()
    assert len(records) == len(every)
    by_id = {s.signal_id: s for s in every}
    for record in records:
        assert list(record) == ["ver", "provider", "symbol", "ts", "name", "value", "score", "meta"]
        signal = by_id.pop("|".join(record[key] for key in ("provider", "symbol", "ts", "name")))
        assert record == {
            "ver": 1,
            "provider": "p",
            "symbol": signal.symbol,
            "ts": format_time(signal.ts),
            "name": signal.name,
            "value": signal.value,
            "score": signal.score,
            "meta": signal.meta,
        }
        price = record["meta"]["price"]
        own = {"note": "B fell"} if signal.name == "under" else {}
        assert record["meta"] == {"adapter": "rules", "window": "2s", "price": price} | own
    assert by_id == {}
    assert "p|A|2025-11-13T02:13:26.000000Z|dear" in {s.signal_id for s in every}


async def test_what_was_decided_before_is_neither_written_nor_published_again(
    bus: Bus, store: StoreClient, decides: Decides
) -> None:
    await batched(bus, store, both())
    await infer(bus, store, decides)
    every, records = await store.signals(), {json.dumps(r) for r in await published(bus)}
    again = await infer(bus, store, decides)
    assert (again.bars, again.stored) == (0, 0)
    await batched(bus, store, both())
    anew = await infer(bus, store, decides, group="another")
    assert anew.bars >= 16
    assert (anew.decided, anew.stored) == (len(every), 0)
    assert await SignalsStoreClient(store).upsert(every) == []
    assert await store.signals() == every
    # A worker may publish the last records of the one before again: they are the same.
    assert {json.dumps(r) for r in await published(bus)} == records


async def test_a_late_event_takes_back_what_no_longer_holds(
    bus: Bus, store: StoreClient, decides: Decides
) -> None:
    await batched(bus, store, both())
    await infer(bus, store, decides)
    # The window from 4 s to 6 s of A closed at 103; after this it closed at 100, as the first did.
    await batched(bus, store, [tick("A", 5900, 100.0, 1.0, 1000)])
    stats = await infer(bus, store, decides)
    at = BASE + 6 * SECOND
    gone = {("A", at, "dear", 1.0), ("A", at, "rises", 2.0)}
    assert gone <= expected()
    every = await store.signals()
    assert keys(every) == expected() - gone
    withdrawn = [s for s in every if "withdrawn" in s.meta]
    assert {(s.symbol, s.ts, s.name, s.value) for s in withdrawn} == gone
    assert (stats.withdrawn, stats.stored) == (2, 0)
    newest = {(r["symbol"], r["ts"], r["name"]): r["meta"] for r in await published(bus)}
    assert newest == {(s.symbol, format_time(s.ts), s.name): s.meta for s in every}


async def test_a_poison_record_among_bars_is_a_dead_letter(
    bus: Bus, store: StoreClient, decides: Decides
) -> None:
    await bus.publish(BARS, [Record("A", b"\x00no bars")], partition=1)
    await batched(bus, store, both())
    await bus.publish(BARS, [Record("A", b'{"ver": 1}')], partition=1)
    stats = await infer(bus, store, decides)
    assert keys(await store.signals()) == expected()
    letters = [decode_dead_letter(r.value) for r in await bus.read(f"{BARS}.dlq", 0, None, 10)]
    assert [(x.topic, x.partition, x.value) for x in letters] == [
        (BARS, 1, b"\x00no bars"),
        (BARS, 1, b'{"ver": 1}'),
    ]
    assert all(x.reason and x.offset for x in letters)
    assert stats.dead_lettered == 2


async def test_a_cooldown_lasts_over_a_restart(
    bus: Bus, store: StoreClient, tmp_path: Path, clock: ManualClock
) -> None:
    rules = "- {name: dear, condition: price > 100, signal: 1, score: 1, cooldown: 20s}\n"  # ten bars
    prices = [99.0 if n in (10, 11) else 101.0 for n in range(40)]
    await batched(bus, store, ticks("A", prices[:15]))
    await infer(bus, store, _decides(tmp_path, clock, rules))
    # From here on another worker, which remembers nothing; B is its from beginning to end.
    await batched(bus, store, ticks("A", prices[15:], 15))
    await batched(bus, store, ticks("B", prices, 40))
    await infer(bus, store, _decides(tmp_path, clock, rules))

    def bars(signals: list[Signal], first: int) -> list[int]:
        return [(s.ts - BASE) // (2 * SECOND) - 1 - first for s in signals]

    interrupted = bars(await store.signals(symbols=["A"]), 0)
    assert interrupted == [0, 12, 22, 32]
    assert bars(await store.signals(symbols=["B"]), 40) == interrupted


async def test_rules_are_replaced_while_a_worker_runs(
    bus: Bus, store: StoreClient, tmp_path: Path, clock: ManualClock
) -> None:
    def rule(name: str) -> str:
        return f"- {{name: {name}, condition: price > 100, signal: 1, score: 1}}\n"

    decides, stats = _decides(tmp_path, clock, rule("old")), SignalStats()
    file = tmp_path / "rules.yaml"

    async def so_far() -> bool:
        return max((s.ts for s in stats.newest), default=0) == BASE + wanted * 2 * SECOND

    def replace(text: str) -> None:
        other = tmp_path / "rules.new"
        other.write_text(text)
        other.replace(file)
        for _ in range(3):  # the looks that a worker takes, a second apart
            clock.advance(SECOND)
            decides.decider.refresh()

    async with inferring(bus, store, decides, stats):
        for wanted, text in ((5, rule("new")), (10, "- {name: broken"), (15, rule("newest")), (20, "")):
            await batched(bus, store, ticks("A", [101.0] * 5, wanted - 5))
            await until(so_far)
            if text:
                replace(text)
    given: dict[str, set[int]] = {}
    for s in await store.signals():
        given.setdefault(s.name, set()).add((s.ts - BASE) // (2 * SECOND) - 1)
    # A bar may be published again by the next micro-batcher, and is then decided on by the rules of that time.
    assert given["old"] == set(range(5))
    assert given["new"] - {4} == set(range(5, 15))
    assert given["newest"] - {14} == set(range(15, 20))
    assert len(decides.failures) == 1
    assert "rules.yaml" in str(decides.failures[0])
