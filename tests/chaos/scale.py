"""How much of everything a run does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from tests.chaos.servers import PostgresDeath

Moment = Literal["any", "before the lock", "holding the lock"]
BrokerDeath = Literal["any", "coordinator", "leader", "frozen", "rolling", "hasty", "two"]


@dataclass(frozen=True, slots=True)
class SignalsScale:
    """How much of everything in the scenario signals; ``batchers``: how often micro-batchers are killed."""

    kills: int
    stops: int
    changes: int
    batchers: int
    crashes: int


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything."""

    rate: int
    kills: int
    stops: tuple[Moment, ...]
    crashes: tuple[PostgresDeath, ...]
    cut_s: float
    turns: int
    changes: int
    brokers: tuple[BrokerDeath, ...]
    signals: SignalsScale


FULL: Final = Scale(
    rate=25_000,
    kills=100,
    stops=("any",) * 8 + ("before the lock",) * 8 + ("holding the lock",) * 3,
    crashes=("all", "postmaster", "backend", "all", "postmaster", "all"),
    cut_s=10.0,
    turns=8,
    changes=30,
    brokers=("any",) * 3
    + ("coordinator",) * 4
    + ("leader",) * 3
    + ("frozen",) * 3
    + ("rolling",) * 2
    + ("hasty",) * 2
    + ("two",) * 2,
    signals=SignalsScale(kills=50, stops=5, changes=8, batchers=5, crashes=1),
)
SHORT: Final = Scale(
    rate=20_000,
    kills=5,
    stops=("any", "before the lock"),
    crashes=("all",),
    cut_s=2.5,
    turns=3,
    changes=4,
    brokers=("coordinator", "hasty"),
    signals=SignalsScale(kills=4, stops=1, changes=2, batchers=1, crashes=0),
)
