"""What redis-py raises by mistake is an outage; what is our mistake stays one."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Connection

from market_data_core.errors import BusUnavailable
from market_data_pipeline.streaming.redis_url import parse
from market_data_pipeline.streaming.redis_wire import RedisServer


@pytest.fixture
def server() -> RedisServer:
    return RedisServer(parse("redis://127.0.0.1:1/0"))


async def test_writing_to_a_connection_that_was_closed_meanwhile(server: RedisServer) -> None:
    with pytest.raises(BusUnavailable, match="the connection was closed"), server.translated():
        await Connection()._send_packed_command([b"PING"])


def test_a_mistake_of_our_own_is_not_an_outage(server: RedisServer) -> None:
    nothing: Any = None
    with pytest.raises(AttributeError, match="writelines"), server.translated():
        nothing.writelines([b"PING"])
