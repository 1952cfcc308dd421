"""Model files: what is in them is checked before anything of it is executed.

A pickle is a program. It is run only when its sha256 is the one that was configured, and what is hashed are the very
bytes that are run. A ``.skops`` file is data, and is refused when it names types that are not trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
import warnings
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import structlog

from market_data_core.errors import MissingExtra, ModelError

log = structlog.get_logger(__name__)

SKOPS: Final = ".skops"
PICKLES: Final = (".pkl", ".pickle", ".joblib")
KEY: Final = "inference.adapters.sklearn"
_READABLE: Final = 0o644


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """An estimator and the file that it is from."""

    estimator: Any
    path: Path
    sha256: str


def ml(module: str) -> Any:
    """A module of the ``ml`` extra.

    Raises:
        MissingExtra: with the line that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingExtra(f"scikit-learn models need {package}: pip install 'mdp[ml]'") from None


def need_ml() -> None:
    """Import what models need.

    Raises:
        MissingExtra: with the line that installs it.
    """
    for module in ("sklearn", "skops.io", "joblib", "threadpoolctl"):
        ml(module)


def read_model(path: Path) -> tuple[bytes, str]:
    """The bytes of a model's file and their sha256; nothing of them is executed.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        if not path.is_file():
            raise ModelError(f"there is no model at {path}: set {KEY}.model_path to its file")
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"the model {path} cannot be read: {error.strerror}") from None
    return data, hashlib.sha256(data).hexdigest()


def load_model(path: Path, *, sha256: str = "", trusted: Collection[str] = ()) -> LoadedModel:
    """The model in ``path``, a ``.skops`` file or a pickle (``.pkl``, ``.pickle``, ``.joblib``).

    ``sha256``: what the file must be; a pickle is not opened without it. ``trusted``: types beyond scikit-learn's own
    that a ``.skops`` file may hold.

    Raises:
        ModelError: it may not or cannot be loaded; one sentence with the fix.
        MissingExtra: scikit-learn is not installed.
    """
    suffix = path.suffix.lower()
    if suffix != SKOPS and suffix not in PICKLES:
        raise ModelError(f"the model {path} is none of {SKOPS}, {', '.join(PICKLES)}: save it as one of them")
    data, found = read_model(path)
    if suffix in PICKLES and not sha256:
        raise ModelError(
            f"the model {path} is a pickle, which can run any program: set {KEY}.sha256 to {found} "
            f"if you trust it, or save it as {SKOPS}"
        )
    if sha256 and found != sha256.lower():
        raise ModelError(
            f"the model {path} has the sha256 {found}, and {KEY}.sha256 is {sha256}: it is not the file that was pinned"
        )
    need_ml()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        estimator = _skops(path, data, trusted) if suffix == SKOPS else _pickle(path, data)
    _tell(path, warned)
    return LoadedModel(estimator, path, found)


def untrusted_types(path: Path, data: bytes) -> list[str]:
    """Types in a ``.skops`` file that are not trusted by themselves; nothing of it is executed.

    Raises:
        ModelError: it is no such file.
    """
    try:
        return [str(name) for name in ml("skops.io").get_untrusted_types(data=data)]
    except MissingExtra:
        raise
    except Exception as error:
        raise _broken(path, error) from error


def types_in(path: Path, data: bytes) -> list[str]:
    """Every type that a ``.skops`` file names, trusted or not; nothing of it is executed.

    Raises:
        ModelError: it is no such file.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return sorted(_named(json.loads(archive.read("schema.json"))))
    except Exception as error:
        raise _broken(path, error) from error


def save_skops(estimator: Any, path: Path) -> tuple[str, list[str]]:
    """Write a model as a ``.skops`` file, whole or not at all; returns its sha256 and what ``trusted`` must hold.

    Raises:
        ModelError: it cannot be written.
    """
    data: bytes = ml("skops.io").dumps(estimator)
    write_whole(path, data)
    return hashlib.sha256(data).hexdigest(), untrusted_types(path, data)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is never seen half.

    Raises:
        ModelError: it cannot be written.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                os.chmod(file.name, _READABLE)
                os.replace(file.name, path)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(file.name)
                raise
    except OSError as error:
        raise ModelError(f"{path} cannot be written: {error.strerror}") from None


def _named(node: Any) -> set[str]:
    found = set()
    if isinstance(node, dict):
        if "__module__" in node and "__class__" in node:
            found.add(f"{node['__module__']}.{node['__class__']}")
        node = list(node.values())
    if isinstance(node, list):
        found.update(*map(_named, node))
    return found


def _skops(path: Path, data: bytes, trusted: Collection[str]) -> Any:
    beyond = [name for name in untrusted_types(path, data) if name not in trusted]
    if beyond:
        raise ModelError(
            f"the model {path} holds types that are not trusted: add them to {KEY}.trusted "
            f"if you know them: {', '.join(beyond)}"
        )
    try:
        return ml("skops.io").loads(data, trusted=list(trusted))
    except Exception as error:
        raise _broken(path, error) from error


def _pickle(path: Path, data: bytes) -> Any:
    try:
        return ml("joblib").load(io.BytesIO(data))  # reads plain pickles too
    except Exception as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> ModelError:
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return ModelError(f"the model {path} cannot be loaded ({said[:200]}): save it again")


def _tell(path: Path, warned: list[warnings.WarningMessage]) -> None:
    """Each warning of loading as one line of the log."""
    seen = set()
    for warning in warned:
        message: Any = warning.message
        made_with = getattr(message, "original_sklearn_version", None)
        if made_with is not None:
            line = (
                "model of another scikit-learn",
                f"made with {made_with}: train it again, or install that",
            )
        else:
            line = ("model loaded with a warning", " ".join(str(message).split()))
        if line not in seen:
            seen.add(line)
            log.warning(line[0], model=str(path), detail=line[1])
