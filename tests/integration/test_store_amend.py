"""Late events: the amended bar is the bar that all events would have made, to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market_data_core.batch import BarBatch, EventBatch
from market_data_core.codecs import decode_bars, decode_dead_letter, event_of
from market_data_core.events import StreamEvent
from market_data_core.ohlcv import partial_bars
from market_data_store import StoreClient
from market_data_store import bars as bars_table
from tests.integration.store_samples import T0, S, bars, events, exact, flush, tick, values

MINUTE = 60 * S

_event = st.builds(
    lambda at, price, size, symbol: (at, price, size, symbol),
    st.integers(0, 179),
    st.floats(-1e12, 1e12, allow_nan=False).map(lambda x: round(x, 3)),
    st.floats(0, 1e9, allow_nan=False),
    st.sampled_from(["IBM", "SPY"]),
)


@st.composite
def _histories(draw: st.DrawFn) -> list[list[StreamEvent]]:
    """Events in up to five deliveries; the first is on time."""
    rows = draw(st.lists(_event, min_size=1, max_size=30))
    made = [tick(at, price, size, seq=i, symbol=symbol) for i, (at, price, size, symbol) in enumerate(rows)]
    cuts = sorted(draw(st.lists(st.integers(0, len(made)), max_size=4)))
    return [made[a:b] for a, b in zip([0, *cuts], [*cuts, len(made)], strict=True)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deliveries=_histories())
async def test_amended_bars_equal_a_recount(store: StoreClient, deliveries: list[list[StreamEvent]]) -> None:
    async with store.session() as connection:
        await connection.execute("TRUNCATE bars_ohlcv, stream_outbox")
    claim = await store.claim("t", "g", 0, "me")
    published: dict[tuple[str, str, str, int], tuple[float, ...]] = {}
    first = partial_bars(events(*deliveries[0]), MINUTE)
    flushes = [flush(claim, 1, first)]
    flushes += [flush(claim, n, late=events(*rows)) for n, rows in enumerate(deliveries[1:], 2)]
    for one in flushes:
        done = await store.commit(one)
        for record in done.outbox:
            published |= exact(decode_bars(record.value))
    everything = EventBatch.concat([events(*rows) for rows in deliveries])
    want = exact(partial_bars(everything, MINUTE))
    assert exact(await store.bars(interval="1m")) == want
    assert published == want


async def test_an_amendment_counts_a_revision(matrix_store: StoreClient) -> None:
    claim = await matrix_store.claim("t", "g", 0, "me")
    on_time = events(tick(1, 10.0), tick(2, 20.0, seq=1))
    await matrix_store.commit(flush(claim, 1, partial_bars(on_time, MINUTE)))
    for turn, price in enumerate((30.0, 5.0), 2):
        done = await matrix_store.commit(flush(claim, turn, late=events(tick(turn * 0.25, price, seq=turn))))
        assert done.amended == 1
        assert [b.revision for b in done.bars.bars()] == [turn]
    (bar,) = (await matrix_store.bars(interval="1m")).bars()
    assert (bar.open, bar.high, bar.low, bar.close, bar.n_events, bar.revision) == (
        30.0,
        30.0,
        5.0,
        20.0,
        4,
        3,
    )


async def test_a_late_event_of_an_empty_window_makes_its_bar(store: StoreClient) -> None:
    claim = await store.claim("t", "g", 0, "me")
    done = await store.commit(flush(claim, 1, late=events(tick(1, 10.0))))
    assert (done.amended, [b.revision for b in done.bars.bars()]) == (0, [1])
    assert done.created == 1
    more = await store.commit(flush(claim, 2, late=events(tick(2, 11.0, seq=1))))
    assert (more.amended, [b.revision for b in more.bars.bars()]) == (1, [2])
    assert more.created == 0


async def test_a_bar_closed_and_amended_in_one_flush(store: StoreClient) -> None:
    claim = await store.claim("t", "g", 0, "me")
    closed = partial_bars(events(tick(1, 10.0)), MINUTE)
    done = await store.commit(flush(claim, 1, closed, events(tick(2, 11.0, seq=1))))
    assert [(b.close, b.n_events, b.revision) for b in done.bars.bars()] == [(11.0, 2, 2)]
    assert (done.created, done.amended) == (1, 1)


async def test_events_late_for_a_bar_of_another_writer_are_dead_letters(matrix_store: StoreClient) -> None:
    claim = await matrix_store.claim("t", "g", 1, "me")
    await matrix_store.commit(flush(claim, 1, bars(2)))
    await matrix_store.commit(flush(claim, 2, bars(1, n_events=8), lane="replay/7"))
    late = events(tick(1, 1.0, seq=5), tick(61, 2.0, seq=6), tick(3, 3.0, seq=7))
    done = await matrix_store.commit(flush(claim, 3, late=late))
    assert (done.stale, done.amended) == (2, 1)
    assert [b.ts for b in done.bars.bars()] == [T0 + MINUTE]
    letters = [decode_dead_letter(r.value) for r in done.outbox if r.topic == "mdp.events.dlq"]
    assert {letter.reason for letter in letters} == {
        "late: bar was rewritten by t/g/replay/7; replay the range"
    }
    assert [event_of(letter.value) for letter in letters] == [late.events()[0], late.events()[2]]
    first = values(await matrix_store.bars(interval="1m"))[0]
    assert (first.n_events, first.revision) == (8, 2), "left as the replay made it"


async def test_a_replay_that_changes_nothing_does_not_take_bars_over(store: StoreClient) -> None:
    claim = await store.claim("t", "g", 0, "me")
    await store.commit(flush(claim, 1, bars(1)))
    await store.commit(flush(claim, 2, bars(1), lane="replay/1"))
    done = await store.commit(flush(claim, 3, late=events(tick(1, 1.0))))
    assert (done.amended, done.stale) == (1, 0)


async def test_amending_a_bar_of_unknown_notional_keeps_it_unknown(store: StoreClient) -> None:
    claim = await store.claim("t", "g", 0, "me")
    await store.commit(flush(claim, 1, bars(1, notional=False)))
    done = await store.commit(flush(claim, 2, late=events(tick(1, 1.0))))
    assert [(b.vwap, b.n_events) for b in done.bars.bars()] == [(None, 4)]
    assert BarBatch.concat([done.bars]).bars() == (await store.bars(interval="1m")).bars()


@pytest.mark.parametrize("lane", ["live", "replay/1"])
async def test_a_bar_that_changes_while_it_is_amended_is_looked_at_again(
    store: StoreClient, monkeypatch: pytest.MonkeyPatch, lane: str
) -> None:
    """Between reading a bar and writing it back, another transaction writes it: by the same writer from another
    partition, or by a replay."""
    claim = await store.claim("t", "g", 0, "me")
    other = await store.claim("t", "g", 1, "me")
    await store.commit(flush(claim, 1, bars(1, n_events=3)))
    find = bars_table.find
    meanwhile = [flush(other, 1, bars(1, n_events=7, price=200.0), lane=lane)]

    async def find_and_be_overtaken(*args: Any) -> bars_table.Found:
        found = await find(*args)
        if meanwhile:
            await store.commit(meanwhile.pop())
        return found

    monkeypatch.setattr(bars_table, "find", find_and_be_overtaken)
    done = await store.commit(flush(claim, 2, late=events(tick(1, 1.0, seq=9))))
    (bar,) = (await store.bars(interval="1m")).bars()
    if lane == "live":
        assert (done.amended, done.stale) == (1, 0)
        assert (bar.n_events, bar.low, bar.high, bar.revision) == (8, 1.0, 201.0, 3)
    else:
        assert (done.amended, done.stale) == (0, 1)
        assert (bar.n_events, bar.low, bar.revision) == (7, 199.0, 2)


async def test_a_bar_that_appears_while_its_late_event_is_stored(
    store: StoreClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = await store.claim("t", "g", 0, "me")
    other = await store.claim("t", "g", 1, "me")
    find = bars_table.find
    meanwhile = [flush(other, 1, bars(1, n_events=7))]

    async def find_and_be_overtaken(*args: Any) -> bars_table.Found:
        found = await find(*args)
        if meanwhile:
            await store.commit(meanwhile.pop())
        return found

    monkeypatch.setattr(bars_table, "find", find_and_be_overtaken)
    done = await store.commit(flush(claim, 1, late=events(tick(1, 1.0, seq=9))))
    assert (done.amended, len(done.bars)) == (1, 1)
    assert [b.n_events for b in (await store.bars(interval="1m")).bars()] == [8]
