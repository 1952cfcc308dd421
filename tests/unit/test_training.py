"""Training finds what is there, finds nothing where nothing is, and would be seen if it looked ahead."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from market_data_core.batch import BarBatch
from market_data_core.config_signals import Features
from market_data_core.errors import ModelError
from market_data_pipeline.features.definitions import definitions
from market_data_pipeline.features.table import FeatureTable
from market_data_pipeline.inference.training import Samples, Target, fit, forward_returns, samples
from market_data_pipeline.inference.training_bars import Range, read_tables
from market_data_pipeline.inference.validation import FoldScore, means, validate, walk_forward
from tests.patterned_bars import STEP, T0, Pages, random_bars

NAMES = ("returns", "momentum")
DEFINED = definitions(Features(windows=()), STEP, NAMES)
BARS = 1500


def _tables(bars: BarBatch, start: int = T0, end: int = 2**62) -> list[FeatureTable]:
    asked = Range(("IBM", "SPY"), None, STEP, start, end)
    return asyncio.run(read_tables(Pages(bars), asked, DEFINED))


def _scores(tables: Sequence[FeatureTable], target: Target, kind: Any = "logistic") -> list[FoldScore]:
    return validate(kind, samples(tables, NAMES, target), target.horizon_ns, 5, 0)


def _auc(scores: Sequence[FoldScore]) -> float:
    found = means(scores)["auc"]
    assert found is not None
    return found


# --- what is learned ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["logistic", "forest"])
def test_a_pattern_is_found(kind: str) -> None:
    scores = _scores(_tables(random_bars(BARS, memory=0.5)), Target(STEP), kind)
    for score in scores:
        assert score.auc is not None
        assert score.side_bps is not None
        assert score.auc > 0.6
        assert score.side_bps > 2, "the noise is 10 bps, and half of a return is kept"
    assert np.mean([score.accuracy - score.majority for score in scores]) > 0.05


@pytest.mark.parametrize("flat", [False, True])
def test_nothing_is_found_in_a_random_walk(flat: bool) -> None:
    scores = _scores(_tables(random_bars(BARS, memory=0.0)), Target(STEP, 2e-4, three=flat))
    found = means(scores)
    assert abs(_auc(scores) - 0.5) < 0.03
    assert found["accuracy"] is not None
    assert found["majority"] is not None
    assert found["side_bps"] is not None
    assert abs(found["accuracy"] - found["majority"]) < 0.05
    assert abs(found["side_bps"]) < 1


@pytest.mark.parametrize("by", [1, 3])
def test_looking_ahead_would_be_seen(by: int) -> None:
    """The random walk again, with features of ``by`` bars later."""

    def ahead(table: FeatureTable) -> FeatureTable:
        columns = {name: table.columns[name].copy() for name in table.columns}
        for name in NAMES:
            columns[name][:-by] = columns[name][by:]
        return replace(table, columns=columns)

    honest = _tables(random_bars(BARS, memory=0.0))
    assert _auc(_scores([ahead(table) for table in honest], Target(by * STEP))) > 0.7
    assert _auc(_scores(honest, Target(by * STEP))) < 0.55


def test_a_model_remembers_the_names_of_its_features() -> None:
    rows = samples(_tables(random_bars(200, memory=0.5)), NAMES, Target(STEP))
    assert fit("logistic", rows, 0).feature_names_in_.tolist() == list(NAMES)


def test_a_seed_gives_the_same_model() -> None:
    rows = samples(_tables(random_bars(200, memory=0.5)), NAMES, Target(STEP))
    frame = pd.DataFrame(rows.x, columns=list(NAMES))
    one, two = (fit("forest", rows, 3).predict_proba(frame) for _ in range(2))
    np.testing.assert_array_equal(one, two)


# --- the label ---------------------------------------------------------------------------------------------------

_SERIES = st.lists(
    st.tuples(st.integers(0, 60), st.floats(0.01, 100) | st.sampled_from([0.0, -1.0])),
    max_size=25,
    unique_by=lambda bar: bar[0],
)


@given(st.lists(_SERIES, min_size=1, max_size=3), st.integers(1, 20), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_a_forward_return_ends_at_the_last_bar_within_the_horizon(
    series: list[list[tuple[int, float]]], horizon: int, random: Any
) -> None:
    rows = [(code, at, close) for code, bars in enumerate(series) for at, close in bars]
    random.shuffle(rows)
    frame = pd.DataFrame(rows, columns=["code", "at", "close"]).astype(
        {"code": "int64", "at": "int64", "close": "float64"}
    )
    found = forward_returns(
        frame["code"].to_numpy(), frame["at"].to_numpy(), frame["close"].to_numpy(), horizon
    )
    left = frame.assign(until=frame["at"] + horizon, row=np.arange(len(frame))).sort_values("until")
    right = frame.rename(columns={"at": "then", "close": "later"}).sort_values("then")
    joined = pd.merge_asof(left, right, left_on="until", right_on="then", by="code").sort_values("row")
    complete = joined["until"] <= joined.groupby("code")["at"].transform("max")
    known = complete & (joined["then"] > joined["at"]) & (joined["close"] > 0) & (joined["later"] > 0)
    expected = (joined["later"] / joined["close"] - 1).where(known)
    np.testing.assert_array_equal(found, expected.to_numpy())


def test_labels_by_the_dead_band() -> None:
    bars = random_bars(6, memory=0.0, symbols=("IBM",))
    close = np.array([100.0, 100.05, 100.0, 99.0, 99.0, 100.0])
    tables = _tables(replace(bars, open=close, high=close, low=close, close=close))
    ts = bars.ts + STEP
    for target, rows, labels in (
        (Target(STEP, 1e-3, three=True), [1, 2, 3, 4], [0, -1, 0, 1]),
        (Target(STEP, 1e-3), [2, 4], [-1, 1]),
        (Target(STEP, 0.0), [1, 2, 4], [-1, -1, 1]),
        (Target(STEP, 0.0, three=True), [1, 2, 3, 4], [-1, -1, 0, 1]),
        (Target(2 * STEP, 0.0, three=True), [1, 2, 3], [-1, -1, 1]),
    ):
        found = samples(tables, ("returns",), target)
        assert found.label.tolist() == labels
        assert found.at.tolist() == ts[rows].tolist()
    last = samples(tables, ("returns",), Target(STEP)).forward[-1]
    assert last == pytest.approx(100 / 99 - 1, abs=1e-15)


@given(st.integers(30, 100), st.integers(1, 12))
@settings(max_examples=15, deadline=None)
def test_what_comes_later_changes_nothing(until: int, ahead: int) -> None:
    """The rows of bars up to a time are those of all bars whose horizon ends by then."""
    bars, horizon = random_bars(100, memory=0.3), ahead * STEP
    cut = T0 + until * STEP
    every = samples(_tables(bars), NAMES, Target(horizon))
    early = samples(_tables(bars.take(bars.ts < cut)), NAMES, Target(horizon))
    known = every.take(every.at + horizon <= cut)
    assert len(known) > 0
    for name in ("x", "at", "forward", "label"):
        np.testing.assert_array_equal(getattr(early, name), getattr(known, name))


def test_bars_before_the_range_only_feed_the_features() -> None:
    bars = random_bars(100, memory=0.3)
    start = T0 + 50 * STEP
    rows, every = (samples(_tables(bars, since), NAMES, Target(STEP)) for since in (start, T0))
    assert rows.at.min() == start + STEP, "the first bar has its momentum of ten windows"
    after = every.take(every.at > start)
    np.testing.assert_array_equal(rows.x, after.x)


# --- walking forward ---------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 200), min_size=8, max_size=120), st.integers(1, 30), st.integers(2, 6))
@settings(max_examples=200, deadline=None)
def test_no_label_of_the_training_looks_into_the_test(times: list[int], horizon: int, folds: int) -> None:
    at = np.array(sorted(times), np.int64)
    try:
        splits = list(walk_forward(at, horizon, folds))
    except ModelError:
        return
    assert len(splits) == folds
    tested = np.concatenate([test for _, test in splits])
    assert tested.tolist() == list(range(tested[0], len(at))), "each row is tested once, up to the last"
    for train, test in splits:
        assert at[train].max() + horizon <= at[test].min()
        begin = at[test].min() - horizon
        assert len(train) == np.count_nonzero((at <= begin) & (at < at[test].min()))


def test_scores_are_those_of_scikit_learn() -> None:
    rows = samples(_tables(random_bars(300, memory=0.4)), NAMES, Target(STEP))
    scores = validate("logistic", rows, STEP, 3, 0)
    for score, (train, test) in zip(scores, walk_forward(rows.at, STEP, 3), strict=True):
        model = fit("logistic", rows.take(train), 0)
        frame, label = pd.DataFrame(rows.x[test], columns=list(NAMES)), rows.label[test]
        predicted = model.predict(frame)
        assert score.accuracy == model.score(frame, label)
        assert score.balanced == pytest.approx(balanced_accuracy_score(label, predicted))
        assert score.auc == pytest.approx(roc_auc_score(label, model.predict_proba(frame)[:, 1]))
        commonest = pd.Series(rows.label[train]).mode()[0]
        assert score.majority == np.mean(label == commonest)
        assert score.side_bps == pytest.approx(1e4 * np.mean(predicted * rows.forward[test]))


def test_a_test_that_lacks_a_label_has_no_auc() -> None:
    rows = samples(_tables(random_bars(60, memory=0.4)), NAMES, Target(STEP))
    label = rows.label.copy()
    label[-len(rows) // 3 :] = 1.0
    one_sided = Samples(rows.names, rows.x, rows.at, rows.forward, label)
    assert validate("logistic", one_sided, STEP, 2, 0)[-1].auc is None


# --- too little to learn from ------------------------------------------------------------------------------------


def _refused(tables: Sequence[FeatureTable], target: Target, folds: int = 5) -> str:
    with pytest.raises(ModelError) as caught:
        validate("logistic", samples(tables, NAMES, target), target.horizon_ns, folds, 0)
    return str(caught.value)


def test_too_little_is_told() -> None:
    few, rising = random_bars(12, memory=0.0), random_bars(60, memory=0.0)
    up = np.tile(100.0 + np.arange(60.0), 2)
    rising = replace(rising, open=up, high=up, low=up, close=up)
    assert "there are no bars of these symbols" in _refused([], Target(STEP))
    assert "there are no bars of these symbols" in _refused(_tables(few, T0 + 10**15), Target(STEP))
    assert "none of 24 bars has all of returns, momentum and a return" in _refused(
        _tables(few), Target(100 * STEP)
    )
    fewer = random_bars(6, memory=0.0)
    assert "4 times are too few for 5 folds" in _refused(_tables(fewer), Target(STEP))
    assert "the first fold has nothing to train on" in _refused(
        _tables(random_bars(60, memory=0.0)), Target(20 * STEP)
    )
    assert "have the same label: take a longer range" in _refused(_tables(rising), Target(STEP))
