"""The card of a model: what it is, what it was trained on, and how well it did. JSON beside the model's file."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import msgspec

from market_data_core.errors import ModelError
from market_data_pipeline.features.definitions import Feature

SUFFIX: Final = ".card.json"


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
