"""Tumbling windows of a lane: whatever the batches, the same bars and the same late events."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_core.batch import BarBatch, EventBatch
from market_data_core.codecs import EventDecoder, encode_frame
from market_data_core.events import Bar, StreamEvent
from market_data_core.ohlcv import merge_bars
from market_data_pipeline.windows import tumbling
from market_data_pipeline.windows.tumbling import FOREVER, NEVER, SILENCE_NS, TumblingWindows, WindowSettings
from tests import oracle
from tests.unit.strategies import BASE, SECOND, SEEDS, arrivals, pieces

WINDOW, LATE, HORIZON = 5 * SECOND, 2 * SECOND, 120 * SECOND
START = BASE // WINDOW * WINDOW


def settings_of(**given: object) -> WindowSettings:
    base = WindowSettings(WINDOW, LATE, HORIZON, ("tick", "bar"))
    return replace(base, **given)  # type: ignore[arg-type]


def tick(at: int, seq: int, c: float = 1.0, v: float = 1.0, symbol: str = "A") -> StreamEvent:
    return StreamEvent("p", symbol, "tick", "1s", at, at + 7, c, c, c, c, v, seq)


def bar(at: int, seq: int, interval: str, c: float = 2.0, symbol: str = "A") -> StreamEvent:
    return StreamEvent("p", symbol, "bar", interval, at, at + 7, c - 0.5, c + 1, c - 1, c, 4.0, seq)


@dataclass
class Outcome:
    """All that came out of a lane: to the bit, and in the order of keys."""

    closed: list[Bar] = field(default_factory=list)
    lo: list[tuple[str, int, float, float]] = field(default_factory=list)
    late: list[StreamEvent] = field(default_factory=list)
    counts: tuple[int, ...] = ()
    watermark: int = NEVER

    def collect(self, lane: TumblingWindows, now: int = 0) -> None:
        closed, at = lane.close(now)
        assert len(at) == len(closed)
        self.closed += closed.bars()
        names = [closed.series[code].symbol for code in closed.code]
        low = zip(
            names, closed.ts.tolist(), closed.volume_lo.tolist(), closed.notional_lo.tolist(), strict=True
        )
        self.lo += low
        self.late += lane.take_late().events()

    def end(self, lane: TumblingWindows) -> Outcome:
        lane.finish()
        self.collect(lane)
        self.closed.sort(key=lambda b: (b.provider, b.symbol, b.interval, b.ts))
        self.lo.sort()
        c = lane.counts
        self.counts = (c.accepted, c.duplicate, c.late, c.handled, c.skipped, c.expired)
        self.watermark = lane.watermark
        return self


def run(batches: Iterable[EventBatch], of: WindowSettings | None = None) -> Outcome:
    lane = TumblingWindows(of or settings_of())
    out = Outcome()
    for offset, batch in enumerate(batches):
        lane.add(batch, offset)
        out.collect(lane)
    return out.end(lane)


def batches_of(events: list[StreamEvent], cuts: list[slice]) -> list[EventBatch]:
    """As a decoder makes them: one table of series that grows."""
    decoder = EventDecoder()
    return [decoder.decode([encode_frame(EventBatch.from_events(events[cut]))]).batch for cut in cuts]


@given(SEEDS, st.integers(1, 150), st.integers(0, 12))
@settings(max_examples=60)
def test_neither_the_size_of_batches_nor_their_boundaries_change_anything(
    seed: int, n: int, disorder: int
) -> None:
    """Some events are far beyond the allowed lateness here: which, is decided row by row."""
    rng = random.Random(seed)
    made = arrivals(seed, n, seconds=40.0, allow_late_ns=max(1, disorder) * SECOND)
    of = settings_of(kinds=rng.choice([("tick",), ("tick", "bar"), ("tick", "bar", "quote")]))
    row_by_row = run(batches_of(made.order, [slice(i, i + 1) for i in range(len(made.order))]), of)
    for _ in range(3):
        cut = pieces(rng, len(made.order), rng.choice([3, 20, 5000]))
        assert run(batches_of(made.order, cut), of) == row_by_row
    if disorder <= 2:
        assert row_by_row.late == []


@given(SEEDS, st.integers(1, 120))
@settings(max_examples=40)
def test_closed_bars_and_late_events_are_those_of_a_loop(seed: int, n: int) -> None:
    """An oracle that reads like the definition: one event at a time, nothing but dictionaries."""
    made = arrivals(seed, n, seconds=60.0, allow_late_ns=9 * SECOND)
    watermark, known = NEVER, set()
    in_time: list[StreamEvent] = []
    late: list[StreamEvent] = []
    for e in made.order:
        key = (e.provider, e.symbol, e.src_ts, e.seq)
        if key not in known:
            known.add(key)
            (late if e.src_ts // WINDOW * WINDOW + WINDOW <= watermark else in_time).append(e)
        watermark = max(watermark, e.src_ts - LATE)
    out = run(batches_of(made.order, pieces(random.Random(seed), len(made.order), 30)))
    assert out.late == late
    # The watermark was moved to the end of the last window to finish.
    oracle.assert_equal(out.closed, oracle.recount(in_time, WINDOW))
    assert out.counts == (len(in_time), len(made.order) - len(known), len(late), 0, 0, 0)


@given(SEEDS, st.integers(1, 200), st.sampled_from([1, 3, 17]), st.sampled_from([1, 5]))
@settings(max_examples=40)
def test_when_events_are_added_up_does_not_show(seed: int, n: int, raw: int, compact: int) -> None:
    made = arrivals(seed, n, seconds=100.0)
    cut = pieces(random.Random(seed), len(made.order), 20)
    want = run(batches_of(made.order, cut))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tumbling, "_MOST_RAW_ROWS", raw)
        patch.setattr(tumbling, "_COMPACT_ROWS", compact)
        assert run(batches_of(made.order, cut)) == want


def test_a_quote_makes_no_bar_but_moves_the_watermark() -> None:
    lane = TumblingWindows(settings_of())
    quote = replace(tick(START + WINDOW + LATE, 2), kind="quote")
    lane.add(EventBatch.from_events([tick(START, 1), quote]), 0)
    closed, _ = lane.close(0)
    assert closed.ts.tolist() == [START]
    assert (lane.counts.accepted, lane.counts.skipped, lane.counts.late) == (1, 1, 0)
    lane.add(EventBatch.from_events([quote, replace(quote, src_ts=START, seq=3)]), 1)
    assert (lane.counts.skipped, lane.counts.duplicate, lane.counts.late) == (2, 1, 0), (
        "a quote is never late"
    )


def test_a_bar_shorter_than_the_window_is_added_up() -> None:
    out = run([EventBatch.from_events([bar(START + i * SECOND, i, "1s", c=10.0 + i) for i in range(5)])])
    [made] = out.closed
    assert (made.interval, made.ts, made.n_events, made.volume) == ("5s", START, 5, 20.0)
    assert (made.open, made.high, made.low, made.close) == (9.5, 15.0, 9.0, 14.0)


@pytest.mark.parametrize("interval", ["5s", "5000ms", "1m", "1h"])
def test_a_bar_as_long_as_the_window_is_kept_as_it_came(interval: str) -> None:
    event = bar(START, 1, interval)
    lane = TumblingWindows(settings_of())
    lane.add(EventDecoder().decode([encode_frame(EventBatch.from_events([event]))]).batch, 0)
    closed, at = lane.close(1234)
    [made] = closed.bars()
    assert made.interval == {"5000ms": "5s"}.get(interval, interval)
    assert (made.open, made.high, made.low, made.close, made.volume) == (1.5, 3.0, 1.0, 2.0, 4.0)
    assert (made.vwap, made.n_events, made.revision) == (None, 1, 1), (
        "nobody knows what was traded at which price"
    )
    assert at.tolist() == [1234]
    assert not lane.has_open
    assert lane.counts.accepted == 1


def test_whole_bars_are_never_late_and_count_once() -> None:
    lane = TumblingWindows(settings_of())
    old = bar(START - 3600 * SECOND, 1, "1m")
    lane.add(EventBatch.from_events([tick(START, 0), bar(START, 1, "1m"), old, old]), 0)
    closed, _ = lane.close(0)
    assert [(b.interval, b.ts) for b in closed.bars()] == [("1m", START - 3600 * SECOND), ("1m", START)]
    assert (lane.counts.late, lane.counts.duplicate) == (0, 1)


def test_of_whole_bars_of_one_start_the_last_by_seq_stays() -> None:
    """A vendor that corrects a bar sends it again with a higher seq."""
    some = [bar(START, seq, "1m", c=float(seq)) for seq in (3, 9, 5)]
    lane = TumblingWindows(settings_of())
    lane.add(EventBatch.from_events(some), 0)
    closed, _ = lane.close(0)
    assert closed.close.tolist() == [9.0]


def test_whole_bars_and_windows_come_together() -> None:
    lane = TumblingWindows(settings_of())
    lane.add(EventBatch.from_events([tick(START, 1), bar(START + 2 * WINDOW, 2, "1m")]), 0)
    closed, at = lane.close(99)
    assert sorted((b.interval, b.ts) for b in closed.bars()) == [("1m", START + 2 * WINDOW), ("5s", START)]
    assert sorted(at.tolist()) == sorted([99, START + 2 * WINDOW + 7])


def test_the_clock_closes_what_nobody_adds_to() -> None:
    lane = TumblingWindows(settings_of())
    lane.add(EventBatch.from_events([tick(START, 1), tick(START + WINDOW, 2)]), 0)
    assert len(lane.close(0)[0]) == 0
    lane.advance(START + WINDOW - 1)
    assert len(lane.close(0)[0]) == 0
    lane.advance(START + WINDOW)
    closed, at = lane.close(777)
    assert closed.ts.tolist() == [START]
    assert at.tolist() == [777], "the clock closed it, not an event"
    # However far the clock goes, the watermark waits at the end of the last window.
    lane.advance(START + 1000 * WINDOW)
    assert lane.watermark == START + 2 * WINDOW
    assert lane.close(0)[0].ts.tolist() == [START + WINDOW]
    lane.add(EventBatch.from_events([tick(START + 2 * WINDOW, 3)]), 1)
    assert lane.counts.late == 0


def test_closable_is_the_ingest_time_of_the_event_that_passed_the_end() -> None:
    lane = TumblingWindows(settings_of())
    some = [tick(START + i * SECOND, i) for i in range(11)]
    lane.add(EventBatch.from_events(some), 0)
    closed, at = lane.close(5)
    assert closed.ts.tolist() == [START]
    assert at.tolist() == [START + 7 * SECOND + 7], "5 s of window and 2 s of lateness"


def test_the_end_of_a_lane_closes_everything_and_makes_the_rest_late() -> None:
    lane = TumblingWindows(settings_of())
    lane.add(EventBatch.from_events([tick(START + i * WINDOW, i) for i in range(3)]), 0)
    lane.end()
    assert lane.watermark == FOREVER
    assert len(lane.close(0)[0]) == 3
    lane.add(EventBatch.from_events([tick(START + 9 * WINDOW, 9), tick(START, 0)]), 1)
    assert len(lane.close(0)[0]) == 0
    assert [e.seq for e in lane.take_expired().events()] == [9], "and a copy is still a copy"
    assert len(lane.take_late()) == 0
    assert lane.watermark == FOREVER


def test_what_the_owner_before_had_handled_is_only_remembered() -> None:
    first = [tick(START, 0), tick(START + WINDOW, 1), tick(START + WINDOW + LATE, 2)]
    lane = TumblingWindows(settings_of(), watermark=START + WINDOW)
    again = [*first, tick(START + 1, 3), tick(START + WINDOW + 1, 4)]
    lane.add(EventBatch.from_events(again), 0, handled_rows=3)
    out = Outcome()
    out.collect(lane)
    # The first is in the store; of the other two the window is open; the fourth was never read and is late.
    assert (lane.counts.handled, lane.counts.accepted, lane.counts.late) == (1, 3, 1)
    assert [e.seq for e in out.late] == [3]
    lane.add(EventBatch.from_events(first), 9)
    assert lane.counts.duplicate == 3, "all ids are known"
    assert [(b.ts, b.n_events) for b in out.end(lane).closed] == [(START + WINDOW, 3)]


def test_whole_bars_that_were_read_are_handled() -> None:
    lane = TumblingWindows(settings_of(), watermark=START)
    lane.add(
        EventBatch.from_events([bar(START, 1, "1m"), bar(START, 2, "1m", symbol="B")]), 0, handled_rows=1
    )
    closed, _ = lane.close(0)
    assert [b.symbol for b in closed.bars()] == ["B"]
    assert lane.counts.handled == 1


def test_offsets_of_open_windows_and_of_remembered_ids() -> None:
    lane = TumblingWindows(settings_of(dedupe_horizon_ns=20 * SECOND))
    assert lane.restart_offset(5) == lane.dedupe_offset(5) == 5
    for i in range(60):
        lane.add(EventBatch.from_events([tick(START + i * SECOND, i)]), 100 + i)
        lane.close(0)
        following = 101 + i
        # Open is what ends after the newest time less the lateness.
        oldest_open = max(0, (i - 2) // 5 * 5)
        assert lane.restart_offset(following) == 100 + oldest_open
        assert lane.dedupe_offset(following) <= lane.restart_offset(following)
        assert lane.dedupe_offset(following) <= max(100, 100 + i - 20 + 1)
    assert lane.dedupe_offset(160) > 110, "ids beyond the horizon hold nothing back"
    lane.finish()
    lane.close(0)
    assert lane.restart_offset(161) == 161


def test_what_is_held_and_what_is_open() -> None:
    lane = TumblingWindows(settings_of(allow_late_ns=2 * WINDOW))
    assert (lane.held_rows, lane.open_bars(), lane.has_open, lane.remembered) == (0, 0, False, 0)
    for offset in (0, 1):
        some = [tick(START + i * WINDOW // 6, 12 * offset + i, symbol=f"S{i % 3}") for i in range(12)]
        lane.add(EventBatch.from_events(some), offset)
    assert lane.held_rows == 24
    assert lane.open_bars() == lane.held_rows == 6
    lane.finish()
    lane.close(0)
    assert (lane.held_rows, lane.open_bars(), lane.has_open, lane.remembered) == (0, 0, False, 24)


def test_ten_thousand_symbols_are_compacted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory for open windows is bounded by the open bars, not by the events."""
    monkeypatch.setattr(tumbling, "_MOST_RAW_ROWS", 1000)
    monkeypatch.setattr(tumbling, "_COMPACT_ROWS", 1000)
    lane = TumblingWindows(settings_of())
    total = 0
    for i in range(100):
        some = [tick(START + (i * 500 + k) % WINDOW, total + k, symbol=f"S{k % 300}") for k in range(500)]
        lane.add(EventBatch.from_events(some), i)
        total += 500
        assert lane.held_rows <= 1000 + max(1000, 2 * 300) + 300
    lane.finish()
    closed, _ = lane.close(0)
    assert int(closed.n_events.sum()) == total
    assert len(closed) == 300


