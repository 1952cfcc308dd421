"""The card of a model: what it is, what it was trained on, and how well it did. JSON beside the model's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from market_data_core.config_signals import Features, FeatureWindow
from market_data_core.errors import ModelError
from market_data_core.events import format_interval

SUFFIX: Final = ".card.json"


class FeatureDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """What a feature was when the model was trained. ``horizon`` is canonical: ``60s`` is ``1m``."""

    name: str
    kind: str
    horizon: str
    annualised: bool = False
    sample: bool = True
    min_bars: int = 1
    year_seconds: float = 0.0

    @classmethod
    def of(cls, window: FeatureWindow, features: Features) -> FeatureDefinition:
        """As the configuration has it; ``year_seconds`` is 0 where it does not matter."""
        return cls(
            name=window.name,
            kind=window.of_kind,
            horizon=format_interval(window.horizon_ns),
            annualised=window.annualised,
            sample=window.sample,
            min_bars=window.min_bars,
            year_seconds=features.year_seconds if window.annualised else 0.0,
        )

    def differences(self, other: FeatureDefinition) -> list[str]:
        """Each field that is not the same, as ``horizon 1m, not 30s``: this one's first."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in self.__struct_fields__)
        return [f"{name} {mine}, not {its}" for name, mine, its in pairs if mine != its]


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """Times are RFC 3339 UTC, ``interval`` and ``horizon`` are durations; ``scores`` is what training printed."""

    name: str
    version: str
    sha256: str
    created: str
    model: str
    features: list[FeatureDefinition]
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
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not the card of a model ({error}): remove it, or train again") from None
