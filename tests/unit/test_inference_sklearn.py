"""A scikit-learn model decides as scikit-learn does, on features that are those it was trained on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from joblib import effective_n_jobs
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.cluster import KMeans
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from structlog.testing import capture_logs
from threadpoolctl import threadpool_info

from market_data_core.config import Settings
from market_data_core.errors import ConfigError, ModelError
from market_data_pipeline.features.definitions import definitions
from market_data_pipeline.inference.adapters import registry
from market_data_pipeline.inference.adapters.sklearn import DIGITS, SklearnAdapter
from market_data_pipeline.inference.engine import InferenceEngine
from market_data_pipeline.inference.model_card import ModelCard, card_path, encode_card
from market_data_pipeline.inference.model_files import LoadedModel, save_skops, write_whole
from tests.feature_tables import feature_table
from tests.unit.scripted_adapter import Scripted, Told

RNG = np.random.default_rng(1)
N = 300
FRAME = pd.DataFrame({name: RNG.normal(size=N) for name in ("b", "a", "c")})
SIGN = np.sign(FRAME["a"] + 0.5 * FRAME["b"] + RNG.normal(size=N)).to_numpy()
THREE = np.where(np.abs(FRAME["c"]) < 0.5, 0.0, SIGN)
COLUMNS = {name: FRAME[name].to_numpy() for name in ("a", "b", "c")} | {"close": np.arange(N) + 100.0}
TABLE = feature_table(COLUMNS, symbols=2)
ALL = np.arange(N)


def _loaded(model: Any) -> LoadedModel:
    return LoadedModel(model, Path("models/tiny.skops"), "f" * 64)


def _logistic(labels: Any = THREE) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(FRAME, labels)


def test_a_classifier_decides_its_class_with_its_probability() -> None:
    model = _logistic()
    adapter = SklearnAdapter(_loaded(model), signal="side", ignore_values=())
    assert adapter.features == ("b", "a", "c")
    wanted = np.array([7, 3, 299, 0])
    decisions = adapter.decide(TABLE, wanted)
    picked = FRAME.iloc[wanted]
    assert decisions.row.tolist() == wanted.tolist()
    assert list(decisions.name) == ["side"] * 4
    np.testing.assert_array_equal(decisions.value, model.predict(picked))
    np.testing.assert_allclose(decisions.score, model.predict_proba(picked).max(axis=1), atol=10**-DIGITS)
    assert len(set(decisions.value.tolist())) > 1


def test_what_is_ignored_and_what_scores_too_little_is_left_out() -> None:
    model = _logistic()
    chance, value = model.predict_proba(FRAME).max(axis=1), model.predict(FRAME)
    adapter = SklearnAdapter(_loaded(model), min_score=0.6, ignore_values=(0.0, 5.0))
    expected = np.flatnonzero((value != 0) & (chance >= 0.6))
    assert 10 < len(expected) < N - 10
    assert adapter.decide(TABLE, ALL).row.tolist() == expected.tolist()


def test_a_row_that_lacks_a_feature_is_not_decided() -> None:
    holes = {name: column.copy() for name, column in COLUMNS.items()}
    holes["a"][3], holes["b"][5], holes["c"][8] = np.nan, np.inf, -np.inf
    decisions = SklearnAdapter(_loaded(_logistic()), ignore_values=()).decide(feature_table(holes), ALL[:10])
    assert decisions.row.tolist() == [0, 1, 2, 4, 6, 7, 9]
    holes["a"][:] = np.nan
    assert len(SklearnAdapter(_loaded(_logistic())).decide(feature_table(holes), ALL)) == 0


def test_a_classifier_without_probabilities_scores_one() -> None:
    model = RidgeClassifier().fit(FRAME, SIGN)
    decisions = SklearnAdapter(_loaded(model)).decide(TABLE, ALL)
    np.testing.assert_array_equal(decisions.value, model.predict(FRAME))
    assert set(decisions.score.tolist()) == {1.0}


def test_a_regression_decides_its_prediction_and_scores_one() -> None:
    model = LinearRegression().fit(FRAME, SIGN * 1e-7)
    decisions = SklearnAdapter(_loaded(model)).decide(TABLE, ALL)
    np.testing.assert_allclose(decisions.value, model.predict(FRAME), rtol=1e-8, atol=0)
    assert set(decisions.score.tolist()) == {1.0}


def test_meta_tells_what_decided_on_what() -> None:
    card = _card(["b", "a", "c"])
    decisions = SklearnAdapter(_loaded(_logistic()), ignore_values=(), card=card).decide(TABLE, ALL[5:6])
    assert decisions.meta == [
        {"adapter": "sklearn", "model": "tiny", "version": "7", "sha256": "f" * 64}
        | {"window": "2s", "price": 105.0}
    ]
    bare = feature_table({name: COLUMNS[name] for name in "abc"})
    decisions = SklearnAdapter(_loaded(_logistic()), ignore_values=()).decide(bare, ALL[:1])
    assert decisions.meta == [
        {"adapter": "sklearn", "model": "tiny", "version": "", "sha256": "f" * 64, "window": "2s"}
    ]


class Nosy(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Notes how many threads it may use."""

    def fit(self, x: Any, y: Any) -> Nosy:
        self.classes_ = np.unique(y)
        self.feature_names_in_ = np.array(list(x.columns), object)
        return self

    def predict(self, x: Any) -> Any:
        self.threads = {pool["user_api"]: pool["num_threads"] for pool in threadpool_info()}
        self.jobs = effective_n_jobs(-1)
        return np.full(len(x), self.classes_[0])


