"""An adapter that does what a test tells it, and an observer that remembers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from market_data_core.batch import I64
from market_data_pipeline.features.table import FeatureTable
from market_data_pipeline.inference.adapter import Decisions
from market_data_pipeline.inference.observer import Reason, State

Behaviour = Callable[[FeatureTable, I64], Any]


def one_a_row(name: str) -> Callable[[FeatureTable, I64], Decisions]:
    """A signal ``name`` for each wanted row; its value is the row."""

    def decide(table: FeatureTable, wanted: I64) -> Decisions:
        n = len(wanted)
        return Decisions(wanted, [name] * n, wanted.astype(np.float64), np.ones(n), [{"by": name}] * n)

    return decide


class Scripted:
    """Decides as ``behave`` does. ``calls``: how often it was asked."""

    def __init__(
        self,
        name: str = "model",
        *,
        blocking: bool = True,
        features: tuple[str, ...] = ("x",),
        needs_previous: bool = False,
    ) -> None:
        self.name = name
        self.blocking = blocking
        self.features = features
        self.needs_previous = needs_previous
        self.calls = 0
        self.closed = 0
        self.healthy: Behaviour = one_a_row(name)
        self.behave = self.healthy

    def decide(self, table: FeatureTable, wanted: I64) -> Decisions:
        self.calls += 1
        decisions: Decisions = self.behave(table, wanted)
        return decisions

    def close(self) -> None:
        self.closed += 1

    def fail(self, error: BaseException | None = None) -> None:
        """Raise from now on."""
        raised = error or RuntimeError("out of order")

        def behave(table: FeatureTable, wanted: I64) -> Decisions:
            raise raised

        self.behave = behave

    def hang(self) -> threading.Event:
        """Hang from now on, until the event that is returned is set."""
        freed = threading.Event()

        def behave(table: FeatureTable, wanted: I64) -> Decisions:
            freed.wait(60)
            return one_a_row(self.name)(table, wanted)

        self.behave = behave
        return freed

    def recover(self) -> None:
        """Decide from now on."""
        self.behave = self.healthy


class Told:
    """What an engine told: evaluations, failures and states, each in order."""

    def __init__(self) -> None:
        self.evaluations: list[tuple[str, float, int]] = []
        self.failures: list[tuple[str, Reason]] = []
        self.states: list[tuple[str, State]] = []

    def evaluated(self, adapter: str, seconds: float, rows: int) -> None:
        self.evaluations.append((adapter, seconds, rows))

    def failed(self, adapter: str, reason: Reason) -> None:
        self.failures.append((adapter, reason))

    def state(self, adapter: str, state: State) -> None:
        self.states.append((adapter, state))
