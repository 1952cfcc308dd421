"""The gauges of the partitions that a micro-batcher owns: open windows, and how far event time has come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from market_data_core.clock import Clock
from market_data_pipeline.telemetry.bounded import Bounded
from market_data_pipeline.windows.tumbling import FOREVER, NEVER

_LIVE: Final = "live/"


@dataclass(frozen=True, slots=True)
class _Partition:
    open_rows: int
    watermarks: Mapping[str, int]


class PartitionState(Collector):
    """Keeps what the last flush said, and works the gauges out when they are asked for: the delay of a watermark grows
    with the clock, not with flushes. Lanes beyond the bound are one, ``other``, as slow as its slowest."""

    def __init__(self, clock: Clock, lanes: Bounded, registry: CollectorRegistry) -> None:
        self._clock = clock
        self._lanes = lanes
        self._partitions: dict[int, _Partition] = {}
        registry.register(self)

    def set(self, partition: int, open_rows: int, watermarks: Mapping[str, int]) -> None:
        """``watermarks``: ns by lane; the mapping is not changed afterwards."""
        self._partitions[partition] = _Partition(open_rows, watermarks)

    def drop(self, partition: int) -> None:
        """Somebody else tells of ``partition`` now."""
        self._partitions.pop(partition, None)

    def _families(self) -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
        return (
            GaugeMetricFamily("microbatch_open_windows", "Open (symbol, window) rows", labels=["partition"]),
            GaugeMetricFamily(
                "microbatch_watermark_seconds",
                "Watermark of a live lane, Unix time",
                labels=["partition", "lane"],
            ),
            GaugeMetricFamily(
                "microbatch_watermark_delay_ms",
                "How far the watermark of a live lane is behind the clock",
                labels=["partition", "lane"],
            ),
        )

    def collect(self) -> Iterator[Metric]:
        windows, watermark, delay = self._families()
        now = self._clock.now()
        for number, partition in sorted(self._partitions.copy().items()):
            windows.add_metric([str(number)], partition.open_rows)
            slowest: dict[str, int] = {}
            for lane, at in partition.watermarks.items():
                if lane.startswith(_LIVE) and at not in (NEVER, FOREVER):
                    name = self._lanes.name(lane)
                    slowest[name] = min(at, slowest.get(name, at))
            for lane, at in slowest.items():
                watermark.add_metric([str(number), lane], at / 1e9)
                delay.add_metric([str(number), lane], (now - at) / 1e6)
        yield from (windows, watermark, delay)

    def describe(self) -> Iterator[Metric]:
        yield from self._families()
