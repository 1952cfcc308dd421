"""SklearnAdapter: signals by a scikit-learn model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import pandas as pd
import structlog

from market_data_core.batch import F64, I64
from market_data_core.config import Settings
from market_data_core.errors import ConfigError, ModelError
from market_data_core.events import format_interval, parse_interval
from market_data_pipeline.features.definitions import Feature, definitions
from market_data_pipeline.features.table import FeatureTable
from market_data_pipeline.inference.adapter import Decisions
from market_data_pipeline.inference.model_card import ModelCard, differences, read_card
from market_data_pipeline.inference.model_files import KEY, LoadedModel, load_model, ml
from market_data_pipeline.inference.one_thread import OneThread

log = structlog.get_logger(__name__)

DIGITS: Final = 9
"""Significant digits of values and decimals of scores. A linear model adds up in another order for another number of
rows, and its last digits change with that; a signal must not."""
PRICES: Final = ("price", "close")
"""The first of these features that the table has goes into ``meta`` as the price."""


class SklearnAdapter:
    """Decides by an estimator that was fitted with names of features.

    A row that lacks one of them is not decided. A classifier's value is its class, its score the probability of that
    class, or 1 if it tells none. A regression's value is its prediction, and its score 1: it tells no certainty.
    Signals of a score below ``min_score`` and of ``ignore_values`` are left out.

    Raises:
        ModelError: the model is none that can decide on features.
        MissingExtra: scikit-learn is not installed.
    """

    name = "sklearn"
    needs_previous = False
    blocking = True

    def __init__(
        self,
        model: LoadedModel,
        *,
        signal: str = "model",
        min_score: float = 0.0,
        ignore_values: Collection[float] = (0.0,),
        card: ModelCard | None = None,
    ) -> None:
        self._model: Any = model.estimator
        self._names, self._classes = _requirements(model)
        self._signal = signal
        self._min_score = min_score
        self._ignored = np.array(sorted(ignore_values), np.float64)
        self._told: dict[str, Any] = {
            "adapter": self.name,
            "model": card.name if card else model.path.stem,
            "version": card.version if card else "",
            "sha256": model.sha256,
        }
        self._one_thread = OneThread()
        self._warm_up(model.path)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The adapter of ``inference.adapters.sklearn``. What the model's card says must be what is configured.

        Raises:
            ConfigError: there is none. ModelError: it cannot be loaded, or its features or its interval are others.
            MissingExtra: scikit-learn is not installed.
        """
        chosen = settings.inference.adapters.sklearn
        if not chosen.model_path:
            raise ConfigError(f"{KEY}.model_path: must name the model; train one with `mdp model train`")
        model = load_model(Path(chosen.model_path), sha256=chosen.sha256, trusted=chosen.trusted)
        card = read_card(model.path)
        if card is not None and card.sha256 != model.sha256:
            log.warning("card of another model", model=str(model.path), sha256=model.sha256, of=card.sha256)
            card = None
        adapter = cls(
            model,
            signal=chosen.signal,
            min_score=chosen.min_score,
            ignore_values=chosen.ignore_values,
            card=card,
        )
        features = _defined(adapter.features, model.path, settings)
        if card is not None:
            _check_same(card, features, model.path, settings)
        return adapter

    @property
    def features(self) -> tuple[str, ...]:
        """The names that the model was fitted with, in its order."""
        return self._names

    def decide(self, table: FeatureTable, wanted: I64) -> Decisions:
        rows = np.empty((len(wanted), len(self._names)))
        for place, name in enumerate(self._names):
            rows[:, place] = table.columns[name][wanted]
        complete = np.isfinite(rows).all(axis=1)
        if not complete.any():
            return Decisions.none()
        value, score = self._predict(rows[complete])
        # What is not finite is kept: the engine takes it for the failure that it is.
        kept = ~(score < self._min_score) & ~np.isin(value, self._ignored)
        row = wanted[complete][kept]
        return Decisions(
            row, [self._signal] * len(row), value[kept], score[kept], self._meta(table, row), None
        )

    def close(self) -> None:
        """Nothing is held that must be let go."""

    def _predict(self, rows: F64) -> tuple[F64, F64]:
        """(value, score) of each row, in one call of the model."""
        frame = pd.DataFrame(rows, columns=list(self._names))
        with self._one_thread():  # what overflows is not finite, and the engine finds it
            value = np.asarray(self._model.predict(frame), np.float64)
            score = np.ones(len(value))
            if self._classes is not None and hasattr(self._model, "predict_proba"):
                chances = np.asarray(self._model.predict_proba(frame), np.float64)
                score = chances[np.arange(len(value)), np.searchsorted(self._classes, value)]
        return _significant(value), np.round(score, DIGITS)

    def _meta(self, table: FeatureTable, row: I64) -> list[dict[str, Any]]:
        windows = [table.series[code].interval for code in table.code[row].tolist()]
        told: list[dict[str, Any]] = [self._told | {"window": window} for window in windows]
        price = next((name for name in PRICES if name in table.columns), None)
        if price is not None:
            for one, paid in zip(told, table.columns[price][row].tolist(), strict=True):
                one["price"] = paid if np.isfinite(paid) else None
        return told

    def _warm_up(self, path: Path) -> None:
        """Predict once: the first call imports and starts threads, which must not count against the timeout."""
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                value, _ = self._predict(np.ones((1, len(self._names))))
            except Exception as error:
                said = " ".join(f"{type(error).__name__}: {error}".split())
                raise ModelError(f"the model {path} cannot predict ({said[:200]}): train it again") from error
        if value.shape != (1,):
            raise ModelError(
                f"the model {path} predicts more than one value a row: train one of a single target"
            )
        for category, message in sorted({(w.category, str(w.message)) for w in warned}, key=str):
            log.warning("model predicts with a warning", model=str(path), detail=" ".join(message.split()))
            # It is told. Python would say it again, past the log, as soon as the model predicts in earnest.
            warnings.filterwarnings("ignore", re.escape(message), category)


