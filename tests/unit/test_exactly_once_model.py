"""The micro-batcher's logic against random histories of crashes, zombies, duplicates and late events.

The store here is one dictionary with the rules of a transaction; the oracle is pandas over the distinct events. What is
under test is the real ``PartitionBars``: what it closes, what it calls handled, and where it asks to restart.
"""

from __future__ import annotations

import random

import numpy as np
import pandas as pd
import pytest

from market_data_core.batch import BarBatch, EventBatch
from market_data_core.clock import ManualClock
from market_data_core.codecs import encode_events, encode_frame
from market_data_core.events import StreamEvent
from market_data_core.ohlcv import merge_bars, partial_bars
from market_data_core.protocols import Claim, Flush, Position
from market_data_pipeline.consumers.micro_batcher import BatcherSettings, PartitionBars
from market_data_pipeline.streaming.bus import Delivery
from market_data_pipeline.windows.tumbling import WindowSettings

SECOND = 10**9
WINDOW, LATE, HORIZON = 10 * SECOND, 5 * SECOND, 60 * SECOND
BASE = 1_381_161_600 * SECOND
Key = tuple[str, int]


class FencedError(Exception):
    """A newer epoch exists."""


class OneTransactionStore:
    """Bars, positions and outbox of one partition, with the rules that the real store keeps by SQL."""

    def __init__(self) -> None:
        self.epoch = 0
        self.bars: dict[Key, BarBatch] = {}
        self.positions: dict[str, Position] = {}
        self.outbox: list[tuple[Key, int]] = []

    def claim(self) -> Claim:
        self.epoch += 1
        return Claim("t", "g", 0, self.epoch, "w", dict(self.positions), [])

    def commit(self, flush: Flush) -> list[tuple[Key, int]]:
        if flush.claim.epoch != self.epoch:
            raise FencedError
        self.outbox = []
        for lane in flush.lanes:
            for i in range(len(lane.closed)):
                self._put(lane.closed.take(np.array([i])))
            late = partial_bars(lane.late, lane.window_ns)
            for i in range(len(late)):
                row = late.take(np.array([i]))
                old = self.bars.get(_key(row))
                self._put(row if old is None else merge_bars(BarBatch.concat([old, row])))
        self.positions |= {p.lane: p for p in flush.positions}
        for lane_name in flush.forget:
            self.positions.pop(lane_name, None)
        return self.outbox

    def _put(self, row: BarBatch) -> None:
        old = self.bars.get(_key(row))
        if old is None or int(row.n_events[0]) > int(old.n_events[0]):
            self.bars[_key(row)] = row
        self.outbox.append((_key(row), int(self.bars[_key(row)].n_events[0])))


def _key(row: BarBatch) -> Key:
    return row.series[int(row.code[0])].symbol, int(row.ts[0])


class Worker:
    def __init__(
        self,
        store: OneTransactionStore,
        log: list[bytes],
        published: dict[Key, int],
        clock: ManualClock,
        horizon: int,
    ) -> None:
        self.store, self.log, self.published, self.clock = store, log, published, clock
        self._publish(store.outbox)
        self.claim = store.claim()
        windows = WindowSettings(WINDOW, LATE, horizon)
        self.logic = PartitionBars(self.claim, BatcherSettings(windows, SECOND), clock, str, int)
        self.next = self.logic.start or 0

    def _publish(self, rows: list[tuple[Key, int]]) -> None:
        for key, n in rows:
            self.published[key] = max(self.published.get(key, 0), n)

    def step(self, records: int, crash: str = "") -> None:
        values = self.log[self.next : self.next + records]
        if values:
            offsets = list(range(self.next, self.next + len(values)))
            self.logic.process(Delivery(0, offsets, values, None, False, self.clock.monotonic()))
            self.next += len(values)
        if crash == "before" or not self.logic.due():
            return
        plan = self.logic.take()
        assert plan.keep_from <= plan.through + 1 <= self.next
        rows = self.store.commit(Flush(self.claim, plan.lanes, plan.positions, forget=plan.forget))
        if crash != "after":
            self._publish(rows)


