"""What every section of the configuration is made of: the types of its values, and how a key is declared."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from market_data_core.events import parse_interval

_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]{1,200}\Z")
_SYMBOL: Final = re.compile(r"[^\s|,]{1,64}\Z")


class KeyProblem(ValueError):
    """A combination of keys that cannot work; ``key`` is the one to change, relative to its section."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(problem)
        self.key = key


_NO_MILLISECONDS: Final = "must be a whole number of milliseconds or a duration such as 500ms or 2s"
_NO_DURATION: Final = "must be a duration such as 500ms, 2s, 1m, 1h or 1d"


def _milliseconds(value: Any) -> Any:
    if isinstance(value, str) and not value.strip().lstrip("-").isdigit():
        try:
            ns = parse_interval(value.strip())
        except ValueError:
            raise ValueError(_NO_MILLISECONDS) from None
        return ns // 1_000_000
    if isinstance(value, bool):
        raise ValueError(_NO_MILLISECONDS)
    return value


def _duration(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(_NO_DURATION)
    try:
        parse_interval(value)
    except ValueError:
        raise ValueError(_NO_DURATION) from None
    return value


def _topic(value: Any) -> Any:
    if not isinstance(value, str) or not _TOPIC.match(value):
        raise ValueError("must be a topic name of letters, digits, '.', '_' and '-'")
    if value.endswith(".dlq"):
        raise ValueError("must not end in .dlq, which names the topic's dead letters")
    return value


def _symbol(value: Any) -> Any:
    if not isinstance(value, str) or not _SYMBOL.match(value):
        raise ValueError(
            "must be a name of 1 to 64 characters without spaces, commas or '|'; quote it if it is a number"
        )
    return value


def _column(value: Any) -> Any:
    position = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if value is None or position or (isinstance(value, str) and value):
        return value
    raise ValueError("must be a column's name, or its position from 0")


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


Milliseconds = Annotated[int, BeforeValidator(_milliseconds)]
"""Whole milliseconds; a text such as ``2s`` is understood too."""
Duration = Annotated[str, BeforeValidator(_duration)]
"""A text such as ``500ms``, ``2s``, ``1m``, ``1h`` or ``1d``."""
Topic = Annotated[str, BeforeValidator(_topic)]
Symbol = Annotated[str, BeforeValidator(_symbol)]
Count = Annotated[int, BeforeValidator(_not_bool)]
Number = Annotated[float, BeforeValidator(_not_bool), Field(allow_inf_nan=False)]
Column = Annotated[str | int | None, BeforeValidator(_column)]
"""A column by its name in the header, or by its position from 0."""


def key(default: Any, description: str, *, unit: str | None = None, example: Any = None, **rules: Any) -> Any:
    """One key of the configuration; ``example`` is what an error message proposes (default: the default)."""
    extra: dict[str, Any] | None = {"unit": unit} if unit else None
    return Field(
        default=default,
        description=description,
        examples=None if example is None else [example],
        json_schema_extra=extra,
        **rules,
    )


def section(model: type[BaseModel], description: str) -> Any:
    return Field(default_factory=model, description=description)


class Section(BaseModel):
    """Unknown keys are refused, values cannot be changed, and defaults keep the same rules."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, value: Any) -> Any:
        """A section of which every key is commented out is one of defaults."""
        return {} if value is None else value
