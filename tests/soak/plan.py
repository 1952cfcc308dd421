"""What a soak does: how much for how long, and what goes wrong in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

WINDOW_S: Final = 2
WINDOW_NS: Final = WINDOW_S * 10**9
ALLOW_LATE_NS: Final = 500_000_000
SLA_WINDOWS: Final = 1.5
"""The promise: the 95th percentile of a delay is at most so many windows."""
GOAL_P99_MS: Final = 50.0
PER_MINUTE: Final = 50_000
TOPICS: Final = ("mdp.events", "mdp.bars", "mdp.signals")
GROUPS: Final = {"mdp.events": "mdp-consumers", "mdp.bars": "mdp-inference"}
REPLAYED: Final = "soak_range"
"""The dataset that the replay reads."""
RULES: Final = Path(__file__).parents[2] / "configs" / "rules.yaml"
_MINUTES: Final = 10.0
BLOWS: Final = (
    "SIGTERM micro-batch",
    "SIGTERM infer",
    "kill -9 micro-batch",
    "kill -9 infer",
    "PostgreSQL away",
    "replay",
)
_CONFIG: Final = """\
version: 1
bus:
  redis:
    partitions: {partitions}
    lease_ms: {lease_ms}
    retention: 60s
producers:
  synthetic:
    price_volatility: {volatility}
    disorder_ms: {disorder_ms}
    duplicate_ratio: {duplicates}
micro_batch:
  window_ms: {window_ms}
  allow_late_ms: {allow_late_ms}
  dedupe_horizon_ms: {horizon_ms}
inference:
  adapters:
    rules:
      file: {rules}
telemetry:
  metrics_port: 0
datasets:
  {replayed}:
    path: {folder}/replayed.csv
    provider: calm
    time_unit: ns
    columns: {{symbol: symbol, time: time, price: price, volume: volume, seq: seq}}
"""


@dataclass(frozen=True, slots=True)
class Phase:
    """One load. ``name`` is also the provider of its events. ``rate``: events a second. ``seconds``: None for as long
    as what goes wrong in it takes. ``judged``: whether its delays belong to the promise."""

    name: str
    title: str
    rate: float
    seconds: float | None
    judged: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """``minutes``: of the calm phase; a stress takes a fifth of it. ``blows``: what goes wrong, ``rounds`` times.
    ``speed``: whether delays, backlog and memory decide, or only what is right. The defaults are those of mdp, but for
    the retention, so that the memory of Redis has an end, and for prices restless enough to make signals."""

    seed: int
    minutes: float = _MINUTES
    per_minute: int = PER_MINUTE
    symbols: int = 100
    partitions: int = 1
    blows: tuple[str, ...] = BLOWS
    rounds: int = 2
    outage_s: float = 6.0
    pause_s: tuple[float, float] = (4.0, 10.0)
    replayed_s: float = 60.0
    lease_ms: int = 10_000
    speed: bool = True
    stress: tuple[int, ...] = (10, 60)
    stress_least_s: float = 8.0
    volatility: float = 0.04
    disorder_ms: int = 250
    duplicates: float = 0.001
    late: float = 0.0001

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"S{i:03}" for i in range(self.symbols))

    @property
    def phases(self) -> tuple[Phase, ...]:
        """In order; things go wrong in the middle."""
        rate = self.per_minute / 60
        calm_s = self.minutes * 60
        stress_s = max(self.stress_least_s, calm_s / 5)
        return (
            Phase("calm", f"{self.per_minute:,} events/min", rate, calm_s),
            Phase("trouble", f"trouble at {self.per_minute:,} events/min", rate, None, judged=False),
            *(
                Phase(f"stress{times}", f"{times * self.per_minute:,} events/min", rate * times, stress_s)
                for times in self.stress
            ),
        )

    @property
    def horizon_ms(self) -> int:
        """How long ids are remembered: mdp's default in a full run; less in a shorter one, so that memory is as full as
        it gets while there is time left to see that it stays so."""
        return int(min(120_000, max(30_000, self.minutes * 12_000)))

    @property
    def settle_s(self) -> float:
        """How long the processes may fill their buffers before their memory must not grow any more: ids are forgotten
        in two generations, each as long as the horizon."""
        return 2.25 * self.horizon_ms / 1000

    def config(self, folder: Path) -> str:
        """The configuration file of all processes, with files in ``folder``."""
        return _CONFIG.format(
            partitions=self.partitions,
            lease_ms=self.lease_ms,
            volatility=self.volatility,
            disorder_ms=self.disorder_ms,
            duplicates=self.duplicates,
            window_ms=WINDOW_S * 1000,
            allow_late_ms=ALLOW_LATE_NS // 1_000_000,
            horizon_ms=self.horizon_ms,
            rules=RULES,
            replayed=REPLAYED,
            folder=folder,
        )


SHORT: Final = Plan(
    0,
    minutes=1 / 3,
    rounds=1,
    outage_s=2.0,
    pause_s=(0.5, 1.5),
    replayed_s=8.0,
    lease_ms=3000,
    speed=False,
)
"""About a minute in all."""
