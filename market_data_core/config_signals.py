"""The configuration from bars to signals: rolling features, and what decides on them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from market_data_core.config_section import (
    Count,
    Duration,
    KeyProblem,
    Milliseconds,
    Number,
    Section,
    key,
    section,
)
from market_data_core.events import format_interval, parse_interval

FeatureKind = Literal[
    "vwap", "ret", "logret", "vol", "rsi", "mom", "skew", "kurt", "open", "high", "low", "close", "volume"
]
FEATURE_KINDS: Final[tuple[str, ...]] = get_args(FeatureKind)
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}\Z")


def _sha256(value: Any) -> Any:
    if not isinstance(value, str) or (value and not _SHA256.match(value)):
        raise ValueError("must be the 64 hexadecimal digits that sha256sum prints")
    return value.lower()


def _interval(value: Any) -> Any:
    if value == "":
        return value
    try:
        return format_interval(parse_interval(value))
    except (TypeError, ValueError):
        raise ValueError("must be an interval such as 2s, 1m or 1h, or empty") from None


Sha256 = Annotated[str, BeforeValidator(_sha256)]


class FeatureWindow(Section):
    name: str = key(
        ...,
        "Feature and window, such as vwap_1m.",
        example="vwap_1m",
        pattern=r"^[a-z][a-z0-9_]*$",
        max_length=64,
    )
    horizon: Duration = key(..., "Length of the window.", example="60s")
    kind: FeatureKind | None = key(
        None, "What is computed; without it, what the name begins with: vwap_1m is a vwap.", example="vol"
    )
    annualised: bool = key(False, "Whether a volatility is scaled to a year of features.year_seconds.")
    sample: bool = key(
        True, "Whether vol, skew and kurt are estimates from a sample; otherwise they are of the population."
    )
    min_bars: Count = key(
        1,
        "Fewest bars in the horizon; a feature of fewer is missing. Each kind has a least number too.",
        ge=1,
    )

    @model_validator(mode="after")
    def _kind(self) -> Self:
        if self.kind is None and self.name.partition("_")[0] not in FEATURE_KINDS:
            raise KeyProblem(
                "name",
                f"must begin with one of {', '.join(k + '_' for k in FEATURE_KINDS)}, or have a kind beside it, "
                f"and {self.name!r} has neither",
            )
        if self.annualised and self.of_kind != "vol":
            raise KeyProblem(
                "annualised", f"must only be given for vol, and {self.name!r} is a {self.of_kind}"
            )
        return self

    @property
    def of_kind(self) -> str:
        """The kind, given or by the name."""
        return self.kind or self.name.partition("_")[0]

    @property
    def horizon_ns(self) -> int:
        return parse_interval(self.horizon)


def _seed_windows() -> tuple[FeatureWindow, ...]:
    pairs = (("vwap_1m", "60s"), ("ret_30s", "30s"), ("vol_5m", "300s"))
    return tuple(FeatureWindow(name=name, horizon=horizon) for name, horizon in pairs)


class Features(Section):
    windows: tuple[FeatureWindow, ...] = Field(
        default_factory=_seed_windows,
        description="Rolling features, each a name and a horizon.",
        examples=["[{name: vwap_1m, horizon: 60s}]"],
    )
    year_seconds: Number = key(
        5_896_800.0,
        "Trading time of a year, by which annualised volatilities are scaled: 252 days of 6.5 hours. "
        "31536000 for markets that never close.",
        unit="s",
        gt=0,
    )

    @field_validator("windows")
    @classmethod
    def _once(cls, value: tuple[FeatureWindow, ...]) -> tuple[FeatureWindow, ...]:
        names = [window.name for window in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"must name each feature once, and {name!r} is there {names.count(name)} times"
                )
        return value


class Rules(Section):
    enabled: bool = key(True, "Whether rules make signals.")
    file: str = key("configs/rules.yaml", "The rules.")

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.enabled and not self.file:
            raise KeyProblem("file", "must name the rules while rules are enabled")
        return self


class Sklearn(Section):
    enabled: bool = key(False, "Whether a scikit-learn model makes signals.")
    model_path: str = key(
        "",
        "The model: a .skops file, or a pickle or joblib file with its sha256.",
        example="models/signal_model.skops",
    )
    sha256: Sha256 = key(
        "",
        "What sha256sum prints of the model; a pickle or joblib file is not opened without it.",
        example="0" * 64,
    )
    trusted: tuple[str, ...] = Field(
        default=(),
        description="Types beyond scikit-learn's own that a .skops file may hold.",
        examples=["[]"],
    )
    signal: str = key("model", "Name of the signals.", min_length=1, max_length=64)
    min_score: Number = key(0.0, "Least score of a signal.", ge=0, le=1)
    ignore_values: tuple[Number, ...] = Field(
        default=(0.0,), description="Predicted values that are no signal.", examples=["[0]"]
    )

    model_config = ConfigDict(protected_namespaces=())

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.enabled and not self.model_path:
            raise KeyProblem("model_path", "must name a model while sklearn is enabled")
        return self


class Adapters(Section):
    rules: Rules = section(Rules, "Signals by rules.")
    sklearn: Sklearn = section(Sklearn, "Signals by a scikit-learn model.")


class Breaker(Section):
    failures: Count = key(3, "Failures in a row after which the rules take over.", ge=1, le=1000)
    reset_ms: Milliseconds = key(10_000, "How long until the model is tried again.", unit="ms", ge=1)


class Inference(Section):
    interval: Annotated[str, BeforeValidator(_interval)] = key(
        "",
        "Interval of the bars that signals are made of. Empty: that of micro_batch.window_ms.",
        example="1m",
    )
    group: str = key("mdp-inference", "Consumer group of inference.", min_length=1, max_length=200)
    adapters: Adapters = section(Adapters, "What makes signals.")
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Settings of installed adapters, by their names.", examples=["{}"]
    )
    timeout_ms: Milliseconds = key(
        250, "Longest prediction of a model, after which it has failed.", unit="ms", ge=1
    )
    pool_size: Count = key(1, "Predictions that run at once, each in a thread.", ge=1, le=64)
    breaker: Breaker = section(Breaker, "When a model that fails is left alone for a while.")
