"""A client that is stopped in the middle of a transaction must not keep the next owner out."""

from __future__ import annotations

import asyncio

import pytest

from market_data_core.errors import Fenced, StoreUnavailable
from market_data_store import StoreClient, positions
from tests.integration.store_samples import bars, flush


@pytest.fixture(autouse=True)
def _short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions, "IDLE_LIMIT", "300ms")


async def test_a_client_that_stops_after_locking_a_claim_is_ended(database: str) -> None:
    async with await StoreClient.connect(database) as old, await StoreClient.connect(database) as new:
        mine = await old.claim("t", "g", 0, "old")
        with pytest.raises(StoreUnavailable):  # noqa: PT012 - the session's end raises
            async with old.session() as connection:
                await positions.lock_claim(connection, flush(mine, 1, bars(1)))
                # From here on it says nothing, and the server waits no longer than the limit.
                async with asyncio.timeout(20):
                    claim = await new.claim("t", "g", 0, "new")
                await connection.execute("SELECT 1")
        assert claim.epoch == 2
        with pytest.raises(Fenced):
            await old.commit(flush(mine, 1, bars(1)))


async def test_a_client_that_stops_while_it_claims_is_ended(database: str) -> None:
    async with await StoreClient.connect(database) as old, await StoreClient.connect(database) as new:
        with pytest.raises(StoreUnavailable):  # noqa: PT012 - the session's end raises
            async with old.session() as connection:
                await positions.take_claim(connection, "t", "g", 0, "old", "")
                async with asyncio.timeout(20):
                    claim = await new.claim("t", "g", 0, "new")
                await connection.execute("SELECT 1")
        assert claim.epoch == 1  # the claim that was under way is rolled back


async def test_the_limit_is_of_that_transaction_alone(database: str) -> None:
    async with await StoreClient.connect(database, pool_size=1) as store:
        mine = await store.claim("t", "g", 0, "me")
        await store.commit(flush(mine, 1, bars(1)))
        async with store.session() as connection:
            row = await (await connection.execute("SHOW idle_in_transaction_session_timeout")).fetchone()
    assert row == ("0",)
