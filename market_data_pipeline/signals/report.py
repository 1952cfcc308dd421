"""The report on signals: figures for each name, each name and symbol, and all together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from market_data_core.batch import F64, I64
from market_data_pipeline.signals.estimate import Estimate, estimate
from market_data_pipeline.signals.outcomes import Outcomes

BPS: Final = 1e4


@dataclass(frozen=True, slots=True)
class Figures:
    """How the signals of one group did. Returns are in basis points (1e-4) of the price at the signal.

    ``group`` is ``overall``, ``name`` or ``symbol`` (a name at a symbol). ``count = scored + open + withdrawn``;
    ``unpriced`` is how many of the open had no price to start from, ``undirected`` how many of the scored have the
    value 0. What is signed (the price's return for a value above 0, its negative below) is over the directed;
    ``mean_abs_bps`` is over the undirected; ``mean_score`` over all scored. None stands for what nothing is there for.
    """

    group: str
    name: str | None
    symbol: str | None
    count: int
    scored: int
    open: int
    withdrawn: int
    unpriced: int
    undirected: int
    hit_rate: float | None
    mean_bps: float | None
    low_bps: float | None
    high_bps: float | None
    t: float | None
    blocks: int
    median_bps: float | None
    worst_bps: float | None
    best_bps: float | None
    mean_abs_bps: float | None
    mean_score: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """The mean signed return of a name's scored signals after each of ``steps`` (ns), in bps, with its interval.

    The first step is 0, where nothing has happened yet, and the last the horizon.
    """

    name: str
    n: int
    steps: I64
    mean: F64
    low: F64
    high: F64


def figures(outcomes: Outcomes, horizon: int) -> list[Figures]:
    """All groups: the whole, then each name, then each name and symbol, in their order.

    ``horizon``: ns, as the outcomes were followed.
    """
    everything = np.arange(len(outcomes))
    found = [_figures(outcomes, everything, horizon, "overall", None, None)]
    for code, rows in _groups(outcomes.name, outcomes.names):
        found.append(_figures(outcomes, rows, horizon, "name", outcomes.names[code], None))
    for code, rows in _groups(outcomes.name, outcomes.names):
        for of_symbol, chosen in _groups(outcomes.symbol[rows], outcomes.symbols):
            name, symbol = outcomes.names[code], outcomes.symbols[of_symbol]
            found.append(_figures(outcomes, rows[chosen], horizon, "symbol", name, symbol))
    return found


def curves(outcomes: Outcomes, horizon: int) -> list[Curve]:
    """For each name with directed, scored signals, in order: the event study curve, from 0 at the signal on."""
    found = []
    counts = outcomes.scored & (outcomes.direction != 0)
    for code, rows in _groups(outcomes.name, outcomes.names):
        chosen = rows[counts[rows]]
        if len(chosen):
            sign, ts = outcomes.direction[chosen] * BPS, outcomes.ts[chosen]
            points = [
                estimate(outcomes.path[chosen, step] * sign, ts, horizon)
                for step in range(len(outcomes.steps))
            ]
            mean, low, high = (
                np.array([0.0, *(getattr(p, key) for p in points)]) for key in ("mean", "low", "high")
            )
            found.append(
                Curve(outcomes.names[code], len(chosen), np.append(0, outcomes.steps), mean, low, high)
            )
    return found


def _figures(
    outcomes: Outcomes, rows: I64, horizon: int, group: str, name: str | None, symbol: str | None
) -> Figures:
    withdrawn = outcomes.withdrawn[rows]
    scored = outcomes.scored[rows]
    direction = outcomes.direction[rows]
    directed = scored & (direction != 0)
    undirected = scored & (direction == 0)
    forward = outcomes.forward[rows] * BPS
    signed = forward[directed] * direction[directed]
    of_mean = estimate(signed, outcomes.ts[rows][directed], horizon)
    return Figures(
        group,
        name,
        symbol,
        count=len(rows),
        scored=int(scored.sum()),
        open=int((~scored & ~withdrawn).sum()),
        withdrawn=int(withdrawn.sum()),
        unpriced=int((outcomes.unpriced[rows] & ~withdrawn).sum()),
        undirected=int(undirected.sum()),
        hit_rate=_mean((signed > 0).astype(np.float64)),
        **_interval(of_mean),
        blocks=of_mean.blocks,
        median_bps=float(np.median(signed)) if len(signed) else None,
        worst_bps=float(signed.min()) if len(signed) else None,
        best_bps=float(signed.max()) if len(signed) else None,
        mean_abs_bps=_mean(np.abs(forward[undirected])),
        mean_score=_mean(outcomes.score[rows][scored]),
    )


def _interval(found: Estimate) -> dict[str, float | None]:
    values = {"mean_bps": found.mean, "low_bps": found.low, "high_bps": found.high, "t": found.t}
    return {key: None if math.isnan(value) else value for key, value in values.items()}


def _mean(values: F64) -> float | None:
    return float(values.mean()) if len(values) else None


def _groups(code: NDArray[np.int32], table: tuple[str, ...]) -> Iterator[tuple[int, I64]]:
    """(code, its rows in order) of each code that occurs, ordered by what it stands for."""
    order = np.argsort(code, kind="stable")
    present, starts = np.unique(code[order], return_index=True)
    pieces = dict(zip(present.tolist(), np.split(order, starts[1:]), strict=False))
    for one in sorted(pieces, key=lambda c: table[c]):
        yield one, pieces[one]
