"""When events are due, and that they are let out then: with clocks moved by hand."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_core.batch import EventBatch
from market_data_core.clock import ManualClock
from market_data_core.errors import UsageError
from market_data_core.events import Series
from market_data_pipeline.producers.pacing import EventTimePace, Pace, RatePace, Unpaced
from market_data_pipeline.producers.release import Release

MS = 1_000_000
S = 1_000_000_000


def batch(times: list[int]) -> EventBatch:
    at = np.array(times, np.int64)
    price = np.ones(len(times))
    seq = np.arange(len(times), dtype=np.int64)
    return EventBatch(
        (Series("p", "A", "tick", "1s"),),
        np.zeros(len(times), np.int32),
        at,
        at + 7,
        price,
        price,
        price,
        price,
        price,
        seq,
    )


def test_a_rate_goes_on_over_batches() -> None:
    pace = RatePace(4.0)
    first = pace.due(batch([0, 0, 0]), 100)
    second = pace.due(batch([0, 0]), 999)
    assert first is not None
    assert second is not None
    assert (first - 100).tolist() == [0, S // 4, S // 2]
    assert (second - 100).tolist() == [3 * S // 4, S]


@pytest.mark.parametrize(
    ("speed", "want"), [(1.0, [5, 5, 5 + 2 * S]), (10.0, [5, 5, 5 + S // 5]), (0.5, [5, 5, 5 + 4 * S])]
)
def test_event_time_at_a_speed(speed: float, want: list[int]) -> None:
    due = EventTimePace(speed).due(batch([10 * S, 9 * S, 12 * S]), 5)
    assert due is not None
    assert due.tolist() == want


@pytest.mark.parametrize("ahead", [S // 10, 0, -S // 10])
def test_with_a_clock_an_event_is_due_at_its_own_time(ahead: int) -> None:
    """The first one too, whether that is yet to come or over."""
    pace = EventTimePace(1.0, "ingest_ts", ManualClock(100 * S + 7))
    due = pace.due(batch([100 * S + ahead, 101 * S]), 7)
    assert due is not None
    assert due.tolist() == [7 + ahead, 7 + S]


def test_event_time_never_goes_back_between_batches() -> None:
    pace = EventTimePace(1.0, "ingest_ts")
    assert pace.due(batch([]), 3) is None
    pace.due(batch([10 * S, 20 * S]), 0)
    later = pace.due(batch([15 * S, 21 * S]), 0)
    assert later is not None
    assert later.tolist() == [10 * S, 11 * S]


def test_impossible_paces() -> None:
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="--rate"):
            RatePace(wrong)
        with pytest.raises(UsageError, match="--speed"):
            EventTimePace(wrong)


class Time:
    """A clock that sleeping moves; sleeping overshoots by ``late`` ns, as machines do."""

    def __init__(self, late: int = 0) -> None:
        self.clock = ManualClock()
        self.slept: list[float] = []
        self._late = late

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.clock.advance(max(round(seconds * 1e9), 1) + self._late)


def release(time: Time, pace: Pace, *, duration_s: float | None = None, largest: int = 1000) -> Release:
    return Release(pace, time.clock, time.sleep, linger_s=0.02, duration_s=duration_s, largest=largest)


async def taken(time: Time, release: Release, *batches: EventBatch) -> list[tuple[int, int]]:
    """(monotonic ns, seq) of every event as it was let out."""
    out = []
    for each in batches:
        async for rows in release.rows(each):
            assert len(rows)
            out += [(time.clock.monotonic(), seq) for seq in rows.seq.tolist()]
    return out


@settings(max_examples=100, deadline=None)
@given(
    gaps=st.lists(st.integers(0, 60 * MS), min_size=1, max_size=80),
    largest=st.integers(1, 30),
    late=st.sampled_from([0, 1000, 3 * MS]),
)
async def test_never_early_and_never_late_by_more_than_the_linger(
    gaps: list[int], largest: int, late: int
) -> None:
    time = Time(late)
    times = (np.cumsum(gaps) + 5 * S).tolist()
    out = await taken(time, release(time, EventTimePace(1.0), largest=largest), batch(times))
    assert [seq for _, seq in out] == list(range(len(times)))
    for (at, _), due in zip(out, (t - times[0] for t in times), strict=True):
        assert due <= at <= due + 20 * MS + late


async def test_a_lonely_event_does_not_wait_for_others() -> None:
    time = Time()
    out = await taken(time, release(time, RatePace(0.1)), batch([0, 0, 0]))
    assert [at for at, _ in out] == [0, 10 * S, 20 * S]
    assert len(time.slept) == 2


async def test_a_high_rate_goes_in_slices_of_the_linger() -> None:
    time = Time()
    out = await taken(time, release(time, RatePace(10_000.0), largest=100_000), batch([0] * 10_000))
    moments = sorted({at for at, _ in out})
    assert 45 <= len(moments) <= 52, "fifty slices of 20 ms in a second"
    assert max(at - seq * 100_000 for at, seq in out) <= 20 * MS


async def test_unpaced_is_at_once_in_slices() -> None:
    time = Time()
    seen = [len(rows) async for rows in release(time, Unpaced(), largest=400).rows(batch([0] * 1000))]
    assert (seen, time.slept) == ([400, 400, 200], [])


async def test_what_falls_behind_is_caught_up_with() -> None:
    time = Time()
    let_out = release(time, RatePace(10.0))
    await taken(time, let_out, batch([0] * 10))
    time.clock.advance(5 * S)  # the bus was away
    out = await taken(time, let_out, batch([0] * 60))
    assert [at for at, _ in out[:46]] == [time.clock.monotonic() - (out[-1][0] - out[0][0])] * 46


@pytest.mark.parametrize(("duration", "count"), [(1.0, 10), (1.05, 11), (0.0, 0), (99.0, 60)])
async def test_a_duration_takes_what_is_due_in_it(duration: float, count: int) -> None:
    time = Time()
    let_out = release(time, RatePace(10.0), duration_s=duration)
    out = await taken(time, let_out, batch([0] * 30), batch([0] * 30))
    assert len(out) == count
    assert let_out.over is (count < 60)


@pytest.mark.parametrize("ahead", [S // 4, 0, -S // 4])
async def test_a_duration_counts_from_the_time_of_the_first_event(ahead: int) -> None:
    time = Time()
    pace = EventTimePace(1.0, "src_ts", time.clock)
    times = [time.clock.now() + ahead + i * S // 10 for i in range(60)]
    out = await taken(time, release(time, pace, duration_s=1.0), batch(times))
    assert len(out) == 10


async def test_a_duration_ends_an_unpaced_run() -> None:
    time = Time()
    let_out = release(time, Unpaced(), duration_s=1.0, largest=10)
    got = 0
    async for rows in let_out.rows(batch([0] * 1000)):
        got += len(rows)
        time.clock.advance(S // 10)
    assert (got, let_out.over) == (100, True)


async def test_a_stop_is_not_slept_through() -> None:
    time = Time()

    async def never(seconds: float) -> None:
        let_out.halt()
        await asyncio.Event().wait()

    let_out = Release(RatePace(0.001), time.clock, never, linger_s=0.02, duration_s=None, largest=10)
    out = await asyncio.wait_for(taken(time, let_out, batch([0, 0])), 5)
    assert out == [(0, 0)]


async def test_a_stopped_run_finishes_its_window() -> None:
    time = Time()
    let_out = release(time, EventTimePace(1.0), largest=2)
    out = []
    async for rows in let_out.rows(batch([0, 1 * S, 2 * S, 3 * S, 4 * S, 5 * S])):
        out += rows.src_ts.tolist()
        if out[-1] == 1 * S:
            let_out.finish(at=4 * S)
    assert out == [0, 1 * S, 2 * S, 3 * S]
    assert let_out.over
    assert time.clock.monotonic() == 1 * S, "the rest of the window went at once"