def test_a_model_keeps_to_its_thread() -> None:
    model = Nosy().fit(FRAME, SIGN)
    SklearnAdapter(_loaded(model)).decide(TABLE, ALL)
    assert model.threads == dict.fromkeys(model.threads, 1)
    assert {"blas", "openmp"} <= set(model.threads)
    assert model.jobs == 1


class Fickle(Nosy):
    """Says that nothing is certain, or breaks."""

    def predict_proba(self, x: Any) -> Any:
        return np.full((len(x), 2), np.nan)


async def test_a_model_that_is_not_finite_fails_and_is_replaced() -> None:
    told, rules = Told(), Scripted("rules", blocking=False)
    model = SklearnAdapter(_loaded(Fickle().fit(FRAME, SIGN)))
    async with InferenceEngine(model, rules, timeout_s=5, observer=told) as engine:
        decisions = await engine.decide(TABLE, ALL)
    assert told.failures == [("sklearn", "result")]
    assert set(decisions.name) == {"rules"}


class Broken(Nosy):
    def predict(self, x: Any) -> Any:
        raise ValueError("out of\norder")


class Grumbling(Nosy):
    def predict(self, x: Any) -> Any:
        warnings.warn("old (very)\nmodel", UserWarning, stacklevel=1)
        return super().predict(x)


def test_a_warning_of_a_model_is_told_once_in_the_log() -> None:
    with capture_logs() as logs:
        adapter = SklearnAdapter(_loaded(Grumbling().fit(FRAME, SIGN)))
        assert len(adapter.decide(TABLE, ALL)) == N  # here a warning would be an error
    assert [(log["event"], log["detail"]) for log in logs] == [
        ("model predicts with a warning", "old (very) model")
    ]


def _without_names() -> Any:
    return LogisticRegression().fit(FRAME.to_numpy(), SIGN)


USELESS: dict[str, tuple[Callable[[], Any], str]] = {
    "no estimator": (lambda: {"a": 1}, "is a dict, which cannot predict: save an estimator"),
    "not fitted": (
        LogisticRegression,
        "does not know its features (feature_names_in_): fit it with a pandas",
    ),
    "fitted without names": (_without_names, "does not know its features (feature_names_in_)"),
    "a transformer": (lambda: StandardScaler().fit(FRAME), "is a StandardScaler, which cannot predict"),
    "a clustering": (lambda: KMeans(2, n_init=1).fit(FRAME), "is a KMeans: use a classifier or a regression"),
    "classes of text": (
        lambda: _logistic(np.where(SIGN > 0, "up", "down")),
        "has classes that are no numbers (down, up): train it with numbers such as -1, 0 and 1",
    ),
    "two targets": (
        lambda: LinearRegression().fit(FRAME, np.column_stack([SIGN, THREE])),
        "predicts more than one value a row: train one of a single target",
    ),
    "two classes a row": (
        lambda: RandomForestClassifier(2).fit(FRAME, np.column_stack([SIGN, THREE])),
        "has classes that are no numbers",
    ),
    "breaks": (
        lambda: Broken().fit(FRAME, SIGN),
        "cannot predict (ValueError: out of order): train it again",
    ),
}


@pytest.mark.parametrize("what", USELESS)
def test_a_model_that_cannot_decide_on_features_is_refused(what: str) -> None:
    make, says = USELESS[what]
    with pytest.raises(ModelError) as caught:
        SklearnAdapter(_loaded(make()))
    assert str(caught.value).startswith("the model models/tiny.skops ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "model",
    [
        make_pipeline(StandardScaler(), LogisticRegression()),
        HistGradientBoostingClassifier(max_iter=5),
        RandomForestClassifier(5, n_jobs=-1),
        LinearRegression(),
    ],
    ids=lambda model: type(model).__name__,
)
def test_the_same_row_is_decided_the_same_in_any_company(model: Any) -> None:
    """To the last bit: BLAS alone would add up in another order for another number of rows."""
    names = [f"f{i}" for i in range(12)]
    frame = pd.DataFrame(RNG.normal(size=(N, 12)), columns=names)
    adapter = SklearnAdapter(_loaded(model.fit(frame, THREE)), ignore_values=())
    table = feature_table({name: frame[name].to_numpy() for name in names})
    whole = adapter.decide(table, ALL)
    for size in (1, 2, 7, 100):
        for begin in range(0, min(N, 50 * size), size):
            part = adapter.decide(table, ALL[begin : begin + size])
            np.testing.assert_array_equal(part.value, whole.value[begin : begin + size])
            np.testing.assert_array_equal(part.score, whole.score[begin : begin + size])


