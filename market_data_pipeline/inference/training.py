"""Training: stored bars to a model that predicts the sign of the return ahead.

Features are those at ``at``, the end of a bar. The label looks ahead from there: the return from the bar's close to
the close of the last bar that ended by ``at + horizon``. No other number looks ahead.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import structlog

from market_data_core.batch import F64, I64
from market_data_core.config_signals import Features
from market_data_core.errors import ModelError
from market_data_core.events import BarSeries
from market_data_pipeline.features.definitions import Feature, definitions
from market_data_pipeline.features.table import FeatureTable
from market_data_pipeline.inference.model_files import ml
from market_data_pipeline.inference.one_thread import OneThread

log = structlog.get_logger(__name__)

CLOSE: Final = "close of the bar"
"""The column that labels are made of. No feature can be configured under this name, so none takes its place."""
ModelKind = Literal["logistic", "forest"]


@dataclass(frozen=True, slots=True)
class Target:
    """What is predicted: the sign of the return over ``horizon_ns``.

    A return within ``dead_band`` (a fraction, both signs) is the label 0 with ``three`` labels; with two the row is
    left out, and so are its scores.
    """

    horizon_ns: int
    dead_band: float = 0.0
    three: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Rows to learn from, ordered by time. All arrays have the length ``n``.

    ``x`` (n, k): the features ``names``, all finite. ``at``: when they are known, ns UTC. ``forward``: the return
    from then over the horizon, a fraction. ``label``: its sign, -1, 0 or 1.
    """

    names: tuple[str, ...]
    x: F64
    at: I64
    forward: F64
    label: F64

    def __len__(self) -> int:
        return len(self.at)

    def take(self, rows: Any) -> Samples:
        """The given rows, an index array or a mask."""
        return Samples(self.names, self.x[rows], self.at[rows], self.forward[rows], self.label[rows])


def close_feature(interval_ns: int) -> Feature:
    """What gives the column :data:`CLOSE`."""
    (close,) = definitions(Features(windows=()), interval_ns, ["close"])
    return replace(close, name=CLOSE)


def forward_returns(series: I64, at: I64, close: F64, horizon_ns: int) -> F64:
    """The return of each bar (n) from its close to that of the last bar of its series ended by ``at + horizon_ns``.

    NaN where the series does not reach that far, where no bar ended in between, and where a close is not positive.
    Rows may come in any order; a series must not have two bars that end at the same time.
    """
    order = np.lexsort((at, series))
    series, at, close = series[order], at[order], close[order]
    out = np.full(len(order), np.nan)
    edges = np.flatnonzero(np.diff(series)) + 1
    for start, end in zip(np.append(0, edges), np.append(edges, len(order)), strict=True):
        times, prices = at[start:end], close[start:end]
        until = times + horizon_ns
        last = np.searchsorted(times, until, side="right") - 1
        known = (last > np.arange(len(times))) & (until <= times[-1:]) & (prices > 0) & (prices[last] > 0)
        returns = np.full(len(times), np.nan)
        returns[known] = prices[last[known]] / prices[known] - 1.0
        out[order[start:end]] = returns
    return out


def samples(tables: Iterable[FeatureTable], names: Sequence[str], target: Target) -> Samples:
    """Rows of ``tables`` with every feature and a label; a bar must be in one of them only.

    Raises:
        ModelError: there is none.
    """
    places: dict[BarSeries, int] = {}
    codes, times, closes, features = [], [], [], []
    for table in tables:
        lookup = np.array([places.setdefault(one, len(places)) for one in table.series], np.int64)
        codes.append(lookup[table.code] if len(table) else np.empty(0, np.int64))
        times.append(table.at)
        closes.append(table.columns[CLOSE])
        features.append(np.column_stack([table.columns[name] for name in names]))
    if not sum(map(len, times)):
        raise ModelError("there are no bars of these symbols in this range: look at `mdp store bars`")
    code, at = np.concatenate(codes), np.concatenate(times)
    x, forward = np.concatenate(features), np.zeros(len(at))
    forward = forward_returns(code, at, np.concatenate(closes), target.horizon_ns)
    label = np.where(np.abs(forward) <= target.dead_band, 0.0, np.sign(forward))
    usable = np.isfinite(x).all(axis=1) & np.isfinite(forward)
    if not target.three:
        usable &= label != 0
    rows = np.flatnonzero(usable)
    if not len(rows):
        raise ModelError(
            f"none of {len(at)} bars has all of {', '.join(names)} and a return over the horizon: "
            "take a longer range or a shorter horizon"
        )
    rows = rows[np.lexsort((code[rows], at[rows]))]
    return Samples(tuple(names), x[rows], at[rows], forward[rows], label[rows])


def estimator(kind: ModelKind, seed: int) -> Any:
    """A new model: a logistic regression of standardised features, or gradient-boosted trees."""
    if kind == "logistic":
        scaler = ml("sklearn.preprocessing").StandardScaler()
        return ml("sklearn.pipeline").make_pipeline(
            scaler, ml("sklearn.linear_model").LogisticRegression(max_iter=1000)
        )
    # Early stopping would put rows of one time both into training and into its validation.
    return ml("sklearn.ensemble").HistGradientBoostingClassifier(random_state=seed, early_stopping=False)


def fit(kind: ModelKind, rows: Samples, seed: int) -> Any:
    """A model trained on all ``rows``, which knows its features by name.

    Raises:
        ModelError: there is only one label.
    """
    if len(np.unique(rows.label)) < 2:
        raise ModelError(
            f"all {len(rows)} rows to train on have the same label: take a longer range, fewer folds "
            "or a smaller dead band"
        )
    model = estimator(kind, seed)
    with warnings.catch_warnings(record=True) as warned, OneThread()():
        warnings.simplefilter("always")
        model.fit(pd.DataFrame(rows.x, columns=list(rows.names)), rows.label)
    for message in sorted({" ".join(str(warning.message).split()) for warning in warned}):
        log.warning("training", detail=message)
    return model