def test_a_new_table_of_series_is_followed() -> None:
    """The decoder begins its table anew when it grows beyond its bound: open bars keep their names."""
    made = arrivals(3, 200, symbols=20, seconds=60.0)
    cut = pieces(random.Random(3), len(made.order), 9)
    want = run(batches_of(made.order, cut))
    # Each batch with a table of its own: no prefix of one another.
    alone = [EventBatch.from_events(made.order[c]) for c in cut]
    assert run(alone) == want


def test_names_are_dropped_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tumbling, "MAX_SERIES", 10)
    lane = TumblingWindows(settings_of(allow_late_ns=0))
    out = Outcome()
    events = [tick(START + i * WINDOW, i, symbol=f"S{i}") for i in range(100)]
    for i, event in enumerate(events):
        lane.add(EventBatch.from_events([event]), i)
        out.collect(lane)
        lane.finish()
        out.collect(lane)
        assert len(lane._routes.bar_series) <= 12
    oracle.assert_equal(out.end(lane).closed, oracle.recount(events, WINDOW))


@given(SEEDS, st.integers(1, 100))
@settings(max_examples=40)
def test_no_copy_is_counted_however_late_it_comes(seed: int, n: int) -> None:
    """Its id may be forgotten by then: then it is put aside instead of being taken for a late event."""
    rng = random.Random(seed)
    made = arrivals(seed, n, seconds=300.0, copies=0)
    copies = [(i + rng.randrange(1, n + 1), e) for i, e in enumerate(made.order) if rng.random() < 0.5]
    order = [e for _, e in sorted([*enumerate(made.order), *copies], key=lambda pair: pair[0])]
    cut = pieces(rng, len(order), rng.choice([1, 10, 5000]))
    out = run(batches_of(order, cut), settings_of(dedupe_horizon_ns=20 * SECOND))
    assert out.late == []
    oracle.assert_equal(out.closed, oracle.recount(made.distinct, WINDOW))
    assert sum(out.counts) == len(order)
    assert out.counts[0] == n


