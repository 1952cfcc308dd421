"""What docs/migration.md tells people to type, typed: there and back, with events before, between and after."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from market_data_core.events import StreamEvent
from market_data_pipeline.streaming.drivers import open_bus
from market_data_store import StoreClient
from tests.docs.pages import ROOT, blocks
from tests.integration.pipeline import publish
from tests.integration.walk import assert_recounted, walk
from tests.servers.kafka import KafkaServer
from tests.servers.kafka import running as kafka_running
from tests.servers.redis import RedisServer
from tests.servers.redis import running as redis_running

EVENTS: Final = walk(600)
TO_KAFKA, TO_REDIS = 205, 411


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    yield from redis_running("6.2")


@pytest.fixture(scope="module")
def kafka() -> Iterator[KafkaServer]:
    yield from kafka_running()


async def send(bus: str, address: str, events: Sequence[StreamEvent]) -> None:
    async with open_bus(bus, address) as opened:
        await opened.ensure_topic("mdp.events", 2)
        await publish(opened, list(events), "mdp.events")


async def test_there_and_back(
    redis: RedisServer, kafka: KafkaServer, database: str, store: StoreClient, tmp_path: Path
) -> None:
    keep = {
        k: v for k, v in os.environ.items() if not k.startswith(("MDP_", "REDIS_", "DATABASE_", "KAFKA_"))
    }
    environ = keep | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MDP_HOME": str(tmp_path),
        "REDIS_URI": redis.uri,
        "KAFKA_BOOTSTRAP": kafka.bootstrap,
        "DATABASE_URL": database,
        "MDP_TELEMETRY__METRICS_PORT": "0",
    }

    def typed(*commands: str) -> None:
        done = subprocess.run(
            ["bash", "-euc", "\n".join(commands)],
            check=False,
            env=environ,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr

    drain, there, after, back = (
        b.text for b in blocks(ROOT / "docs" / "migration.md") if b.language == "text"
    )
    await send("redis", redis.uri, EVENTS[:TO_KAFKA])
    typed(drain, there, after)
    # Whoever was not sure sends its last events again.
    await send("kafka", kafka.bootstrap, EVENTS[TO_KAFKA - 50 : TO_REDIS])
    typed("export MDP_BUS__TYPE=kafka", back)
    await send("redis", redis.uri, [*EVENTS[:50], *EVENTS[TO_REDIS - 50 :]])
    typed(drain)
    assert await assert_recounted(store, EVENTS) > 50