def _requirements(model: LoadedModel) -> tuple[tuple[str, ...], F64 | None]:
    """The names of its features, and its classes if it is a classifier."""
    base: Any = ml("sklearn.base")
    estimator, path = model.estimator, model.path
    if not hasattr(estimator, "predict"):
        raise ModelError(
            f"the model {path} is a {type(estimator).__name__}, which cannot predict: save an estimator"
        )
    names = getattr(estimator, "feature_names_in_", None)
    if names is None:
        raise ModelError(
            f"the model {path} does not know its features (feature_names_in_): fit it with a pandas DataFrame"
        )
    if base.is_regressor(estimator):
        return tuple(map(str, names)), None
    if not base.is_classifier(estimator):
        raise ModelError(
            f"the model {path} is a {type(estimator).__name__}: use a classifier or a regression"
        )
    classes = estimator.classes_
    if not isinstance(classes, np.ndarray) or classes.dtype.kind not in "iufb":
        raise ModelError(
            f"the model {path} has classes that are no numbers ({', '.join(map(str, classes[:5]))}): "
            "train it with numbers such as -1, 0 and 1"
        )
    return tuple(map(str, names)), classes.astype(np.float64)


def _defined(names: Collection[str], path: Path, settings: Settings) -> tuple[Feature, ...]:
    """The features that a model needs, as they are configured."""
    try:
        return definitions(settings.features, parse_interval(_interval(settings)), names)
    except ConfigError as error:
        raise ModelError(f"the features of the model {path}: {error}") from None


def _check_same(card: ModelCard, features: Collection[Feature], path: Path, settings: Settings) -> None:
    interval = _interval(settings)
    if card.interval != interval:
        raise ModelError(
            f"the model {path} was trained on bars of {card.interval}, and these are of {interval}: "
            f"set inference.interval to {card.interval}, or train it again"
        )
    trained = {feature.name: feature for feature in card.features}
    for now in features:
        for difference in differences(trained.get(now.name, now), now):
            raise ModelError(
                f"the model {path} was trained on {now.name} with {difference} as in features.windows: "
                "give the new one another name, or train the model again"
            )


def _interval(settings: Settings) -> str:
    return settings.inference.interval or format_interval(settings.micro_batch.window_ms * 10**6)


def _significant(value: F64) -> F64:
    """Rounded to so many significant digits. Whole numbers stay."""
    with np.errstate(all="ignore"):
        scale = np.power(10.0, DIGITS - 1 - np.floor(np.log10(np.abs(value))))
        rounded = np.round(value * scale) / scale
    return np.where(np.isfinite(rounded), rounded, value)
