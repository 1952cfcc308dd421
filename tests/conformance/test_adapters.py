"""Our adapters, and the one of the page on writing them, keep the contract."""

from __future__ import annotations

import runpy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from market_data_pipeline.inference.adapter import InferenceAdapter
from market_data_pipeline.inference.adapters.sklearn import SklearnAdapter
from market_data_pipeline.inference.model_files import LoadedModel
from tests.conformance.adapters import AdapterSuite
from tests.docs.pages import ROOT, blocks
from tests.unit.rule_samples import rules

NAMES = ("ret_30s", "vol_5m", "vwap_1m", "momentum", "rsi", "returns", "log_return", "volume")


def _trained(model: Any, labels: Any = np.sign) -> SklearnAdapter:
    rng = np.random.default_rng(0)
    x = pd.DataFrame(rng.normal(size=(400, len(NAMES))), columns=list(NAMES))
    y = labels(np.where(np.abs(x["vol_5m"]) < 0.5, 0.0, x["ret_30s"] + rng.normal(size=400)))
    return SklearnAdapter(LoadedModel(model.fit(x, y), Path("model.skops"), "0" * 64))


class TestClassifier(AdapterSuite):
    def make(self) -> InferenceAdapter:
        return _trained(make_pipeline(StandardScaler(), LogisticRegression()))


class TestRegression(AdapterSuite):
    decides_on_all = True

    def make(self) -> InferenceAdapter:
        return _trained(make_pipeline(StandardScaler(), LinearRegression()), labels=np.asarray)


class TestRules(AdapterSuite):
    def make(self) -> InferenceAdapter:
        return rules(
            {"condition": "momentum > 0.5 and not rsi > 1", "cooldown": "3s", "meta": {"at": "{rsi:.2f}"}},
            {"condition": "volatility < 0", "name": "quiet_{symbol}", "symbols": ["S*", "BRK*"]},
        )


class TestRulesOfEdges(AdapterSuite):
    def make(self) -> InferenceAdapter:
        return rules({"condition": "momentum > 0", "trigger": "edge"})


class TestExample(AdapterSuite):
    """The adapter of docs/writing-an-adapter.md."""

    def make(self) -> InferenceAdapter:
        page = ROOT / "docs" / "writing-an-adapter.md"
        (text,) = (block.text for block in blocks(page) if block.file == "stretched/stretched.py")
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder, "stretched.py")
            program.write_text(text, "utf-8")
            adapter: InferenceAdapter = runpy.run_path(str(program))["Stretched"](threshold=1.5)
        return adapter