@pytest.mark.parametrize("how", ["events", "clock"])
@pytest.mark.parametrize("amend", [False, True])
def test_beyond_the_horizon_an_event_cannot_be_told_from_a_copy(how: str, amend: bool) -> None:
    of = settings_of(dedupe_horizon_ns=20 * SECOND, amend_beyond_horizon=amend)
    lane = TumblingWindows(of)
    lane.add(EventBatch.from_events([tick(START, 0)]), 0)
    if how == "events":
        lane.add(EventBatch.from_events([tick(START + 60 * SECOND + LATE, 1)]), 1)
    else:
        lane.advance(START + 60 * SECOND)
    limit = START + 60 * SECOND - (20 * SECOND - LATE)
    lane.add(EventBatch.from_events([tick(limit, 2), tick(limit + 1, 3, symbol="B")]), 2)
    in_window = how == "clock"
    expired = [e.seq for e in lane.take_expired().events()]
    late = [e.seq for e in lane.take_late().events()]
    if in_window:
        # The watermark waits for the one window that is open: what comes behind it is in time.
        assert (late, expired) == ([], [])
    elif amend:
        assert (late, expired) == ([2, 3], [])
    else:
        assert (late, expired) == ([3], [2])
    assert lane.counts.late + lane.counts.expired + lane.counts.accepted == 4 - in_window


