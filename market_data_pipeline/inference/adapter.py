"""The seam for whatever makes signals of features: rules, a model, a server of somebody else's.

A package that brings an adapter declares it, and ``--adapter name`` finds it::

    [project.entry-points."mdp.adapters"]
    name = "package.module:ClassOfAdapter"

The class is called with what ``inference.options.name`` holds, as keywords.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from market_data_core.batch import F64, I64
from market_data_pipeline.features.table import FeatureTable


@dataclass(frozen=True, slots=True, eq=False)
class Decisions:
    """Signals decided on, as columns of the same length ``n``.

    ``row``: the row of the table. ``name``: of the signal. ``value``, ``score``: float64, finite. ``meta``: what else
    a reader should know, as JSON can hold it. ``cooldown_ns``: for how long the same name is to be silent for the same
    symbol afterwards, in ns of event time; 0 for not at all, and None for none of them.
    """

    row: I64
    name: Sequence[str]
    value: F64
    score: F64
    meta: Sequence[dict[str, Any]]
    cooldown_ns: I64 | None = field(default=None)

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def none(cls) -> Decisions:
        """No decision at all."""
        return cls(np.empty(0, np.int64), [], np.empty(0), np.empty(0), [])


class InferenceAdapter(Protocol):
    """Decides on bars, many at once.

    What it decides is a function of the row and, with ``needs_previous``, of the row before: of nothing else, so that
    a restart, a replay or another worker decides the same.
    """

    @property
    def name(self) -> str:
        """As it stands in the metrics and in the ``meta`` of its signals."""
        ...

    @property
    def features(self) -> Sequence[str]:
        """Names of the columns that :meth:`decide` reads."""
        ...

    @property
    def needs_previous(self) -> bool:
        """Whether :meth:`decide` looks at ``previous`` rows."""
        ...

    @property
    def blocking(self) -> bool:
        """Whether :meth:`decide` takes long enough that it must run in the pool, under a timeout and a breaker."""
        ...

    def decide(self, table: FeatureTable, wanted: I64) -> Decisions:
        """What to signal for the ``wanted`` rows of ``table``; the others are there to be looked back at.

        May raise anything; whoever calls counts it as a failure of the adapter.
        """
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...