# --- as configured -----------------------------------------------------------------------------------------------


def _settings(path: Path, **more: Any) -> Settings:
    windows = [{"name": name, "horizon": "10s", "kind": "ret"} for name in ("a", "b", "c")]
    sklearn = {"enabled": True, "model_path": str(path), **more.pop("sklearn", {})}
    given = {"features": {"windows": windows}, "inference": {"adapters": {"sklearn": sklearn}}}
    return Settings.model_validate(given | more)


def _card(names: list[str], settings: Settings | None = None, **known: Any) -> ModelCard:
    features = definitions(settings.features, 2 * 10**9, names) if settings else ()
    given: dict[str, Any] = {
        **{"name": "tiny", "version": "7", "sha256": "f" * 64, "created": "", "model": "logistic"},
        **{"features": list(features), "interval": "2s", "horizon": "1m", "dead_band_bps": 0.0},
        **{"symbols": [], "provider": None, "start": "", "end": "", "rows": 0, "classes": {}, "seed": 0},
        **{"scores": {}, "libraries": {}, "trusted": []},
    }
    return ModelCard(**given | known)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, str]:
    path = tmp_path / "tiny.skops"
    return path, save_skops(_logistic(), path)[0]


def test_it_is_made_as_configured(saved: tuple[Path, str]) -> None:
    path, digest = saved
    settings = _settings(path, sklearn={"sha256": digest, "signal": "side", "min_score": 0.7})
    adapter = registry.open_adapter("sklearn", settings)
    decisions = adapter.decide(TABLE, ALL)
    assert set(decisions.name) == {"side"}
    assert decisions.score.min() >= 0.7
    assert decisions.meta[0]["sha256"] == digest
    assert not (decisions.value == 0).any()


def test_a_feature_that_is_not_configured(saved: tuple[Path, str]) -> None:
    settings = _settings(saved[0], features={"windows": [{"name": "ret_b", "horizon": "10s"}]})
    says = r"^the features of the model .*tiny\.skops: no feature is called 'b'; .*ret_b.*features\.windows$"
    with pytest.raises(ModelError, match=says):
        SklearnAdapter.from_settings(settings)


def test_a_feature_that_is_another_now(saved: tuple[Path, str]) -> None:
    path, digest = saved
    settings = _settings(path)
    write_whole(card_path(path), encode_card(_card(["a", "b", "c"], settings, sha256=digest)))
    assert SklearnAdapter.from_settings(settings).decide(TABLE, ALL).meta[0]["version"] == "7"
    windows = [{"name": name, "horizon": "20s", "kind": "ret"} for name in ("a", "b", "c")]
    says = r"was trained on b with windows 5, not 10 as in features\.windows: give the new one another name"
    with pytest.raises(ModelError, match=says):
        SklearnAdapter.from_settings(_settings(path, features={"windows": windows}))


def test_bars_of_another_length(saved: tuple[Path, str]) -> None:
    path, digest = saved
    write_whole(card_path(path), encode_card(_card(["a"], _settings(path), sha256=digest)))
    settings = _settings(path, micro_batch={"window_ms": "5s"})
    says = r"was trained on bars of 2s, and these are of 5s: set inference\.interval to 2s"
    with pytest.raises(ModelError, match=says):
        SklearnAdapter.from_settings(settings)


def test_a_card_of_another_model_is_not_believed(saved: tuple[Path, str]) -> None:
    path, _ = saved
    write_whole(card_path(path), encode_card(_card([], sha256="0" * 64, interval="1d")))
    with capture_logs() as logs:
        adapter = SklearnAdapter.from_settings(_settings(path))
    assert [log["event"] for log in logs] == ["card of another model"]
    assert adapter.decide(TABLE, ALL).meta[0]["version"] == ""
    card_path(path).write_text("{}")
    with pytest.raises(ModelError, match=r"tiny\.skops\.card\.json is not the card of a model"):
        SklearnAdapter.from_settings(_settings(path))


def test_a_forest_says_what_must_be_trusted(tmp_path: Path) -> None:
    path = tmp_path / "forest.skops"
    _, trusted = save_skops(HistGradientBoostingClassifier(max_iter=2).fit(FRAME, SIGN), path)
    with pytest.raises(ModelError, match=r"sklearn\.trusted if you know them: .*TreePredictor$"):
        SklearnAdapter.from_settings(_settings(path))
    SklearnAdapter.from_settings(_settings(path, sklearn={"trusted": trusted}))


def test_there_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^inference\.adapters\.sklearn\.model_path: must name the model; train"
    ):
        SklearnAdapter.from_settings(Settings())
    with pytest.raises(
        ModelError, match=r"there is no model at .*: set inference.adapters.sklearn.model_path"
    ):
        SklearnAdapter.from_settings(_settings(tmp_path / "none.skops"))
    with pytest.raises(ConfigError, match="there is no adapter 'sklear'"):
        registry.open_adapter("sklear", Settings())
