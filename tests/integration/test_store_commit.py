"""Claims, fencing, positions, the outbox, and rows that the database refuses."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace

import numpy as np
import pytest

from market_data_core.batch import BarBatch, EventBatch
from market_data_core.codecs import decode_bars, decode_dead_letter, event_of
from market_data_core.errors import Fenced, StoreError
from market_data_core.events import BarSeries
from market_data_core.protocols import BarSink, Claim, Committed, Flush, LaneFlush, Position
from market_data_store import StoreClient
from market_data_store.repartitions import GroupPosition
from tests.integration.store_samples import T0, S, bars, events, exact, flush, tick, values


def position(lane: str, n: int) -> Position:
    return Position(lane, n * S, f"{n}-1", f"{n}-2", f"{n}-3")


async def test_each_claim_raises_the_epoch_of_its_partition_only(store: StoreClient) -> None:
    sink: BarSink = store
    epochs = [(await sink.claim("t", "g", p, f"w{p}")).epoch for p in (0, 0, 1, 0)]
    assert epochs == [1, 2, 1, 3]
    other = await store.claim("t", "another group", 0, "w")
    assert (other.epoch, other.positions, other.outbox) == (1, {}, [])


async def test_a_new_owner_finds_positions_and_outbox(matrix_store: StoreClient) -> None:
    old = await matrix_store.claim("t", "g", 3, "old")
    done = await matrix_store.commit(
        flush(old, 1, bars(2), positions=[position("live", 1), position("replay", 5)])
    )
    new = await matrix_store.claim("t", "g", 3, "new")
    assert new.epoch == 2
    assert new.positions == {"live": position("live", 1), "replay": position("replay", 5)}
    assert new.outbox == done.outbox
    assert [(r.topic, r.partition, r.lane) for r in new.outbox] == [("mdp.bars", 3, None)]
    assert exact(decode_bars(new.outbox[0].value)) == exact(bars(2))


async def test_positions_change_lane_by_lane_and_are_forgotten(matrix_store: StoreClient) -> None:
    claim = await matrix_store.claim("t", "g", 0, "me")
    first = [position("", 0), position("a", 1), position("b", 1)]
    await matrix_store.commit(flush(claim, 1, positions=first))
    await matrix_store.commit(flush(claim, 2, positions=[position("b", 2)], forget=["a", "never seen"]))
    again = await matrix_store.claim("t", "g", 0, "me")
    assert again.positions == {"": position("", 0), "b": position("b", 2)}


async def test_published_rows_leave_the_outbox_with_the_next_flush(store: StoreClient) -> None:
    claim = await store.claim("t", "g", 0, "me")
    one = await store.commit(flush(claim, 1, bars(1)))
    two = await store.commit(flush(claim, 2, bars(2)))
    assert [r.id for r in (await store.claim("t", "g", 0, "x")).outbox] == [
        one.outbox[0].id,
        two.outbox[0].id,
    ]
    claim = await store.claim("t", "g", 0, "me")
    neighbour = await store.claim("t", "g", 1, "me")
    kept = await store.commit(flush(neighbour, 1, bars(1, symbols=["IBM"])))
    await store.commit(flush(claim, 1, published=[one.outbox[0].id, kept.outbox[0].id]))
    assert [r.id for r in (await store.claim("t", "g", 0, "me")).outbox] == [two.outbox[0].id]
    assert len((await store.claim("t", "g", 1, "me")).outbox) == 1, "another partition's row stays"


async def test_a_zombie_writes_nothing(matrix_store: StoreClient) -> None:
    zombie = await matrix_store.claim("t", "g", 0, "zombie")
    await matrix_store.commit(flush(zombie, 1, bars(1), positions=[position("live", 1)]))
    await matrix_store.claim("t", "g", 0, "owner")
    late = events(tick(1.0, 999.0))
    doomed = flush(zombie, 2, bars(5, n_events=99), late, positions=[position("live", 9)], published=[1])
    with pytest.raises(Fenced, match="epoch 2 of owner: epoch 1 may write nothing more"):
        await matrix_store.commit(doomed)
    with pytest.raises(Fenced):
        await matrix_store.commit(flush(zombie, 1, bars(1)))
    now = await matrix_store.claim("t", "g", 0, "owner")
    assert exact(await matrix_store.bars(interval="1m")) == exact(bars(1))
    assert now.positions == {"live": position("live", 1)}
    assert len(now.outbox) == 1


async def test_a_claim_waits_for_a_flush_that_is_under_way(store: StoreClient) -> None:
    """What the owner before commits while it is being replaced is in the new claim, or is fenced: never neither."""
    for turn in range(20):
        old = await store.claim("t", f"g{turn}", 0, "old")
        one = flush(old, 1, bars(1, symbols=[f"S{turn}"]))
        done, new = await asyncio.gather(
            store.commit(one), store.claim("t", f"g{turn}", 0, "new"), return_exceptions=True
        )
        stored = len(await store.bars([f"S{turn}"], interval="1m"))
        assert isinstance(new, Claim)
        if isinstance(done, Committed):
            assert (stored, new.outbox) == (1, done.outbox)
        else:
            assert isinstance(done, Fenced)
            assert (stored, new.outbox) == (0, [])


async def test_a_flush_given_again_answers_what_it_did(matrix_store: StoreClient) -> None:
    claim = await matrix_store.claim("t", "g", 0, "me")
    await matrix_store.commit(flush(claim, 1, bars(3, n_events=5)))
    other = await matrix_store.claim("t", "other", 0, "me")
    await matrix_store.commit(flush(other, 1, bars(1, start=T0 + 600 * S)))
    late = events(tick(1.0, 500.0, seq=7), tick(601.0, 1.0, seq=8, symbol="SPY"))
    closed = BarBatch.concat([bars(2, n_events=5), bars(1, n_events=1, start=T0 + 120 * S)])
    broken = BarBatch.concat([closed, replace(bars(1, start=T0 + 300 * S), high=np.array([-1.0]))])
    flushed = flush(claim, 2, broken, late, positions=[position("live", 2)])
    first = await matrix_store.commit(flushed)
    assert (first.amended, first.unchanged, first.refused, first.stale, len(first.rejected)) == (
        1,
        2,
        1,
        1,
        1,
    )
    before = exact(await matrix_store.bars(interval="1m"))
    second = await matrix_store.commit(flushed)
    assert second.bars.bars() == first.bars.bars()
    assert (second.outbox, second.rejected) == (first.outbox, first.rejected)
    assert (second.amended, second.unchanged, second.refused, second.stale) == (1, 2, 1, 1)
    assert exact(await matrix_store.bars(interval="1m")) == before, "amended once"


async def test_flushes_come_in_order(store: StoreClient) -> None:
    claim = await store.claim("t", "g", 0, "me")
    await store.commit(flush(claim, 5, bars(1)))
    with pytest.raises(StoreError, match="flush 4 comes after 5"):
        await store.commit(flush(claim, 4, bars(1)))
    fresh = await store.claim("t", "g", 0, "me")
    assert len((await store.commit(flush(fresh, 1, bars(2)))).bars) == 1, "a new claim counts anew"


async def test_flushes_without_a_number_are_all_applied(store: StoreClient) -> None:
    claim = await store.claim("t", "g", 0, "me")
    await store.commit(flush(claim, 0, bars(1)))
    late = flush(claim, 0, late=events(tick(1.0, 500.0)))
    assert [(await store.commit(late)).amended for _ in range(2)] == [1, 1]


async def test_lanes_are_applied_in_their_order(store: StoreClient) -> None:
    claim = await store.claim("t", "g", 0, "me")
    none = EventBatch.empty()
    lanes = [
        LaneFlush("a", bars(1, n_events=2), none, 60 * S),
        LaneFlush("b", bars(1, n_events=3, price=50.0), events(tick(1.0, 50.0, seq=9)), 60 * S),
    ]
    done = await store.commit(Flush(claim, lanes, [], number=1))
    assert [(b.n_events, b.open, b.revision) for b in done.bars.bars()] == [(4, 50.0, 3)]
    assert len(decode_bars(done.outbox[0].value)) == 1, "only the last state of a bar is published"


async def test_bad_rows_are_set_aside_and_the_others_stored(matrix_store: StoreClient) -> None:
    claim = await matrix_store.claim("t", "g", 2, "me")
    good = bars(40, symbols=["A", "B"])
    upside_down = replace(bars(1, symbols=["C"]), high=np.array([1.0]))
    negative = replace(bars(1, symbols=["D"]), volume=np.array([-1.0]))
    unnamed = replace(bars(1), series=(BarSeries("sim", "N\0L", "1m"),))
    between = replace(bars(1, symbols=["E"]), ts=np.array([T0 + 1]))
    mixed = BarBatch.concat(
        [good.take(slice(0, 30)), upside_down, negative, unnamed, between, good.take(slice(30, 80))]
    )
    done = await matrix_store.commit(flush(claim, 1, mixed, positions=[position("live", 1)]))

    assert exact(done.bars) == exact(good)
    assert exact(await matrix_store.bars(interval="1m")) == exact(good)
    reasons = {row.split()[0]: reason for reason, row in done.rejected}
    assert set(reasons) == {"sim/C", "sim/D", "sim/N\ufffdL", "sim/E"}
    assert "ck_bars_ohlcv_inside" in reasons["sim/C"]
    assert "ck_bars_ohlcv_volume" in reasons["sim/D"]
    assert "microseconds" in reasons["sim/E"]
    letters = [decode_dead_letter(r.value) for r in done.outbox if r.topic == "mdp.events.dlq"]
    assert {letter.key for letter in letters} == {"C", "D", "N\ufffdL", "E"}
    c = next(letter for letter in letters if letter.key == "C")
    assert (c.topic, c.partition, c.lane) == ("t", 2, "live")
    assert "refuses the bar" in c.reason
    assert decode_bars(c.value).bars() == upside_down.bars()
    again = await matrix_store.claim("t", "g", 2, "me")
    assert again.positions == {"live": position("live", 1)}
    assert again.outbox == done.outbox


async def test_late_events_of_a_refused_bar_are_set_aside(store: StoreClient) -> None:
    claim = await store.claim("t", "g", 0, "me")
    await store.commit(flush(claim, 1, bars(2, symbols=["A", "B"])))
    async with store.session() as connection:
        await connection.execute("ALTER TABLE bars_ohlcv ADD CONSTRAINT cheap CHECK (high < 1000)")
    late = events(
        tick(1.0, 5000.0, symbol="A"), tick(2.0, 1.0, symbol="A", seq=1), tick(1.0, 7.0, symbol="B", seq=2)
    )
    done = await store.commit(flush(claim, 2, late=late))
    assert [(b.symbol, b.low, b.n_events) for b in done.bars.bars()] == [("B", 7.0, 4)]
    assert len(done.rejected) == 1
    letters = [decode_dead_letter(r.value) for r in done.outbox[1:]]
    assert [event_of(letter.value).c for letter in letters] == [5000.0, 1.0]
    assert all("cheap" in letter.reason for letter in letters)


async def test_partitions_that_write_the_same_bars_do_not_lock_each_other_out(store: StoreClient) -> None:
    """Twelve rounds of two writers of 600 bars in opposite orders, with late events: no deadlock reaches them."""
    symbols = [f"S{i:03}" for i in range(60)]
    claims = [await store.claim("t", "g", p, "me") for p in (0, 1)]

    async def write(p: int) -> None:
        for number in range(1, 13):
            closed = bars(10, symbols=symbols if p else symbols[::-1], n_events=2 * number + p)
            late = events(*(tick(i, 50.0, seq=number, symbol=s) for i, s in enumerate(symbols[:: 1 - 2 * p])))
            await store.commit(flush(claims[p], number, closed, late, lane=f"lane {p}"))

    await asyncio.gather(write(0), write(1))
    stored = values(await store.bars(interval="1m"))
    assert len(stored) == 600
    assert min(b.n_events for b in stored) >= 25


async def test_a_commit_leaves_nothing_to_the_garbage_collector(store: StoreClient) -> None:
    """A consumer lets it come rarely, so what waits for it is memory that grows."""
    claim = await store.claim("t", "g", 0, "me")
    await store.commit(flush(claim, 1, bars(1)))
    gc.collect()
    gc.disable()
    try:
        for number in range(2, 42):
            await store.commit(flush(claim, number, bars(number)))
        left = gc.collect()
    finally:
        gc.enable()
    assert left < 40


async def test_a_claim_tells_of_which_topic_its_positions_are(matrix_store: StoreClient) -> None:
    async def topic_id(of: str) -> str:
        return (await matrix_store.claim("t", "g", 0, "me", topic_id=of)).topic_id

    assert await topic_id("first") == "first"
    assert await topic_id("second") == "second", "nothing of the first was read"
    claim = await matrix_store.claim("t", "g", 0, "me", topic_id="second")
    await matrix_store.commit(flush(claim, 1, positions=[position("", 7)]))
    assert await topic_id("third") == "second"
    assert await topic_id("") == "second", "a bus that has none"
    assert [c.topic_id for c in await matrix_store.claims("t")] == ["second"]
    await matrix_store.begin_repartition({"t": "mark"})
    moved = [GroupPosition("g", 0, position("", 1))]
    await matrix_store.finish_repartition({"t": "mark"}, {"t": moved}, {"t": "third"})
    assert await topic_id("third") == "third"
