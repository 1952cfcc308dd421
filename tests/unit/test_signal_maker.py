"""Signals are a function of the stored bars, whatever happened on the way: amendments, history replayed beside live
bars, crashes at any moment, batches of any size. Compared with a recount, bar by bar, of what is stored in the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from market_data_core.batch import BarBatch
from market_data_core.clock import SystemClock
from market_data_core.codecs import encode_bars
from market_data_core.config_signals import Features
from market_data_core.events import Bar, BarSeries, Signal
from market_data_core.protocols import Claim, Position
from market_data_pipeline.consumers.inference_consumer import PartitionSignals
from market_data_pipeline.features.definitions import feature_names
from market_data_pipeline.inference.adapters.rules import Rules
from market_data_pipeline.inference.decider import Decider
from market_data_pipeline.inference.engine import InferenceEngine
from market_data_pipeline.inference.rules_file import rules_of
from market_data_pipeline.inference.signal_maker import SignalMaker
from market_data_pipeline.streaming.bus import Delivery

SECOND: Final = 10**9
START: Final = 1_700_000_000 * SECOND
FEATURES: Final = Features.model_validate(
    {
        "windows": [
            {"name": "mom_4", "horizon": "4s"},
            {"name": "vwap_3", "horizon": "3s"},
            {"name": "high_9", "horizon": "9s"},
        ]
    }
)
RULES: Final = b"""
- {name: up, condition: mom_4 > 0.0123, signal: 1, score: 0.5}
- {name: breaks, condition: price >= high_9 and mom_4 > 0, signal: 1, score: 0.9, trigger: edge}
- {name: below, condition: not (price >= vwap_3), signal: -1, score: 0.25, symbols: [A]}
"""
Key = tuple[str, int, str]
"""Symbol, when the bar ended, name of the signal."""


def batch(bars: Sequence[Bar]) -> BarBatch:
    table: dict[BarSeries, int] = {}
    code = [table.setdefault(BarSeries(b.provider, b.symbol, b.interval), len(table)) for b in bars]

    def floats(name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.array([getattr(b, name) for b in bars], np.float64)

    def ints(name: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.array([getattr(b, name) for b in bars], np.int64)

    n, zero = len(bars), np.zeros(len(bars))
    names = ("open", "high", "low", "close", "volume")
    return BarBatch(
        series=tuple(table),
        code=np.array(code, np.int32),
        ts=ints("ts"),
        **{name: floats(name) for name in names},
        volume_lo=zero,
        notional=floats("close") * floats("volume"),
        notional_lo=zero,
        n_events=np.ones(n, np.int64),
        first_ts=ints("ts"),
        first_seq=np.zeros(n, np.int64),
        last_ts=ints("ts"),
        last_seq=np.zeros(n, np.int64),
        revision=ints("revision").astype(np.int32),
    )


@dataclass
class World:
    """A store and a topic, as the micro-batcher fills them: a bar is stored before it is published."""

    bars: dict[tuple[str, int], Bar] = field(default_factory=dict)
    log: list[bytes] = field(default_factory=list)
    signals_of: dict[Key, Signal] = field(default_factory=dict)
    position: Position | None = None
    reads: int = 0

    def write(self, changes: Sequence[tuple[str, int, float]]) -> None:
        """Store (symbol, second, close), new or amended, and publish them as one record."""
        frame = {}
        for symbol, second, close in changes:
            old = self.bars.get((symbol, second))
            revision = 1 if old is None else old.revision + 1
            ts = START + second * SECOND
            volume = 1.0 + second % 3
            bar = Bar(
                "p",
                symbol,
                "1s",
                ts,
                close,
                close + 0.5,
                close - 0.5,
                close,
                volume,
                close,
                1,
                ts,
                ts,
                revision,
            )
            self.bars[symbol, second] = frame[symbol, second] = bar
        self.log.append(encode_bars(batch(list(frame.values()))))

    async def bar_pages(
        self,
        symbols: Sequence[str] | None = None,
        *,
        interval: str,
        provider: str | None = None,
        start: int | None = None,
        end: int | None = None,
        page: int = 20_000,
    ) -> AsyncIterator[BarBatch]:
        assert (interval, provider) == ("1s", "p")
        assert symbols is not None
        assert start is not None
        assert end is not None
        self.reads += 1
        found = [b for b in self.bars.values() if b.symbol in symbols and start <= b.ts < end]
        found.sort(key=lambda b: (b.symbol, b.ts))
        for first in range(0, len(found), page):
            yield batch(found[first : first + page])

    async def signals(
        self,
        *,
        symbols: Sequence[str] | None = None,
        provider: str | None = None,
        name: str | None = None,
        start: int | None = None,
        end: int | None = None,
        limit: int | None = None,
    ) -> list[Signal]:
        assert symbols is not None
        assert start is not None
        assert end is not None
        return [s for s in self.signals_of.values() if s.symbol in symbols and start <= s.ts < end]


class Worker:
    """An owner of the partition, from claim to crash."""

    def __init__(self, world: World, rules: bytes = RULES) -> None:
        self.world = world
        names = frozenset(feature_names(FEATURES))
        adapter = Rules(rules_of(rules, Path("rules.yaml"), names))
        decider = Decider(InferenceEngine(adapter), FEATURES, (), SystemClock())
        positions = {} if world.position is None else {"": world.position}
        claim = Claim("bars", "g", 0, 1, "me", positions, [])
        self.logic = PartitionSignals(
            claim, lambda watermark: SignalMaker("1s", decider, world, watermark), SystemClock(), str, int
        )
        self.next = 0 if self.logic.start is None else self.logic.start

    def read(self, records: int) -> bool:
        """Take up to so many records as one delivery."""
        values = self.world.log[self.next : self.next + records]
        if not values:
            return False
        offsets = list(range(self.next, self.next + len(values)))
        delivery = Delivery(0, offsets, values, None, True, 0)
        asyncio.run(self.logic.prepare(delivery))
        self.logic.process(delivery)
        self.next += len(values)
        return True

    def commit(self) -> None:
        """As the store does it: upsert, withdraw, position."""
        plan = self.logic.take()
        kept = {(s.symbol, s.ts, s.name): s for s in plan.signals}
        revised = {(symbol, ts) for _, symbol, ts in plan.revised}
        for key in list(self.world.signals_of):
            if key[:2] in revised and key not in kept:
                del self.world.signals_of[key]
        self.world.signals_of |= kept
        self.world.position = plan.positions[0]


def recount(world: World) -> set[Key]:
    """What the rules say of the bars as they are stored now, by hand."""
    found: set[Key] = set()
    for symbol in {s for s, _ in world.bars}:
        closes = {second: bar for (s, second), bar in sorted(world.bars.items()) if s == symbol}

        def momentum(second: int, closes: dict[int, Bar] = closes) -> float | None:
            inside = [s for s in closes if second - 4 < s <= second]
            return closes[second].close / closes[inside[0]].close - 1 if len(inside) > 1 else None

        def breaks(second: int, closes: dict[int, Bar] = closes) -> bool:
            high = max(closes[s].high for s in closes if second - 9 < s <= second)
            moved = momentum(second)
            return closes[second].close >= high and moved is not None and moved > 0

        before: int | None = None
        for second, bar in closes.items():
            at = bar.ts + SECOND
            moved = momentum(second)
            if moved is not None and moved > 0.0123:
                found.add((symbol, at, "up"))
            near = before is not None and second - before <= 64
            if breaks(second) and not (near and before is not None and breaks(before)):
                found.add((symbol, at, "breaks"))
            inside = [closes[s] for s in closes if second - 3 < s <= second]
            vwap = sum(b.close * b.volume for b in inside) / sum(b.volume for b in inside)
            if symbol == "A" and bar.close < vwap:
                found.add((symbol, at, "below"))
            before = second
    return found


closes = st.sampled_from([100.0, 103.0, 98.0, 105.0])
symbols = st.sampled_from(["A", "B"])
# Negative: so long ago, beside the newest live bars.
seconds = st.one_of(st.integers(-12, -1), st.integers(0, 9), st.integers(330, 336), st.integers(2000, 2004))
writes = st.lists(st.tuples(symbols, seconds, closes), min_size=1, max_size=6)
live = st.tuples(st.just("live"), st.lists(closes, min_size=1, max_size=8))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), writes),
        live,
        st.tuples(st.just("read"), st.integers(1, 4)),
        st.just(("commit", None)),
        st.just(("crash", None)),
    ),
    max_size=40,
)


# An owner that has nothing in memory must know that bars after an amended one were decided on before.
@example(
    [
        ("live", [100.0, 100.0, 100.0, 103.0]),
        ("read", 4),
        ("commit", None),
        ("crash", None),
        ("write", [("A", -4, 103.0)]),
    ]
)
# A bar that is older than what memory was filled with for the first one, beside newer ones of the same delivery, and
# newer ones still that look back at it.
@example([("live", [100.0, 100.0]), ("read", 1), ("write", [("A", -3, 103.0)])])
@example(
    [
        ("live", [100.0]),
        ("read", 1),
        ("write", [("A", -2, 105.0)]),
        ("read", 1),
        ("live", [100.0, 103.0, 103.0, 105.0]),
        ("read", 1),
        ("read", 1),
    ]
)
@given(steps)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_signals_are_a_function_of_the_stored_bars(history: list[tuple[str, object]]) -> None:
    world = World()
    worker, clock = Worker(world), 400
    for what, how in history:
        if what == "write":
            assert isinstance(how, list)
            world.write([(symbol, at if at >= 0 else clock + at, close) for symbol, at, close in how])
        elif what == "live":
            assert isinstance(how, list)
            for close in how:
                world.write([("A", clock, close), ("B", clock, 201.0 - close)])
                clock += 1
        elif what == "read":
            assert isinstance(how, int)
            worker.read(how)
        elif what == "commit":
            if worker.next:
                worker.commit()
        else:
            worker = Worker(world)
    while worker.read(3):
        pass
    if world.log:
        worker.commit()
    assert set(world.signals_of) == recount(world)
