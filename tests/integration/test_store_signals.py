"""Signals commit with the position, in one transaction: stored, withdrawn, published, or nothing of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from market_data_core.codecs import decode_dead_letter
from market_data_core.errors import Fenced
from market_data_core.events import Signal
from market_data_core.protocols import Claim, Flush, Position, SignalFlush
from market_data_core.signal_codec import decode_signal, parcel_of
from market_data_store import StoreClient
from tests.integration.store_samples import T0, S

TOPIC = "mdp.signals"


def signal(at: int, name: str = "cross", *, value: float = 1.0, symbol: str = "SPY") -> Signal:
    return Signal("sim", symbol, T0 + at * S, name, value, 0.5, {"window": "2s", "price": 100.0 + at})


def revised(signal: Signal, revision: int) -> Signal:
    return replace(signal, meta=signal.meta | {"revision": revision})


def flush(
    claim: Claim, number: int, signals: Sequence[Signal], revised: Sequence[tuple[str, str, int]] = ()
) -> Flush:
    position = Position("", 0, f"{number}-0", "", "")
    return Flush(claim, [], [position], number, signals=SignalFlush(TOPIC, signals, revised))


def published(value: bytes) -> list[tuple[str, Signal]]:
    parcel = parcel_of(value)
    assert parcel is not None
    return [(key, decode_signal(record)) for key, record in parcel]


async def test_signals_positions_and_outbox_commit_together(matrix_store: StoreClient) -> None:
    claim = await matrix_store.claim("mdp.bars", "g", 2, "me")
    decided = [signal(0), signal(2), signal(2, "other", symbol="IBM")]
    done = await matrix_store.commit(flush(claim, 1, decided))
    assert sorted(done.signals, key=lambda s: s.signal_id) == sorted(decided, key=lambda s: s.signal_id)
    assert await matrix_store.signals() == sorted(decided, key=lambda s: (s.symbol, s.ts))
    [row] = done.outbox
    assert (row.topic, row.partition) == (TOPIC, 2)
    assert published(row.value) == [(s.symbol, s) for s in done.signals]
    after = await matrix_store.claim("mdp.bars", "g", 2, "next")
    assert after.positions[""].read_offset == "1-0"
    assert after.outbox == done.outbox


async def test_what_is_stored_already_is_neither_written_nor_published(matrix_store: StoreClient) -> None:
    claim = await matrix_store.claim("mdp.bars", "g", 0, "me")
    await matrix_store.commit(flush(claim, 1, [signal(0), signal(2)]))
    louder = signal(2, value=2.0)
    again = await matrix_store.commit(flush(claim, 2, [signal(0), louder]))
    assert again.signals == [revised(louder, 2)]
    assert (await matrix_store.commit(flush(claim, 3, [signal(0), louder]))).outbox == []


async def test_a_signal_that_no_longer_holds_is_withdrawn_and_may_come_back(
    matrix_store: StoreClient,
) -> None:
    claim = await matrix_store.claim("mdp.bars", "g", 0, "me")
    await matrix_store.commit(flush(claim, 1, [signal(0), signal(0, "stays"), signal(2)]))
    other = await matrix_store.claim("mdp.bars", "another", 0, "me")
    await matrix_store.commit(flush(other, 1, [signal(0, "not mine")]))
    at = ("sim", "SPY", T0)
    done = await matrix_store.commit(flush(claim, 2, [signal(0, "stays")], [at]))
    gone = revised(replace(signal(0), meta=signal(0).meta | {"withdrawn": True}), 2)
    assert (done.signals, done.withdrawn) == ([gone], 1)
    assert [s for _, s in published(done.outbox[0].value)] == [gone]
    stored = {(s.ts - T0, s.name): "withdrawn" in s.meta for s in await matrix_store.signals()}
    assert stored == {
        (0, "cross"): True,
        (0, "not mine"): False,
        (0, "stays"): False,
        (2 * S, "cross"): False,
    }
    assert (await matrix_store.commit(flush(claim, 3, [signal(0, "stays")], [at]))).signals == []
    back = revised(signal(0), 3)
    assert (await matrix_store.commit(flush(claim, 4, [signal(0)], []))).signals == [back]
    assert back in await matrix_store.signals(name="cross")
    # What was read may be written again: its revision is the store's to count.
    assert (await matrix_store.commit(flush(claim, 5, [back], []))).signals == []


async def test_a_flush_given_again_answers_what_it_did(matrix_store: StoreClient) -> None:
    claim = await matrix_store.claim("mdp.bars", "g", 0, "me")
    await matrix_store.commit(flush(claim, 1, [signal(0)]))
    second = flush(claim, 2, [signal(2)], [("sim", "SPY", T0)])
    first_answer = await matrix_store.commit(second)
    assert (len(first_answer.signals), first_answer.withdrawn) == (2, 1)
    again = await matrix_store.commit(second)
    assert (again.signals, again.withdrawn, again.outbox) == (
        first_answer.signals,
        1,
        first_answer.outbox,
    )


async def test_a_zombie_stores_no_signal(matrix_store: StoreClient) -> None:
    zombie = await matrix_store.claim("mdp.bars", "g", 0, "zombie")
    await matrix_store.claim("mdp.bars", "g", 0, "owner")
    with pytest.raises(Fenced):
        await matrix_store.commit(flush(zombie, 1, [signal(0)]))
    assert await matrix_store.signals() == []


async def test_a_signal_that_the_database_refuses_is_put_aside_alone(store: StoreClient) -> None:
    claim = await store.claim("mdp.bars", "g", 0, "me")
    bad = signal(2, "nul\0")
    done = await store.commit(flush(claim, 1, [signal(0), bad, signal(4)]))
    assert sorted(s.ts for s in done.signals) == [T0, T0 + 4 * S]
    assert len(done.rejected) == 1
    letters = [decode_dead_letter(r.value) for r in done.outbox if r.topic == "mdp.events.dlq"]
    assert [decode_signal(letter.value) for letter in letters] == [bad]
    assert "the database refuses the signal" in letters[0].reason
