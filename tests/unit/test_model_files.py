"""Nothing of a model's file is executed before it is known to be what was configured."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from structlog.testing import capture_logs

from market_data_core.errors import MissingExtra, ModelError
from market_data_pipeline.inference.model_files import (
    load_model,
    save_skops,
    types_in,
    untrusted_types,
    write_whole,
)
from tests.unit.canary import PickledCanary, SkopsCanary

ZEROS = "0" * 64
CANARY = "tests.unit.canary.SkopsCanary"


def _fitted() -> Any:
    frame = pd.DataFrame({"a": [0.0, 1.0, 2.0, 3.0], "b": [1.0, 0.0, 1.0, 0.0]})
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(frame, [-1.0, -1.0, 1.0, 1.0])


def _joblib(model: Any) -> bytes:
    out = io.BytesIO()
    joblib.dump(model, out)
    return out.getvalue()


DUMPS: dict[str, Callable[[Any], bytes]] = {
    ".skops": skops.io.dumps,
    ".pkl": pickle.dumps,
    ".pickle": pickle.dumps,
    ".joblib": _joblib,
}
PICKLES = (".pkl", ".pickle", ".joblib")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _refused(path: Path, *, sha256: str = "", trusted: tuple[str, ...] = ()) -> str:
    """The one sentence with which ``path`` is refused."""
    with pytest.raises(ModelError) as caught:
        load_model(path, sha256=sha256, trusted=trusted)
    said = str(caught.value)
    assert "\n" not in said
    assert str(path) in said
    assert len(said) < 450
    return said


@pytest.mark.parametrize("suffix", DUMPS)
def test_a_model_is_loaded(tmp_path: Path, suffix: str) -> None:
    model, path = _fitted(), tmp_path / f"model{suffix}"
    path.write_bytes(DUMPS[suffix](model))
    loaded = load_model(path, sha256=_sha256(path.read_bytes()))
    assert loaded.sha256 == _sha256(path.read_bytes())
    frame = pd.DataFrame({"a": np.linspace(0, 3, 7), "b": 0.5})
    np.testing.assert_array_equal(
        loaded.estimator.predict_proba(frame), model.predict_proba(frame), strict=True
    )


@pytest.mark.parametrize("suffix", PICKLES)
def test_a_pickle_is_executed_only_when_it_is_pinned(tmp_path: Path, suffix: str) -> None:
    trace, path = tmp_path / "trace", tmp_path / f"evil{suffix}"
    data = DUMPS[suffix](PickledCanary(trace))
    path.write_bytes(data)
    other = _sha256(DUMPS[suffix](_fitted()))
    assert f"set inference.adapters.sklearn.sha256 to {_sha256(data)} if you trust it" in _refused(path)
    assert f"inference.adapters.sklearn.sha256 is {other}: it is not the file that was pinned" in _refused(
        path, sha256=other
    )
    assert not trace.exists()
    load_model(path, sha256=_sha256(data))
    assert trace.exists(), "the canary would have sung"


def test_a_skops_file_is_executed_only_when_its_types_are_trusted(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "evil.skops"
    path.write_bytes(skops.io.dumps(make_pipeline(StandardScaler(), SkopsCanary(trace))))
    said = _refused(path, trusted=("builtins.print",))
    assert f"add them to inference.adapters.sklearn.trusted if you know them: {CANARY}" in said
    assert untrusted_types(path, path.read_bytes()) == [CANARY]
    assert CANARY in types_in(path, path.read_bytes())
    assert not trace.exists()
    load_model(path, trusted=(CANARY,))
    assert trace.exists(), "the canary would have sung"


def test_a_skops_file_that_names_a_function(tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.skops", tmp_path / "trace"
    path.write_bytes(skops.io.dumps(StandardScaler()))
    schema = _schema(path)
    schema["content"]["content"]["with_mean"] = {
        "__class__": "system",
        "__module__": "os",
        "__loader__": "FunctionNode",
        "content": f"touch {trace}",
    }
    _put_schema(path, json.dumps(schema))
    assert "os.system" in _refused(path)
    assert not trace.exists()


def test_a_file_that_was_changed(tmp_path: Path) -> None:
    path = tmp_path / "model.skops"
    digest, _ = save_skops(_fitted(), path)
    load_model(path, sha256=digest)
    path.write_bytes(path.read_bytes() + b"\0")
    assert f"and inference.adapters.sklearn.sha256 is {digest}" in _refused(path, sha256=digest)


@pytest.mark.parametrize("suffix", PICKLES)
def test_what_is_hashed_is_what_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """Somebody swaps the file as soon as it was read once."""
    path, trace = tmp_path / f"model{suffix}", tmp_path / "trace"
    good, evil = DUMPS[suffix](_fitted()), DUMPS[suffix](PickledCanary(trace))
    path.write_bytes(good)
    read = Path.read_bytes

    def swapping(self: Path) -> bytes:
        data = read(self)
        self.write_bytes(evil)
        return data

    monkeypatch.setattr(Path, "read_bytes", swapping)
    loaded = load_model(path, sha256=_sha256(good))
    assert read(path) == evil
    assert loaded.estimator.classes_.tolist() == [-1, 1]
    assert not trace.exists()


@pytest.mark.parametrize("suffix", DUMPS)
@pytest.mark.parametrize("cut", [0, 1, 10, 0.5, 0.99])
def test_a_truncated_file(tmp_path: Path, suffix: str, cut: float) -> None:
    path = tmp_path / f"model{suffix}"
    data = DUMPS[suffix](_fitted())
    path.write_bytes(data[: int(cut * len(data)) if isinstance(cut, float) else cut])
    assert _refused(path, sha256=_sha256(path.read_bytes())).endswith("): save it again")


@pytest.mark.parametrize("suffix", DUMPS)
def test_a_file_of_something_else(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_text("a model\nof text\n" * 100)
    assert "cannot be loaded" in _refused(path, sha256=_sha256(path.read_bytes()))


@pytest.mark.parametrize("schema", ["", "[]", "{}", '{"__loader__": "Nobody"}', '{"protocol": 99}'])
def test_a_skops_file_without_a_sense(tmp_path: Path, schema: str) -> None:
    path = tmp_path / "model.skops"
    path.write_bytes(skops.io.dumps(_fitted()))
    _put_schema(path, schema)
    assert "cannot be loaded" in _refused(path)


def test_a_bad_path(tmp_path: Path) -> None:
    assert "there is no model at" in _refused(tmp_path / "none.skops")
    (tmp_path / "folder.skops").mkdir()
    assert "there is no model at" in _refused(tmp_path / "folder.skops")
    (tmp_path / "model.onnx").touch()
    assert "is none of .skops, .pkl, .pickle, .joblib" in _refused(tmp_path / "model.onnx")
    (tmp_path / "model.skops").touch()
    assert "cannot be loaded" in _refused(tmp_path / "model.skops")
    assert "there is no model at" in _refused(tmp_path / ("n" * 200 + ".skops"))


@pytest.mark.skipif(os.geteuid() == 0, reason="everything can be read by root")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "model.skops"
    path.touch(mode=0)
    assert "cannot be read: Permission denied" in _refused(path)


def test_a_model_of_another_scikit_learn_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "model.skops"
    path.write_bytes(skops.io.dumps(_fitted()))
    schema = json.dumps(_schema(path))
    import sklearn

    assert schema.count(json.dumps(f'"{sklearn.__version__}"')) >= 3
    _put_schema(path, schema.replace(json.dumps(f'"{sklearn.__version__}"'), json.dumps('"1.0.2"')))
    with capture_logs() as logs:
        load_model(path)
    assert [(log["event"], log["detail"]) for log in logs] == [
        ("model of another scikit-learn", "made with 1.0.2: train it again, or install that")
    ]


@pytest.mark.parametrize("module", ["sklearn", "skops.io", "joblib", "threadpoolctl"])
def test_a_missing_package_is_told_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    path = tmp_path / "model.skops"
    save_skops(_fitted(), path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r"pip install 'mdp\[ml\]'"):
        load_model(path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.skops"
    write_whole(path, b"old")
    assert path.stat().st_mode & 0o777 == 0o644

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ModelError, match=r"model\.skops cannot be written: No space left on device"):
        write_whole(path, b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["model.skops"]
    assert path.read_bytes() == b"old"
    with pytest.raises(ModelError, match="cannot be written: No such file or directory"):
        write_whole(tmp_path / "nowhere" / "model.skops", b"")


def _schema(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("schema.json"))


def _put_schema(path: Path, text: str) -> None:
    with zipfile.ZipFile(path) as archive:
        rest = {name: archive.read(name) for name in archive.namelist() if name != "schema.json"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in rest.items():
            archive.writestr(name, data)
        archive.writestr("schema.json", text)
