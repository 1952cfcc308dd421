"""A lease that ends while the server is being asked about it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from market_data_core.clock import ManualClock
from market_data_pipeline.streaming.leases import Leases
from market_data_pipeline.streaming.redis_topics import lease_key
from market_data_pipeline.streaming.redis_wire import RedisServer as Server
from tests.servers.redis import RedisServer, running

LEASE_MS = 60_000


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    yield from running("6.2")


class LosesOnTheWay(Leases):
    """While it asks the server to extend a lease, the server forgets it, and its time runs out here too."""

    async def _extend(self, partition: int) -> None:
        held = self._held[partition]
        ask = held.lock.extend

        async def extend(*args: object, **options: object) -> bool:
            await self._server.client.delete(lease_key("events", "g"))
            self._clock.advance(LEASE_MS * 1_000_000)  # type: ignore[attr-defined]
            self.expire()
            return bool(await ask(*args, **options))  # type: ignore[arg-type]

        held.lock.extend = extend  # type: ignore[method-assign, assignment]
        await super()._extend(partition)


async def test_a_lease_that_ends_here_and_on_the_server_is_lost_once(server: RedisServer) -> None:
    to_server = Server(server.uri)
    leases = LosesOnTheWay(to_server, "events", "g", "me", ["events"], lease_ms=LEASE_MS, clock=ManualClock())
    await leases.start()
    try:
        assert leases.take_changes() == ([0], [], [])
        await leases._extend(0)
        assert leases.take_changes() == ([], [], [0])
        leases.check()
    finally:
        await leases.close()
        await to_server.close()