def _history(rng: random.Random, copies: bool) -> tuple[list[StreamEvent], list[StreamEvent]]:
    """Distinct events, and their arrivals: mostly within the lateness, some far later, some copied."""
    at, distinct = 0.0, []
    for i in range(rng.randint(50, 300)):
        at += rng.randint(0, 3)
        price = round(100 + rng.random() * 10, 2)
        ns = BASE + int(at) * SECOND
        symbol = rng.choice("AB")
        distinct.append(
            StreamEvent("p", symbol, "tick", "1s", ns, ns, price, price, price, price, rng.randint(1, 99), i)
        )
    arrivals = []
    for event in distinct:
        delay = rng.randint(0, 5) if rng.random() < 0.9 else rng.randint(0, 40)
        arrivals.append((event.src_ts + delay * SECOND, rng.random(), event))
        if copies and rng.random() < 0.1:
            arrivals.append((event.src_ts + (delay + rng.randint(0, 15)) * SECOND, rng.random(), event))
    arrivals.sort(key=lambda a: a[:2])
    return distinct, [a[2] for a in arrivals]


def _records(rng: random.Random, events: list[StreamEvent]) -> list[bytes]:
    """The events as JSON, msgpack and frames, mixed."""
    out: list[bytes] = []
    i = 0
    while i < len(events):
        codec = rng.choice(["json", "msgpack", "frame"])
        n = rng.randint(1, 20)
        batch = EventBatch.from_events(events[i : i + n])
        if codec == "frame":
            out.append(encode_frame(batch))
        else:
            out.extend(encode_events(batch, "json" if codec == "json" else "msgpack"))
        i += n
    return out


def _oracle(events: list[StreamEvent]) -> dict[Key, tuple[float, ...]]:
    rows = [(e.symbol, e.src_ts, e.seq, e.c, e.v) for e in events]
    frame = pd.DataFrame(rows, columns=["s", "t", "q", "p", "v"]).sort_values(["s", "t", "q"])
    frame["w"] = frame["t"] // WINDOW * WINDOW
    out: dict[Key, tuple[float, ...]] = {}
    for symbol, by_symbol in frame.groupby("s"):
        for start, g in by_symbol.groupby("w"):
            p = g["p"]
            prices = (p.iloc[0], p.max(), p.min(), p.iloc[-1])
            out[str(symbol), int(str(start))] = (*map(float, prices), float(g["v"].sum()), float(len(g)))
    return out


@pytest.mark.parametrize("block", range(5))
def test_any_history_of_crashes_gives_the_oracles_bars(block: int) -> None:
    fenced = sum(_run(seed) for seed in range(block * 30, block * 30 + 30))
    assert fenced > 0, "no zombie was ever fenced: the histories test too little"


def _run(seed: int) -> int:
    rng = random.Random(seed)
    # Without copies nothing need be remembered, and the restart offset stands alone.
    copies = seed % 2 == 0
    horizon = HORIZON if copies else 0
    distinct, arrivals = _history(rng, copies)
    log = _records(rng, arrivals)
    last = arrivals[-1].src_ts + 1000 * SECOND
    log.append(
        encode_events(
            EventBatch.from_events([StreamEvent("p", "end", "tick", "1s", last, last, 1, 1, 1, 1, 1, 0)])
        )[0]
    )
    store, clock = OneTransactionStore(), ManualClock(BASE)
    published: dict[Key, int] = {}
    worker = Worker(store, log, published, clock, horizon)
    zombies: list[Worker] = []
    fenced = 0
    for _ in range(20_000):
        if worker.next >= len(log) and not worker.logic.due():
            break
        clock.advance(rng.randint(0, SECOND))
        roll, n = rng.random(), rng.choice([1, 2, rng.randint(1, 60)])
        if roll < 0.16:
            worker.step(n, "before" if roll < 0.08 else "after")
            worker = Worker(store, log, published, clock, horizon)
        elif roll < 0.22:
            zombies.append(worker)
            worker = Worker(store, log, published, clock, horizon)
        else:
            worker.step(n)
        if zombies and rng.random() < 0.3:
            zombie = rng.choice(zombies)
            try:
                zombie.step(rng.randint(1, 60))
            except FencedError:
                fenced += 1
                zombies.remove(zombie)
    else:
        pytest.fail("the history did not end")
    Worker(store, log, published, clock, horizon)
    want = _oracle(distinct)
    got = {k: v for k, v in store.bars.items() if k[0] != "end"}
    assert sorted(got) == sorted(want), seed
    for key, bar in got.items():
        columns = (bar.open, bar.high, bar.low, bar.close, bar.volume, bar.n_events)
        assert tuple(float(x[0]) for x in columns) == want[key], (seed, key)
        assert published[key] == int(want[key][-1]), (seed, key)
    return fenced
