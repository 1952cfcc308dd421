"""One rule: as it is written, and ready to be asked."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field

from market_data_core.config_section import Duration, Number, Section, key
from market_data_core.errors import ExpressionError
from market_data_core.events import parse_interval
from market_data_pipeline.inference.expressions import Condition
from market_data_pipeline.inference.templates import TEXTS, Template

MAX_META: Final = 32
"""Entries of one rule's ``meta``."""
MAX_COOLDOWN_NS: Final = 365 * 86_400 * 10**9
OWN_META: Final = ("adapter", "window", "price", "revision", "withdrawn")
"""What mdp itself says in the ``meta`` of signals, and therefore no rule."""

_NAME: Final = re.compile(r"(?:[A-Za-z0-9_.:-]|\{[^{}]*\})+\Z")
_META_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}\Z")


def _scalar(value: Any) -> Any:
    nested = isinstance(value, dict | list)
    if nested or (isinstance(value, int | float) and not abs(value) < 1e300):
        raise ValueError("must be a text, a finite number, true, false or null")
    return value


def _not_forever(value: Any) -> Any:
    if isinstance(value, str) and parse_interval(value) > MAX_COOLDOWN_NS:
        raise ValueError("must be at most 365d")
    return value


_MetaValue = Annotated[Any, BeforeValidator(_scalar)]
_Pattern = Annotated[str, Field(min_length=1, max_length=64)]


class RuleSection(Section):
    """One rule, as it is written."""

    name: str = key(
        ...,
        "Name of the signals; {symbol}, {provider} and {interval} may stand in it.",
        example="rsi_overbought",
        min_length=1,
        max_length=64,
    )
    condition: str = key(..., "When to signal.", example="rsi > 70")
    signal: Number = key(..., "Value of the signals.", example=-1.0)
    score: Number = key(..., "How sure the rule is, from 0 to 1.", example=0.7, ge=0, le=1)
    trigger: Literal["level", "edge"] = key(
        "level",
        "level: on each bar for which the condition is true; edge: unless it was true on the bar before.",
    )
    cooldown: Annotated[Duration, AfterValidator(_not_forever)] | None = key(
        None, "For how long the rule is silent for a symbol after a signal.", example="60s"
    )
    symbols: tuple[_Pattern, ...] | None = key(
        None, "Symbols, or patterns of them with * and ?. Empty: all.", example=["SPY", "BRK*"], min_length=1
    )
    meta: dict[str, _MetaValue] = Field(
        default_factory=dict,
        description="What else to say; texts may have fields.",
        examples=['{note: "rsi {rsi:.1f}"}'],
        max_length=MAX_META,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One rule, compiled. ``symbols`` None: all. ``cooldown_ns`` 0: none."""

    name: Template
    condition: Condition
    signal: float
    score: float
    edge: bool
    cooldown_ns: int
    symbols: tuple[re.Pattern[str], ...] | None
    meta: tuple[tuple[str, Template | float | bool | None], ...]

    @property
    def features(self) -> tuple[str, ...]:
        """All that it reads."""
        return tuple(dict.fromkeys((*self.condition.features, *self.said)))

    @property
    def said(self) -> tuple[str, ...]:
        """The features that its ``meta`` tells."""
        told = (value.features for _, value in self.meta if isinstance(value, Template))
        return tuple(dict.fromkeys(name for names in told for name in names))

    def concerns(self, symbol: str) -> bool:
        return self.symbols is None or any(pattern.match(symbol) for pattern in self.symbols)


class RuleCompiler:
    """From a written rule to a :class:`Rule`.

    Args:
        features: the names that may stand in it.
        place: what stands before the key in a message.
    """

    def __init__(self, features: Collection[str], place: str) -> None:
        self._features = features
        self._place = place
        self.problems: list[str] = []
        """What is wrong, one sentence each."""

    def rule(self, section: RuleSection) -> Rule | None:
        """The rule, or None where there are ``problems``."""
        name = self._name(section.name)
        condition = None
        try:
            condition = Condition(section.condition, self._features)
        except ExpressionError as error:
            self._problem("condition", error)
        meta = tuple((called, self._meta(called, value)) for called, value in section.meta.items())
        if self.problems or name is None or condition is None:
            return None
        patterns = section.symbols
        return Rule(
            name,
            condition,
            section.signal,
            section.score,
            section.trigger == "edge",
            parse_interval(section.cooldown) if section.cooldown else 0,
            None if patterns is None else tuple(re.compile(fnmatch.translate(p)) for p in patterns),
            meta,
        )

    def _problem(self, key: str, problem: object) -> None:
        self.problems.append(f"{self._place}: {key}: {problem}")

    def _name(self, text: str) -> Template | None:
        try:
            name = _unvarying(Template(text, self._features))
        except ExpressionError as error:
            self._problem("name", error)
            return None
        if _NAME.match(text):
            return name
        self._problem("name", "must be letters, digits, '.', '_', ':' and '-', and fields such as {symbol}")
        return None

    def _meta(self, called: str, value: Any) -> Template | float | bool | None:
        if called in OWN_META:
            self._problem(f"meta.{called}", f"is what mdp says of a signal; {called} cannot be set")
        elif not _META_NAME.match(called):
            self._problem("meta", f"{called[:64]!a} must be a name of letters, digits, '_', '.' and '-'")
        if not isinstance(value, str):
            return cast("float | bool | None", value)
        try:
            return Template(value, self._features)
        except ExpressionError as error:
            self._problem(f"meta.{called}", error)
            return None


def _unvarying(name: Template) -> Template:
    """The signal of a bar that is amended must replace the one before, so its name may not follow the numbers."""
    for feature in name.features:
        raise ExpressionError(
            name.text.index("{" + feature) + 2,
            f"{feature!r} would make a name of every value; "
            f"a name has {', '.join(TEXTS)}, and numbers belong into meta",
        )
    return name
