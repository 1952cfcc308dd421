"""The micro-batcher's logic of one partition: lanes, dead letters, the future, and what is asked to be read again."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_core.batch import EventBatch
from market_data_core.clock import ManualClock
from market_data_core.codecs import encode_end_of_lane, encode_events, encode_frame, event_of
from market_data_core.events import Bar, StreamEvent
from market_data_core.protocols import Claim, Position
from market_data_pipeline.consumers.micro_batcher import (
    PARTITION_LANE,
    REPLAY_SILENCE_NS,
    BatcherSettings,
    PartitionBars,
)
from market_data_pipeline.consumers.partition_logic import Plan
from market_data_pipeline.streaming.bus import Delivery
from market_data_pipeline.windows.tumbling import FOREVER, NEVER, WindowSettings
from tests import oracle
from tests.unit.strategies import BASE, SECOND, SEEDS, arrivals, pieces, records

WINDOW, LATE, HORIZON, SILENCE = 2 * SECOND, SECOND // 2, 60 * SECOND, SECOND
START = BASE // WINDOW * WINDOW
SETTINGS = BatcherSettings(WindowSettings(WINDOW, LATE, HORIZON), SILENCE)


def claim_of(positions: list[Position] | None = None) -> Claim:
    return Claim("mdp.events", "g", 3, 1, "w", {p.lane: p for p in positions or []}, [])


def tick(at: int, seq: int, *, provider: str = "p", symbol: str = "A", c: float = 5.0) -> StreamEvent:
    return StreamEvent(provider, symbol, "tick", "1s", at, at, c, c, c, c, 1.0, seq)


def json_of(*events: StreamEvent) -> list[bytes]:
    return encode_events(EventBatch.from_events(events))


def frame_of(*events: StreamEvent, lane: str | None = None) -> bytes:
    return encode_frame(EventBatch.from_events(events), lane)


class Partition:
    """A log of records and the logic that reads it."""

    def __init__(self, settings: BatcherSettings = SETTINGS, positions: list[Position] | None = None) -> None:
        self.clock = ManualClock(START)
        self.logic = PartitionBars(claim_of(positions), settings, self.clock, str, int)
        self.next = self.logic.start or 0

    def feed(self, *values: bytes, lanes: list[str | None] | None = None) -> None:
        offsets = list(range(self.next, self.next + len(values)))
        self.next += len(values)
        self.logic.process(Delivery(3, offsets, list(values), lanes, False, self.clock.monotonic()))

    def closed(self) -> dict[str, list[Bar]]:
        """Bars of the next flush, by lane."""
        return {flush.lane: flush.closed.bars() for flush in self.logic.take().lanes}

    def lanes(self) -> list[str]:
        return sorted(self.logic._lanes)


def starts(bars: list[Bar]) -> list[int]:
    return [(b.ts - START) // WINDOW for b in bars]


def test_each_provider_has_a_lane_of_its_own() -> None:
    partition = Partition()
    slow, fast = tick(START, 0, provider="slow"), tick(START, 0, provider="fast")
    partition.feed(*json_of(slow, fast, tick(START + 10 * WINDOW, 1, provider="fast")))
    assert partition.lanes() == ["live/fast", "live/slow"]
    assert {lane: starts(bars) for lane, bars in partition.closed().items()} == {"live/fast": [0]}
    partition.feed(*json_of(tick(START + 1, 1, provider="slow")))
    assert partition.logic.counts.late == 0, "a fast provider makes nobody late"


def test_yesterday_replayed_into_a_live_topic_is_neither_late_nor_a_disturbance() -> None:
    partition = Partition()
    yesterday = START - 86_400 * SECOND
    partition.feed(*json_of(tick(START, 0)))
    partition.feed(
        frame_of(tick(yesterday, 7), tick(yesterday + 5 * WINDOW, 8), lane="replay/r1/p"),
        *json_of(tick(START + 1, 1)),
        lanes=[None, None],
    )
    partition.feed(*json_of(tick(yesterday + 9 * WINDOW, 9)), lanes=["replay/r1/p"])
    assert partition.lanes() == ["live/p", "replay/r1/p"]
    plan = partition.logic.take()
    [flush] = plan.lanes
    assert flush.lane == "replay/r1/p"
    assert [b.ts for b in flush.closed.bars()] == [yesterday, yesterday + 5 * WINDOW]
    assert not flush.force
    assert partition.logic.counts.late == 0
    assert plan.watermarks["live/p"] == START + 1 - LATE


def test_two_replays_of_the_same_events_do_not_see_each_others_copies() -> None:
    partition = Partition()
    some = [tick(START, 0), tick(START + 5 * WINDOW, 1)]
    for lane in ("replay/a/p", "replay/b/p", None):
        partition.feed(frame_of(*some, lane=lane))
    assert {lane: starts(b) for lane, b in partition.closed().items()} == {
        "live/p": [0],
        "replay/a/p": [0],
        "replay/b/p": [0],
    }
    assert partition.logic.counts.duplicate == 0


def test_the_end_of_a_lane_closes_its_windows_at_once_and_it_is_forgotten() -> None:
    partition = Partition()
    partition.feed(
        frame_of(tick(START, 0), tick(START + WINDOW, 1), lane="replay/a/p"), *json_of(tick(START, 0))
    )
    assert partition.closed() == {}
    partition.feed(encode_end_of_lane("replay/a/p"))
    plan = partition.logic.take()
    [flush] = plan.lanes
    assert starts(flush.closed.bars()) == [0, 1]
    [row] = [p for p in plan.positions if p.lane == "replay/a/p"]
    assert row == Position("replay/a/p", FOREVER, "2", "", "")
    assert plan.forget == [], "a restart would read its records again, because of the live lane"
    # When nothing before its end can be read again, the lane is gone.
    partition.feed(*json_of(tick(START + 70 * WINDOW, 2)))
    partition.feed(*json_of(tick(START + 140 * WINDOW, 3)))
    partition.feed(*json_of(tick(START + 210 * WINDOW, 4)))
    plan = partition.logic.take()
    assert plan.forget == ["replay/a/p"]
    assert partition.lanes() == ["live/p"]
    assert "replay/a/p" not in {p.lane for p in plan.positions}
    assert partition.logic.counts.accepted == 6, "what it had done still counts"


def test_a_forced_lane_says_so() -> None:
    partition = Partition()
    partition.feed(frame_of(tick(START, 0), lane="replay!/a/p"), encode_end_of_lane("replay!/a/p"))
    [flush] = partition.logic.take().lanes
    assert flush.force


def test_the_end_of_a_lane_that_nobody_knows_is_nothing() -> None:
    partition = Partition()
    partition.feed(encode_end_of_lane("replay/x/p"))
    assert partition.lanes() == []
    assert partition.logic.take().dead_letters == []


def test_what_comes_after_the_end_of_a_lane_is_put_aside() -> None:
    """Its ids are not kept over a restart, so it cannot be told from a copy."""
    partition = Partition()
    partition.feed(*json_of(tick(START, 0)))
    partition.feed(frame_of(tick(START, 0), lane="replay/a/p"), encode_end_of_lane("replay/a/p"))
    partition.logic.take()
    partition.feed(frame_of(tick(START + 1, 1), lane="replay/a/p"))
    plan = partition.logic.take()
    assert plan.lanes == []
    [letter] = plan.dead_letters
    assert "cannot be told from a copy" in letter.reason
    assert (event_of(letter.value), letter.lane) == (tick(START + 1, 1), "replay/a/p")


def test_a_killed_replay_ends_by_itself_in_the_end() -> None:
    partition = Partition()
    partition.feed(frame_of(tick(START, 0), lane="replay/a/p"), *json_of(tick(START, 0)))
    partition.clock.advance(REPLAY_SILENCE_NS - 1)
    partition.logic.caught_up(partition.clock.monotonic())
    partition.logic.take()
    assert partition.logic._lanes["replay/a/p"].windows.watermark != FOREVER
    partition.clock.advance(1)
    partition.logic.caught_up(partition.clock.monotonic())
    plan = partition.logic.take()
    assert {p.lane: p.watermark for p in plan.positions if p.watermark == FOREVER} == {"replay/a/p": FOREVER}
    assert partition.logic._lanes["live/p"].windows.watermark != FOREVER, "a live lane never ends"


def test_many_lanes_are_forgotten_and_their_names_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("market_data_pipeline.consumers.micro_batcher.MAX_LANE_NAMES", 8)
    partition = Partition()
    bars = 0
    for i in range(60):
        lane = f"replay/{i}/p"
        live = tick(START + i * 100 * WINDOW, i, provider=f"p{i % 2}")
        partition.feed(
            frame_of(tick(START, i, symbol=f"S{i}"), lane=lane), *json_of(live), encode_end_of_lane(lane)
        )
        bars += sum(len(flush) for flush in partition.closed().values())
        assert len(partition.logic._names) <= 8 + 3
    assert len(partition.lanes()) < 8
    assert bars == 60 + 58, "each replay's bar, and all of the live ones but the open"


def test_a_quiet_lane_is_closed_by_the_clock_and_not_by_the_other_ones() -> None:
    partition = Partition()
    partition.feed(*json_of(tick(START, 0, provider="quiet"), tick(START, 0, provider="busy")))
    partition.clock.advance(WINDOW)
    partition.feed(*json_of(tick(START + WINDOW, 1, provider="busy")))
    partition.logic.caught_up(partition.clock.monotonic())
    assert partition.closed() == {}, "the lateness is still allowed for"
    partition.clock.advance(LATE)
    partition.logic.caught_up(partition.clock.monotonic())
    assert {lane: starts(bars) for lane, bars in partition.closed().items()} == {"live/quiet": [0]}


def test_a_record_from_the_future_is_put_aside_by_itself() -> None:
    partition = Partition(replace(SETTINGS, max_future_ns=60 * SECOND))
    ahead, far = tick(START + 60 * SECOND, 1), tick(START + 61 * SECOND, 2)
    single = json_of(far)[0]
    partition.feed(frame_of(tick(START, 0), far, ahead), single, *json_of(tick(START + 1, 3, provider="q")))
    letters = partition.logic.take().dead_letters
    assert [(one.offset, event_of(one.value)) for one in letters] == [("0#1", far), ("1", far)]
    assert letters[1].value == single
    assert all("max_future_ms" in one.reason for one in letters)
    assert partition.logic.counts.accepted == 3
    # What was ahead then is fine when its time has come.
    partition.clock.advance(SECOND)
    partition.feed(single)
    assert partition.logic.take().dead_letters == []


def test_all_of_a_frame_may_be_from_the_future() -> None:
    partition = Partition(replace(SETTINGS, max_future_ns=60 * SECOND))
    partition.feed(frame_of(*(tick(START + 100 * SECOND + i, i) for i in range(3))))
    plan = partition.logic.take()
    assert [one.offset for one in plan.dead_letters] == ["0#0", "0#1", "0#2"]
    assert partition.lanes() == []


def test_without_a_bound_the_future_is_taken() -> None:
    partition = Partition()
    partition.feed(*json_of(tick(START + 10**17, 0)))
    assert partition.logic.counts.accepted == 1


def test_a_poison_record_is_a_dead_letter_with_everything_about_it() -> None:
    partition = Partition()
    good = json_of(tick(START, 0), tick(START, 1))
    partition.clock.advance(17)
    partition.feed(good[0], b"\x00junk", good[1], lanes=[None, "replay/a/p", None])
    [letter] = partition.logic.take().dead_letters
    assert (letter.topic, letter.partition, letter.offset) == ("mdp.events", 3, "1")
    assert (letter.value, letter.lane, letter.at) == (b"\x00junk", "replay/a/p", START + 17)
    assert "neither a JSON object" in letter.reason
    assert partition.logic.counts.accepted == 2
    assert partition.logic.take().dead_letters == [], "once"


@pytest.mark.parametrize("lane", ["", "a\0b"])
def test_a_lane_that_the_store_cannot_keep_is_poison(lane: str) -> None:
    """The position of a lane without a name would be that of the partition, and none could be committed."""
    partition = Partition()
    partition.feed(*json_of(tick(START, 0), tick(START, 1)), lanes=[lane, None])
    partition.feed(frame_of(tick(START, 2), lane=lane))
    plan = partition.logic.take()
    assert [one.offset for one in plan.dead_letters] == ["0", "2"]
    assert sorted(p.lane for p in plan.positions) == [PARTITION_LANE, "live/p"]


def test_late_events_amend_or_are_dropped_into_the_dead_letters() -> None:
    late = tick(START, 5)
    for policy in ("amend", "drop"):
        partition = Partition(replace(SETTINGS, late_policy=policy))
        partition.feed(*json_of(tick(START + 1, 0), tick(START + 9 * WINDOW, 1)))
        partition.logic.take()
        partition.feed(*json_of(late, late))
        assert partition.logic.due()
        plan = partition.logic.take()
        assert plan.counts.late == 1
        assert plan.counts.duplicate == 1
        if policy == "amend":
            [flush] = plan.lanes
            assert flush.late.events() == [late]
            assert plan.dead_letters == []
        else:
            assert plan.lanes == []
            [letter] = plan.dead_letters
            assert (letter.reason, letter.key, letter.lane) == ("late", "A", "live/p")
            assert event_of(letter.value) == late


def test_letters_of_late_events_are_told_apart() -> None:
    """Two of one delivery, of different lanes, must not look like copies of one."""
    partition = Partition(replace(SETTINGS, late_policy="drop"))
    providers = ("p", "q")
    partition.feed(*json_of(*(tick(START + 9 * WINDOW, 1, provider=p) for p in providers)))
    partition.feed(*json_of(*(tick(START, i, provider=p) for p in providers for i in (5, 6))))
    letters = partition.logic.take().dead_letters
    assert len({(one.offset, one.lane, one.value) for one in letters}) == len(letters) == 4


def test_dead_letters_that_the_owner_before_buried_are_not_buried_again() -> None:
    partition = Partition()
    partition.feed(*json_of(tick(START, 0)), b"bad", *json_of(tick(START + 1, 1)))
    plan = partition.logic.take()
    assert len(plan.dead_letters) == 1
    again = Partition(positions=plan.positions)
    assert again.next == 0, "the window is open: it is read again"
    again.feed(*json_of(tick(START, 0)), b"bad", *json_of(tick(START + 1, 1)), b"worse")
    assert [one.value for one in again.logic.take().dead_letters] == [b"worse"]


def test_a_new_owner_starts_where_the_first_open_window_or_known_id_does() -> None:
    partition = Partition()
    assert partition.logic.start is None
    for i in range(200):
        partition.feed(*json_of(tick(START + i * SECOND, i)))
    plan = partition.logic.take()
    again = Partition(positions=plan.positions)
    assert again.logic.start == plan.keep_from
    assert 0 < plan.keep_from <= 200 - 60, "ids of a horizon are read again, and not all that there ever were"
    assert plan.through == 198 - 1, "the window of the last two seconds is open"
    # An owner before that held nothing has read everything.
    done = Partition(positions=[Position(PARTITION_LANE, NEVER, "41", "", "")])
    assert done.logic.start == 42


def test_nothing_is_due_while_reading_again() -> None:
    partition = Partition()
    partition.feed(*json_of(*(tick(START + i * SECOND, i) for i in range(10))))
    plan = partition.logic.take()
    again = Partition(positions=plan.positions)
    again.clock.advance(100 * SECOND)
    for i in range(10):
        assert not again.logic.due()
        again.feed(*json_of(tick(START + i * SECOND, i)))
    assert again.logic.counts.accepted + again.logic.counts.handled == 10


def test_the_position_is_due_from_time_to_time_even_when_nothing_closes() -> None:
    partition = Partition()
    partition.feed(*json_of(tick(START, 0)))
    assert not partition.logic.due()
    partition.clock.advance(SETTINGS.position_interval_ns)
    assert partition.logic.due()
    partition.logic.take()
    partition.clock.advance(SETTINGS.position_interval_ns)
    assert not partition.logic.due(), "nothing was read since"


def test_there_is_nothing_to_commit_before_the_first_record() -> None:
    with pytest.raises(RuntimeError, match="nothing was read"):
        Partition().logic.take()


def test_the_backlog_counts_what_waits_for_the_store() -> None:
    partition = Partition()
    partition.feed(b"bad", *json_of(tick(START, 0), tick(START + 5 * WINDOW, 1), tick(START + 1, 2)))
    assert partition.logic.backlog == 1 + 1 + 1, "a dead letter, a bar and a late event"
    partition.logic.take()
    assert partition.logic.backlog == 0


def test_plans_tell_what_is_new_and_not_what_was_told() -> None:
    partition = Partition()
    partition.feed(*json_of(tick(START, 0), tick(START, 0)))
    first = partition.logic.take().counts
    assert (first.accepted, first.duplicate) == (1, 1)
    partition.feed(*json_of(tick(START + 1, 1)))
    second = partition.logic.take().counts
    assert (second.accepted, second.duplicate) == (1, 0)
    assert partition.logic.open_bars() == 1
    assert partition.logic.remembered == 2


@given(SEEDS, st.integers(1, 120), st.integers(1, 3))
@settings(max_examples=30)
def test_lanes_are_independent_of_one_another(seed: int, n: int, lanes: int) -> None:
    """Interleaved at random, each lane gives the bars it gives alone."""
    rng = random.Random(seed)
    streams: dict[str, list[Any]] = {}
    want: dict[str, Any] = {}
    for i in range(lanes):
        made = arrivals(seed + i, n, allow_late_ns=LATE)
        name = f"replay/{i}/p"
        streams[name] = records(rng, made.order)
        want[name] = oracle.recount(made.distinct, WINDOW)
    mixed: list[tuple[str, bytes]] = []
    while streams:
        name = rng.choice(sorted(streams))
        mixed.append((name, streams[name].pop(0)))
        if not streams[name]:
            mixed.append((name, encode_end_of_lane(name)))
            del streams[name]
    partition = Partition()
    got: dict[str, list[Bar]] = {}
    for cut in pieces(rng, len(mixed), 50):
        some = mixed[cut]
        partition.feed(*(value for _, value in some), lanes=[name for name, _ in some])
        if partition.logic.due():
            for lane, bars in partition.closed().items():
                got.setdefault(lane, []).extend(bars)
    assert got.keys() == want.keys()
    for name, bars in got.items():
        oracle.assert_equal(bars, want[name])


def test_a_plan_is_a_plan() -> None:
    partition = Partition()
    partition.feed(*json_of(tick(START, 0), tick(START + 5 * WINDOW, 1)))
    plan = partition.logic.take()
    assert isinstance(plan, Plan)
    assert plan.closable_at == [START + 5 * WINDOW]
    assert plan.open_rows == 1
    assert {p.lane for p in plan.positions} == {PARTITION_LANE, "live/p"}
    assert {p.read_offset for p in plan.positions} == {"1"}
