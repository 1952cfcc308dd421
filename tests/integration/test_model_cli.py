"""``mdp model``: from stored bars to a model that signals, and how it fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from market_data_core.config import Settings
from market_data_pipeline.cli.app import main
from market_data_pipeline.inference.adapters.registry import open_adapter
from market_data_store import StoreClient
from tests.feature_tables import feature_table
from tests.integration.store_samples import flush
from tests.patterned_bars import STEP, random_bars

Mdp = Callable[..., tuple[int, str, str]]
RANGE = ("--from", "2023-11-14T22:14:00Z", "--to", "2023-11-15")
TRAIN = ("train", "--symbols", "SPY,IBM", *RANGE, "--horizon", "2s", "--features", "returns,momentum")


@pytest.fixture
def mdp(
    database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Mdp:
    """Runs a command on the test's database; gives exit code, stdout and stderr."""
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("MDP_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["model", *args])
        out, err = capfd.readouterr()
        code = end.value.code
        return code if isinstance(code, int) else 0, out, err

    return run


@pytest.fixture
async def filled(store: StoreClient) -> None:
    claim = await store.claim("t", "g", 0, "me")
    await store.commit(flush(claim, 1, random_bars(600, memory=0.5), window=STEP))


@pytest.mark.usefixtures("filled")
def test_a_model_is_trained_and_used_as_it_says(mdp: Mdp, tmp_path: Path) -> None:
    code, out, err = mdp(*TRAIN, "--out", "signal.skops", "--folds", "3")
    assert (code, err) == (0, "")
    table, _, rest = out.partition("signal.skops is trained on 1196 rows (")
    assert table.splitlines()[0].split() == [
        *("fold", "train", "test", "start", "end", "accuracy", "balanced", "auc", "majority", "side_bps")
    ]
    assert len(table.splitlines()) == 1 + 3 + 1
    assert float(table.splitlines()[-1].split()[3]) > 0.6
    given = yaml.safe_load(rest.partition("to use it:")[2])
    adapter = open_adapter("sklearn", Settings.model_validate(given))
    up = adapter.decide(
        feature_table({"returns": np.array([0.01]), "momentum": np.zeros(1)}), np.zeros(1, int)
    )
    assert up.value.tolist() == [1.0]
    assert up.meta[0]["model"] == "signal"

    card = json.loads((tmp_path / "signal.skops.card.json").read_text())
    assert (card["rows"], card["horizon"], card["interval"]) == (1196, "2s", "2s")
    assert sum(card["classes"].values()) == 1196
    assert [feature["name"] for feature in card["features"]] == ["returns", "momentum"]
    assert (card["start"], card["end"]) == ("2023-11-14T22:14:00.000000Z", "2023-11-15T00:00:00.000000Z")
    assert set(card["libraries"]) == {"mdp", "scikit-learn", "skops", "numpy", "scipy", "pandas"}

    code, out, err = mdp("show", "signal.skops")
    assert (code, err) == (0, "")
    assert card["sha256"] in out
    assert "sklearn.linear_model._logistic.LogisticRegression" in out


@pytest.mark.usefixtures("filled")
def test_json_has_a_line_for_each_fold_and_what_was_written(mdp: Mdp) -> None:
    forest = ("--model", "forest", "--dead-band", "2", "--flat", "--folds", "2", "--seed", "1")
    code, out, err = mdp(*TRAIN, "--out", "forest.skops", *forest, "--json")
    assert (code, err) == (0, "")
    lines: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines()]
    assert [line.get("fold") for line in lines] == [1, 2, "mean", None]
    assert lines[2]["auc"] == pytest.approx((lines[0]["auc"] + lines[1]["auc"]) / 2)
    written = lines[3]
    assert (written["model"], set(written["classes"])) == ("forest.skops", {"-1", "0", "1"})
    assert written["trusted"] == ["sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"]

    code, out, _ = mdp("show", "forest.skops", "--json")
    shown = json.loads(out)
    assert code == 0
    assert shown["card_matches"] is True
    assert shown["untrusted"] == written["trusted"]
    assert shown["card"]["dead_band_bps"] == 2
    assert shown["card"]["scores"]["folds"][0]["auc"] == lines[0]["auc"]


@pytest.mark.usefixtures("filled")
def test_a_model_that_is_not_the_one_of_its_card(mdp: Mdp, tmp_path: Path) -> None:
    assert mdp(*TRAIN, "--out", "signal.skops")[0] == 0
    (tmp_path / "signal.skops").write_bytes((tmp_path / "signal.skops").read_bytes() + b"\0")
    code, out, err = mdp("show", "signal.skops")
    assert code == 1
    assert "sha256 of the file" in out
    assert err == (
        "mdp: signal.skops is not the file that its card is of: train it again, or remove the card\n"
    )


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--out", "x.pkl"], 2, "--out: must end with .skops (got 'x.pkl')"),
        (["--out", "no/x.skops"], 2, "--out: there is no folder 'no': make it first"),
        (["--out", "x.skops", "--horizon", "1s"], 2, "--horizon: must be at least one bar, 2s (got '1s')"),
        (
            ["--out", "x.skops", "--horizon", "soon"],
            2,
            "--horizon: must be a duration such as 500ms, 2s or 1m (got 'soon')",
        ),
        (
            ["--out", "x.skops", "--features", "momentun"],
            2,
            "no feature is called 'momentun'; did you mean momentum?",
        ),
        (
            ["--out", "x.skops", "--features", ","],
            2,
            "--features: name a feature, as in --features returns,rsi",
        ),
        (
            ["--out", "x.skops", "--provider", "none"],
            1,
            "there are no bars of these symbols in this range: look at `mdp store bars`",
        ),
        (
            ["--out", "x.skops", "--horizon", "1h"],
            1,
            "none of 1200 bars has all of returns, momentum and a return over the horizon: take a longer range "
            "or a shorter horizon",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_wrong_is_said_in_one_sentence(
    mdp: Mdp, tmp_path: Path, args: list[str], code: int, says: str
) -> None:
    assert mdp(*TRAIN, *args) == (code, "", f"mdp: {says}\n")
    assert not list(tmp_path.glob("**/*.skops*"))


def test_a_file_that_is_no_model(mdp: Mdp, tmp_path: Path) -> None:
    code, _, err = mdp("show", "none.skops")
    assert (code, err.startswith("mdp: there is no model at none.skops: ")) == (1, True)
    (tmp_path / "text.skops").write_text("text")
    code, _, err = mdp("show", "text.skops")
    assert (code, err.startswith("mdp: the model text.skops cannot be loaded (BadZipFile: ")) == (1, True)
    (tmp_path / "old.pkl").write_bytes(b"anything")
    code, out, _ = mdp("show", "old.pkl")
    assert code == 0
    assert "a pickle tells them only when it is run" in out
