"""A lane that is silent because its producer cannot reach the bus, and what comes when it can again."""

from __future__ import annotations

import pytest

from market_data_core.batch import EventBatch
from market_data_core.events import StreamEvent
from market_data_pipeline.windows.tumbling import SILENCE_NS, TumblingWindows, WindowSettings

SECOND = 10**9
START = 1_700_000_000 * SECOND
WINDOW, LATE, HORIZON = 2 * SECOND, SECOND // 2, 20 * SECOND


def ticks(first: int, last: int) -> EventBatch:
    """One event every 100 ms, by number."""
    return EventBatch.from_events(
        StreamEvent("p", "A", "tick", "1s", t, t, 1.0, 1.0, 1.0, 1.0, 1.0, i)
        for i in range(first, last)
        for t in (START + i * SECOND // 10,)
    )


@pytest.mark.parametrize("silence", [HORIZON, 3 * HORIZON, SILENCE_NS])
def test_what_a_producer_sends_after_an_outage_is_neither_lost_nor_counted_twice(silence: int) -> None:
    """It sends again what got no answer, then the rest of a window that the clock has closed meanwhile."""
    lane = TumblingWindows(WindowSettings(WINDOW, LATE, HORIZON))
    lane.add(ticks(0, 10), 1)
    for passed in range(SECOND, silence, SECOND):
        lane.advance(START + SECOND + passed - LATE)
    assert lane.close(0)[0].n_events.tolist() == [10]
    held = lane.dedupe_offset(2)
    lane.add(ticks(0, 40), 2)
    assert held == 1, "a restart in the silence must remember as well"
    assert [e.seq for e in lane.take_late().events()] == list(range(10, 20))
    assert len(lane.take_expired()) == 0
    assert (lane.counts.accepted, lane.counts.late, lane.counts.duplicate) == (30, 10, 10)


def test_a_lane_that_stays_silent_holds_nothing_back_for_ever() -> None:
    lane = TumblingWindows(WindowSettings(WINDOW, LATE, HORIZON))
    lane.add(ticks(0, 10), 1)
    for passed in range(0, SILENCE_NS + 3 * HORIZON, SECOND):
        lane.advance(START + SECOND + passed)
    assert lane.remembered == 0
    assert lane.dedupe_offset(2) == 2
    # What cannot be told from a copy is put aside.
    lane.add(ticks(0, 20), 2)
    assert (len(lane.take_late()), len(lane.take_expired())) == (0, 20)
