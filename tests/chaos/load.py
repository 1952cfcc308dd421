"""The load: seeded ticks, some out of order, some late, some twice; and the process that produces them.

The harness starts ``python -m tests.chaos.load`` with a :class:`Load` as JSON. It publishes in real time until a
line on its stdin names the event time at which the load ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from market_data_core.batch import EventBatch
from market_data_pipeline import embedded
from market_data_pipeline.logging import configure
from market_data_pipeline.producers.pacing import EventTimePace
from market_data_pipeline.producers.runner import ProducerRunner, RunnerOptions
from market_data_pipeline.producers.spool import Spool
from market_data_pipeline.producers.synthetic import SyntheticProvider, SyntheticSpec
from market_data_pipeline.streaming.drivers import open_bus

_SLICE = 1000
"""Events handed over at once, so that the end of the load is known before they are."""
_SPOOL_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Load:
    """What is produced. The same load is the same events, whenever and wherever it is made."""

    provider: str
    topic: str
    partitions: int
    symbols: int
    rate: int
    seed: int
    start_ts: int
    disorder_ms: int = 250
    late_ratio: float = 0.0005
    late_ms: int = 3000
    duplicate_ratio: float = 0.01
    duplicate_ms: int = 1000

    def spec(self) -> SyntheticSpec:
        return SyntheticSpec(
            symbols=tuple(f"S{i:03}" for i in range(self.symbols)),
            rate=float(self.rate),
            start_ts=self.start_ts,
            seed=self.seed,
            disorder_ms=self.disorder_ms,
            late_ratio=self.late_ratio,
            late_ms=self.late_ms,
            duplicate_ratio=self.duplicate_ratio,
            duplicate_ms=self.duplicate_ms,
            provider=self.provider,
        )

    def arrivals(self, until: Callable[[], int | None]) -> Iterator[EventBatch]:
        """All events that happened before ``until()`` (ns UTC; None: not known yet), in order of arrival."""
        longest = (max(self.disorder_ms, self.late_ms) + self.duplicate_ms) * 1_000_000
        newest = 0
        for batch in SyntheticProvider(self.spec()).batches():
            for start in range(0, len(batch), _SLICE):
                rows = batch.take(slice(start, start + _SLICE))
                end = until()
                if end is not None:
                    if newest >= end:
                        raise RuntimeError("the end of the load came too late: events after it are published")
                    if rows.ingest_ts[0] > end + longest:
                        return
                    rows = rows.take(rows.src_ts < end)
                if len(rows):
                    newest = max(newest, int(rows.src_ts.max()))
                    yield rows


class _Endless:
    """The load as a provider, until a line on stdin names its end."""

    can_wait = True

    def __init__(self, load: Load) -> None:
        self.name = load.provider
        self._load = load
        self._until: int | None = None
        self.rate = 0.0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        line = sys.stdin.readline()
        if not line:
            os._exit(3)  # the harness is gone
        self._until = int(line)

    def batches(self) -> Iterator[EventBatch]:
        began, events = time.monotonic(), 0
        for batch in self._load.arrivals(lambda: self._until):
            yield batch
            # Taken one after another as they are due; past the end of the load only late ones and copies come.
            events += len(batch)
            if self._until is None or batch.ingest_ts[-1] < self._until:
                self.rate = events / (time.monotonic() - began)


async def _produce(load: Load, spool_folder: Path) -> dict[str, object]:
    kind = os.environ.get("MDP_BUS__TYPE", "redis")
    url = os.environ.get("KAFKA_BOOTSTRAP" if kind == "kafka" else "REDIS_URI") or embedded.redis().start()
    spool = Spool.open(spool_folder, load.provider, _SPOOL_BYTES)
    provider = _Endless(load)
    async with open_bus(kind, url) as bus:
        runner = ProducerRunner(
            bus,
            provider,
            load.topic,
            RunnerOptions(partitions=load.partitions),
            pace=EventTimePace(1.0, "ingest_ts"),
            spool=spool,
        )
        counts = await runner.run()
    spool.close()
    return asdict(counts) | {"rate": provider.rate}


if __name__ == "__main__":
    configure("INFO", json=True)
    described = msgspec.json.decode(sys.argv[1], type=Load)
    print(json.dumps(asyncio.run(_produce(described, embedded.home() / "spool"))))
