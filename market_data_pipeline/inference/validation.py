"""Walk-forward validation: train on the past, score on what came after it, fold by fold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from market_data_core.batch import F64, I64
from market_data_core.codecs import format_time
from market_data_core.errors import ModelError
from market_data_pipeline.inference.model_files import ml
from market_data_pipeline.inference.one_thread import OneThread
from market_data_pipeline.inference.training import ModelKind, Samples, fit


@dataclass(frozen=True, slots=True)
class FoldScore:
    """How a model did on rows that came after those it was trained on.

    ``start``, ``end``: first and last ``at`` of the test, ns. ``balanced``: mean of the recall of each label.
    ``auc``: area under the ROC curve; of three labels the mean over them, each against the others; None where the test
    lacks a label. ``majority``: accuracy of always saying the commonest label of the training. ``side_bps``: mean
    return over the horizon on the side that was predicted, before any cost, in 1/100 percent; None where none was.
    """

    train: int
    test: int
    start: int
    end: int
    accuracy: float
    balanced: float
    auc: float | None
    majority: float
    side_bps: float | None


SCORES: Final = ("accuracy", "balanced", "auc", "majority", "side_bps")


def walk_forward(at: I64, horizon_ns: int, folds: int) -> Iterator[tuple[I64, I64]]:
    """Rows to train on and to test on, for each of ``folds`` spans of time, given ``at`` in order.

    Times are split, not rows, so that what is known at one moment is on one side. Rows whose label looks past the
    start of the test are left out of the training.

    Raises:
        ModelError: there are too few times.
    """
    times, starts = np.unique(at, return_index=True)
    if len(times) <= folds:
        raise ModelError(
            f"{len(times)} times are too few for {folds} folds: take a longer range or fewer folds"
        )
    ends = np.append(starts[1:], len(at))
    splitter: Any = ml("sklearn.model_selection").TimeSeriesSplit(n_splits=folds)
    for _, tested in splitter.split(times):
        test = np.arange(starts[tested[0]], ends[tested[-1]])
        train = np.flatnonzero(at + horizon_ns <= times[tested[0]])
        if not len(train):
            raise ModelError(
                "the first fold has nothing to train on, as every label looks into its test: "
                "take a longer range, fewer folds or a shorter horizon"
            )
        yield train, test


def validate(kind: ModelKind, rows: Samples, horizon_ns: int, folds: int, seed: int) -> list[FoldScore]:
    """The scores of each fold.

    Raises:
        ModelError: there is too little to learn from.
    """
    scores = []
    for train, test in walk_forward(rows.at, horizon_ns, folds):
        model = fit(kind, rows.take(train), seed)
        scores.append(_score(model, rows.take(train), rows.take(test)))
    return scores


def means(scores: Sequence[FoldScore]) -> dict[str, float | None]:
    """The mean of each score over the folds that have it."""
    found = {}
    for name in SCORES:
        values = [value for score in scores if (value := asdict(score)[name]) is not None]
        found[name] = float(np.mean(values)) if values else None
    return found


def row(score: FoldScore) -> dict[str, Any]:
    """A score with its times as RFC 3339."""
    return asdict(score) | {"start": format_time(score.start), "end": format_time(score.end)}


def _score(model: Any, train: Samples, test: Samples) -> FoldScore:
    metrics: Any = ml("sklearn.metrics")
    frame = pd.DataFrame(test.x, columns=list(test.names))
    with OneThread()():
        predicted = np.asarray(model.predict(frame), np.float64)
        chances = np.asarray(model.predict_proba(frame), np.float64)
    labels, counts = np.unique(train.label, return_counts=True)
    sides = predicted != 0
    return FoldScore(
        train=len(train),
        test=len(test),
        start=int(test.at[0]),
        end=int(test.at[-1]),
        accuracy=float(np.mean(predicted == test.label)),
        # This is balanced_accuracy_score, which warns of labels that were predicted and did not occur.
        balanced=float(
            metrics.recall_score(
                test.label, predicted, labels=np.unique(test.label), average="macro", zero_division=0
            )
        ),
        auc=_auc(model.classes_, chances, test.label),
        majority=float(np.mean(test.label == labels[np.argmax(counts)])),
        side_bps=float(np.mean(predicted[sides] * test.forward[sides]) * 1e4) if sides.any() else None,
    )


def _auc(classes: F64, chances: F64, label: F64) -> float | None:
    if not np.array_equal(np.unique(label), classes):
        return None
    metrics: Any = ml("sklearn.metrics")
    if len(classes) == 2:
        return float(metrics.roc_auc_score(label, chances[:, 1]))
    return float(metrics.roc_auc_score(label, chances, multi_class="ovr", labels=classes))
