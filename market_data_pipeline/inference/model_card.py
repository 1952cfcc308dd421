"""The card of a model: what it is, what it was trained on, and how well it did. JSON beside the model's file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from market_data_core import __version__
from market_data_core.codecs import format_time
from market_data_core.errors import ModelError
from market_data_core.events import format_interval
from market_data_pipeline.features.definitions import Feature
from market_data_pipeline.inference.training import Samples, Target
from market_data_pipeline.inference.training_bars import Range
from market_data_pipeline.inference.validation import FoldScore, means, row

SUFFIX: Final = ".card.json"
_LIBRARIES: Final = ("scikit-learn", "skops", "numpy", "scipy", "pandas")


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """Times are RFC 3339 UTC, ``interval`` and ``horizon`` are durations.

    ``features``: what each was when the model was trained. ``classes``: rows of each label. ``scores``: of each fold,
    and their means. ``trusted``: types beyond scikit-learn's own that the file holds.
    """

    name: str
    version: str
    sha256: str
    created: str
    model: str
    features: list[Feature]
    interval: str
    horizon: str
    dead_band_bps: float
    symbols: list[str]
    provider: str | None
    start: str
    end: str
    rows: int
    classes: dict[str, int]
    seed: int
    scores: dict[str, Any]
    libraries: dict[str, str]
    trusted: list[str]


def describe(
    model: Path,
    sha256: str,
    *,
    kind: str,
    features: Sequence[Feature],
    bars: Range,
    target: Target,
    rows: Samples,
    scores: Sequence[FoldScore],
    seed: int,
    trusted: Sequence[str],
    created: int,
) -> ModelCard:
    """The card of a model that was trained just now, at ``created`` (ns UTC), which is its version too."""
    labels, counts = np.unique(rows.label, return_counts=True)
    at = f"{format_time(created)[:19]}Z"
    return ModelCard(
        name=model.stem,
        version=at,
        sha256=sha256,
        created=at,
        model=kind,
        features=list(features),
        interval=format_interval(bars.interval_ns),
        horizon=format_interval(target.horizon_ns),
        dead_band_bps=target.dead_band * 1e4,
        symbols=list(bars.symbols),
        provider=bars.provider,
        start=format_time(bars.start),
        end=format_time(bars.end),
        rows=len(rows),
        classes={f"{label:g}": count for label, count in zip(labels, counts.tolist(), strict=True)},
        seed=seed,
        scores={"mean": means(scores), "folds": [row(score) for score in scores]},
        libraries={"mdp": __version__} | {name: version(name) for name in _LIBRARIES},
        trusted=list(trusted),
    )


def card_path(model: Path) -> Path:
    """Where the card of a model is."""
    return model.with_name(model.name + SUFFIX)


def encode_card(card: ModelCard) -> bytes:
    """JSON for people and programs; numbers that are not finite are null."""
    return msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n"


def read_card(model: Path) -> ModelCard | None:
    """The card beside ``model``, None when there is none.

    Raises:
        ModelError: it cannot be read.
    """
    path = card_path(model)
    try:
        return msgspec.json.decode(path.read_bytes(), type=ModelCard)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not the card of a model ({error}): remove it, or train again") from None


def differences(trained: Feature, now: Feature) -> list[str]:
    """What is not the same of two features of one name, each as ``windows 60, not 30``."""
    pairs = (
        (field.name, getattr(trained, field.name), getattr(now, field.name)) for field in fields(Feature)
    )
    return [f"{name} {before}, not {after}" for name, before, after in pairs if before != after]
