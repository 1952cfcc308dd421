"""Which window an event belongs to, and until when it is still in time: the cases on the boundary."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_core.batch import EventBatch
from market_data_core.events import StreamEvent
from market_data_core.ohlcv import partial_bars
from market_data_pipeline.windows.tumbling import NEVER, TumblingWindows, WindowSettings
from tests.unit.strategies import SECOND, TIMES

WINDOW, LATE = 2 * SECOND, SECOND // 2
START = 1_763_000_000 * SECOND
"""A start of windows of 2 s."""


def tick(at: int, seq: int = 0, c: float = 1.0, symbol: str = "A") -> StreamEvent:
    return StreamEvent("p", symbol, "tick", "1s", at, at, c, c, c, c, 1.0, seq)


def windows(allow_late: int = LATE) -> TumblingWindows:
    return TumblingWindows(WindowSettings(WINDOW, allow_late, 120 * SECOND))


def add(lane: TumblingWindows, *events: StreamEvent, offset: int = 0) -> list[int]:
    """Starts of the windows that ``events``, in one batch, close."""
    lane.add(EventBatch.from_events(events), offset)
    closed, _ = lane.close(0)
    return closed.ts.tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("at", "start"),
    [
        (START, START),
        (START + 1, START),
        (START + WINDOW - 1, START),
        (START + WINDOW, START + WINDOW),
        (START - 1, START - WINDOW),
        (0, 0),
        (-1, -WINDOW),
        (-WINDOW, -WINDOW),
        (-WINDOW - 1, -2 * WINDOW),
    ],
)
def test_a_window_has_its_start_and_not_its_end(at: int, start: int) -> None:
    assert partial_bars(EventBatch.from_events([tick(at)]), WINDOW).ts.tolist() == [start]
    lane = windows()
    add(lane, tick(at))
    lane.finish()
    closed, _ = lane.close(0)
    assert closed.ts.tolist() == [start]


@given(
    TIMES, st.sampled_from([10**6, 500 * 10**6, SECOND, 2 * SECOND, 7 * SECOND, 60 * SECOND, 86_400 * SECOND])
)
def test_every_time_is_in_exactly_one_window_aligned_to_the_epoch(at: int, window: int) -> None:
    [start] = partial_bars(EventBatch.from_events([tick(at)]), window).ts.tolist()
    assert start <= at < start + window
    assert start % window == 0


def test_days_begin_at_midnight_utc() -> None:
    day = 86_400 * SECOND
    at = 1_761_314_521 * SECOND  # 2025-10-24T14:02:01Z
    assert partial_bars(EventBatch.from_events([tick(at)]), day).ts.tolist() == [1_761_264_000 * SECOND]


def test_a_window_closes_when_the_watermark_reaches_its_end_and_not_before() -> None:
    lane = windows()
    assert add(lane, tick(START)) == []
    assert add(lane, tick(START + WINDOW, 1)) == []
    assert add(lane, tick(START + WINDOW + LATE - 1, 2)) == []
    assert lane.watermark == START + WINDOW - 1
    assert add(lane, tick(START + WINDOW + LATE, 3)) == [START]
    assert lane.watermark == START + WINDOW


def test_without_allowance_the_first_event_of_the_next_window_closes_this_one() -> None:
    lane = windows(allow_late=0)
    assert add(lane, tick(START + WINDOW - 1)) == []
    assert add(lane, tick(START + WINDOW, 1)) == [START]


def test_an_event_is_late_when_its_window_has_closed_and_not_before() -> None:
    lane = windows()
    add(lane, tick(START), tick(START + WINDOW + LATE - 1, 1))
    # As old as can be, and a hair before the window closes: in time.
    add(lane, tick(START + 1, 2))
    assert lane.counts.late == 0
    assert add(lane, tick(START + WINDOW + LATE, 3)) == [START]
    add(lane, tick(START + WINDOW - 1, 4), tick(START + WINDOW, 5))
    assert lane.counts.late == 1
    assert [e.seq for e in lane.take_late().events()] == [4]
    assert len(lane.take_late()) == 0


def test_lateness_is_of_the_window_and_not_of_the_event() -> None:
    """An event far behind the watermark is in time as long as its window is open."""
    lane = windows(allow_late=0)
    add(lane, tick(START + WINDOW - 1), tick(START, 1))
    lane.finish()
    closed, _ = lane.close(0)
    assert closed.n_events.tolist() == [2]
    assert lane.counts.late == 0


def test_the_event_that_closes_a_window_does_not_save_those_behind_it_in_its_batch() -> None:
    lane = windows()
    closed = add(lane, tick(START), tick(START + 10 * WINDOW, 1), tick(START + 1, 2))
    assert closed == [START]
    assert lane.counts.late == 1


def test_symbols_share_the_watermark_of_their_lane() -> None:
    lane = windows()
    assert add(lane, tick(START, symbol="quiet")) == []
    assert add(lane, tick(START + WINDOW + LATE, symbol="busy")) == [START]


def test_several_windows_close_at_once_in_order() -> None:
    lane = windows(allow_late=5 * WINDOW)
    assert add(lane, *(tick(START + i * WINDOW, i) for i in (3, 0, 2, 1, 4))) == []
    assert add(lane, tick(START + 8 * WINDOW, 9)) == [START, START + WINDOW, START + 2 * WINDOW]


def test_before_the_first_event_there_is_no_watermark() -> None:
    lane = windows()
    assert lane.watermark == NEVER
    assert lane.max_ts is None
    assert not lane.has_open
    closed, at = lane.close(0)
    assert len(closed) == len(at) == 0
    lane.advance(START)
    lane.finish()
    assert lane.watermark == NEVER, "a clock alone does not begin a lane"


@pytest.mark.parametrize(("window", "late", "horizon"), [(0, 0, 0), (-1, 0, 0), (1, -1, 0), (1, 0, -1)])
def test_impossible_lengths_are_refused(window: int, late: int, horizon: int) -> None:
    with pytest.raises(ValueError, match="longer than 0"):
        WindowSettings(window, late, horizon)