@pytest.mark.parametrize("silence", [SILENCE_NS, SILENCE_NS + 60 * SECOND])
def test_a_short_silence_does_not_age_ids_and_a_long_one_does(silence: int) -> None:
    """A producer that could not reach the bus for a while sends what is as old as the silence is long."""
    lane = TumblingWindows(settings_of(dedupe_horizon_ns=20 * SECOND))
    lane.add(EventBatch.from_events([tick(START, 0)]), 0)
    lane.advance(START + silence)
    lane.close(0)
    lane.add(EventBatch.from_events([tick(START, 0), tick(START + 1, 1)]), 1)
    assert lane.counts.duplicate == 1
    assert (lane.counts.late, lane.counts.expired) == ((1, 0) if silence == SILENCE_NS else (0, 1))


def test_an_empty_batch_changes_nothing() -> None:
    lane = TumblingWindows(settings_of())
    lane.add(EventBatch.empty(), 0)
    assert lane.watermark == NEVER
    assert lane.counts == tumbling.Counts()


def test_closed_bars_of_several_batches_are_whole() -> None:
    """What closed is one row a bar: nothing is left to merge."""
    made = arrivals(8, 300, symbols=3)
    lane = TumblingWindows(settings_of())
    seen: set[tuple[str, int]] = set()
    for batch in batches_of(made.order, pieces(random.Random(1), len(made.order), 13)):
        lane.add(batch, 0)
        closed, _ = lane.close(0)
        assert len(merge_bars(closed)) == len(closed)
        keys = {(b.symbol, b.ts) for b in closed.bars()}
        assert not keys & seen
        seen |= keys
    assert isinstance(closed, BarBatch)
    assert np.all(closed.revision == 1)
