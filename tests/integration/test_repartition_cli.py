"""``mdp stream repartition`` and ``mdp stream status`` as an operator runs them, on servers of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.backfills import Command
from tests.servers.redis import RedisServer
from tests.servers.redis import running as redis_running


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    yield from redis_running("6.2")


@pytest.fixture
def mdp(
    redis: RedisServer, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Command]:
    with redis.client() as client:
        client.flushall()
    monkeypatch.setenv("REDIS_URI", redis.uri)
    monkeypatch.setenv("MDP_TELEMETRY__METRICS_PORT", "0")
    monkeypatch.setenv("MDP_BUS__REDIS__PARTITIONS", "2")
    yield Command(tmp_path, database)
