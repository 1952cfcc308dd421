"""The embedded servers in a folder of their own, as the product sets them up, brought to rest before each run."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
import redis

from benchmarks.ticks import WINDOW_NS
from market_data_core.batch import BarBatch
from market_data_core.events import format_interval
from market_data_pipeline import embedded
from market_data_pipeline.streaming.bus import Record
from market_data_pipeline.streaming.redis_bus import RedisBus
from market_data_store import StoreClient, schema
from market_data_store.connection import libpq_url

_AOF_BYTES: Final = 400
"""What reading and acknowledging one record may add to the append-only file: it logs each delivery."""
_REWRITE_FROM: Final = 512 << 20
_TABLES: Final = "bars_ohlcv, signals, stream_claims, stream_positions, stream_outbox"


class Servers:
    """A Redis and a PostgreSQL. ``given``: what a measured process must know of them. ``folder``: for more files."""

    def __init__(self, home: Path) -> None:
        self.folder = home
        self.redis_url = embedded.redis(home).start()
        self.database_url = embedded.postgres(home).start()
        schema.upgrade(self.database_url)
        pids = {service.name: service.status().pid for service in embedded.services(home)}
        self.given: dict[str, Any] = {"redis": self.redis_url, "database": self.database_url, "pids": pids}
        self._redis = redis.Redis.from_url(self.redis_url)

    def load(self, topic: str, records: Sequence[Record]) -> None:
        """Publish ``records`` to a new topic of one partition."""

        async def publish() -> None:
            async with RedisBus(self.redis_url) as bus:
                await bus.ensure_topic(topic, 1)
                await bus.publish(topic, records, partition=0)

        asyncio.run(publish())

    def drop(self, topic: str, partitions: int = 1) -> None:
        """Delete the records of ``topic``: a server that holds them would write them all when it rewrites its file."""
        names = [topic] if partitions == 1 else [f"{topic}.{partition}" for partition in range(partitions)]
        self._redis.delete(*names)

    def rest(self, records: int = 0) -> None:
        """Empty the tables, and see that neither server has housekeeping to do while ``records`` are read."""
        with psycopg.connect(libpq_url(self.database_url), autocommit=True) as connection:
            connection.execute(f"TRUNCATE {_TABLES}")
            connection.execute("CHECKPOINT")
        self.settle(records)

    def settle(self, records: int) -> None:
        """See that Redis rewrites no file while ``records`` are read."""
        about = self._settled()
        base, size = about["aof_base_size"], about["aof_current_size"]
        if size + records * _AOF_BYTES > max(2 * base, _REWRITE_FROM):
            self._redis.bgrewriteaof()
            self._settled()

    def _settled(self) -> dict[str, Any]:
        """Wait until Redis rewrites no file; what it says of its files."""
        while True:
            about: dict[str, Any] = self._redis.info("persistence")
            if not (about["aof_rewrite_in_progress"] or about["aof_rewrite_scheduled"]):
                return about
            time.sleep(0.05)

    def bars(self) -> BarBatch:
        """All bars stored."""

        async def read() -> BarBatch:
            async with await StoreClient.connect(self.database_url) as store:
                return await store.bars(interval=format_interval(WINDOW_NS))

        return asyncio.run(read())

    def versions(self) -> dict[str, str]:
        with psycopg.connect(libpq_url(self.database_url)) as connection:
            row = connection.execute("SHOW server_version").fetchone()
        return {"redis": self._redis.info("server")["redis_version"], "postgres": str(row and row[0])}

    def close(self) -> None:
        self._redis.close()


@contextmanager
def started() -> Iterator[Servers]:
    """Servers in a temporary home, gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix="mdp-bench-"))
    before = os.environ.get("MDP_HOME")
    os.environ["MDP_HOME"] = str(home)
    try:
        servers = Servers(home)
        try:
            yield servers
        finally:
            servers.close()
    finally:
        for service in embedded.services(home):
            service.stop()
        shutil.rmtree(home, ignore_errors=True)
        if before is None:
            del os.environ["MDP_HOME"]
        else:
            os.environ["MDP_HOME"] = before
