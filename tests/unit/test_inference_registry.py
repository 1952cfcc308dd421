"""Adapters are found by name."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from market_data_core.config import Settings
from market_data_core.errors import ConfigError, MdpError
from market_data_pipeline.inference.adapters import registry
from market_data_pipeline.inference.adapters.registry import adapter_class, known_adapters, open_adapter
from market_data_pipeline.inference.adapters.sklearn import SklearnAdapter
from tests.unit.scripted_adapter import Scripted

SCRIPTED = "tests.unit.scripted_adapter:Scripted"


def entries(monkeypatch: pytest.MonkeyPatch, **found: str) -> None:
    points = [EntryPoint(name, value, registry.GROUP) for name, value in found.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: [e for e in points if e.group == group])


def with_options(**options: Any) -> Settings:
    return Settings.model_validate({"inference": {"options": options}})


def test_our_own() -> None:
    assert {"rules", "sklearn"} <= set(known_adapters())
    assert adapter_class("sklearn") is SklearnAdapter


def test_our_entry_points_are_those_of_the_table() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["entry-points"][registry.GROUP] == registry.ADAPTERS
    assert {name: adapter_class(name).name for name in registry.ADAPTERS} == {n: n for n in registry.ADAPTERS}


def test_one_of_somebody_else_gets_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    entries(monkeypatch, ours=SCRIPTED)
    assert "ours" in known_adapters()
    made = open_adapter("ours", with_options(ours={"name": "mine", "blocking": False}, other={"x": 1}))
    assert isinstance(made, Scripted)
    assert (made.name, made.blocking) == ("mine", False)
    assert open_adapter("ours", Settings()).name == "model"


def test_options_that_are_not_its(monkeypatch: pytest.MonkeyPatch) -> None:
    entries(monkeypatch, ours=SCRIPTED)
    with pytest.raises(
        ConfigError, match=r"^inference\.options\.ours: got an unexpected keyword argument 'z'$"
    ):
        open_adapter("ours", with_options(ours={"z": 1}))


def test_an_unknown_name_is_told_with_those_known() -> None:
    with pytest.raises(ConfigError, match=r"there is no adapter 'oracle': use one of .*rules, sklearn"):
        open_adapter("oracle", Settings())


@pytest.mark.parametrize("value", ["json:JSONDecoder", "json:dumps", "json:nothing"])
def test_an_entry_point_that_is_no_adapter(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    entries(monkeypatch, odd=value)
    with pytest.raises(
        ConfigError, match=f"names {value}, which is not an InferenceAdapter: fix its entry point"
    ):
        adapter_class("odd")


def test_an_outsiders_own_missing_import_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    entries(monkeypatch, broken="no_such_package_of_pigeons:Adapter")
    with pytest.raises(ModuleNotFoundError):
        adapter_class("broken")


def test_what_a_model_needs_is_imported_when_it_is_used() -> None:
    program = """
import sys
from market_data_pipeline.inference.adapters import registry
from market_data_pipeline.inference import engine
registry.known_adapters()
assert not {"sklearn", "skops", "joblib", "pandas", "threadpoolctl"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "model.skops").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    settings = Settings.model_validate(
        {"inference": {"adapters": {"sklearn": {"model_path": str(tmp_path / "model.skops")}}}}
    )
    with pytest.raises(MdpError, match=r"^scikit-learn models need sklearn: pip install 'mdp\[ml\]'$"):
        open_adapter("sklearn", settings)
