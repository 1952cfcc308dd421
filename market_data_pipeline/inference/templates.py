"""Texts of a signal with names in braces: ``RSI of {symbol} at {rsi:.1f}``.

A field is a name, alone or with a format of a number after a colon. There is nothing else in the grammar: no
attribute, index, conversion or field within a field, and widths and precisions of two digits at most. ``{{`` and
``}}`` are braces. It is read here, and not by :class:`string.Formatter`, which cannot say where something is wrong.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from market_data_core.errors import ExpressionError
from market_data_pipeline.inference.tokens import near, shortened

TEXTS: Final = ("symbol", "provider", "interval")
"""Fields that are of the bar's series. All others are features."""
MAX_LENGTH: Final = 500
"""Characters of a template."""
MISSING: Final = "missing"
"""What a feature of too little history is in a text."""

_PIECE: Final = re.compile(r"(?P<brace>\{\{|\}\})|\{(?P<field>[^{}]*)\}|(?P<text>[^{}]+)")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_FORMAT: Final = re.compile(r"[+ ]?0?[0-9]{0,2},?(?:\.[0-9]{1,2})?[eEfFgG%]?\Z")


class Field(NamedTuple):
    """A name in braces; ``form`` is the format after the colon, or empty."""

    name: str
    form: str


class Template:
    """A text with fields.

    Args:
        text: as a person writes it.
        features: names that may stand in it beside ``{symbol}``, ``{provider}`` and ``{interval}``.

    Raises:
        ExpressionError: with the column and what is wrong there.
    """

    def __init__(self, text: str, features: Collection[str]) -> None:
        if len(text) > MAX_LENGTH:
            raise ExpressionError(MAX_LENGTH + 1, f"is longer than {MAX_LENGTH} characters; shorten it")
        self._pieces = _pieces(text, features)
        fields = [piece for piece in self._pieces if isinstance(piece, Field)]
        self.text = text
        self.features: tuple[str, ...] = tuple(
            dict.fromkeys(field.name for field in fields if field.name not in TEXTS)
        )
        """The features in it, in the order of their first use."""
        self.varies = bool(fields)
        """Whether it has any field."""
        self._only = (
            fields[0].name if self._pieces == fields and len(fields) == 1 and not fields[0].form else None
        )

    def __repr__(self) -> str:
        return f"Template({self.text!r})"

    def render(self, texts: Mapping[str, str], numbers: Mapping[str, float]) -> str:
        """The text, with each field replaced. ``texts`` has the :data:`TEXTS`, ``numbers`` the ``features``."""
        return "".join(
            piece if isinstance(piece, str) else _written(piece, texts, numbers) for piece in self._pieces
        )

    def value(self, texts: Mapping[str, str], numbers: Mapping[str, float]) -> str | float | None:
        """The number itself, None for a missing one, where the template is one feature and nothing else;
        otherwise the text."""
        if self._only is None or self._only in TEXTS:
            return self.render(texts, numbers)
        number = numbers[self._only]
        return number if math.isfinite(number) else None


def _pieces(text: str, features: Collection[str]) -> list[str | Field]:
    pieces: list[str | Field] = []
    at = 0
    while at < len(text):
        match = _PIECE.match(text, at)
        if match is None:
            problem = "'{' is never closed" if text[at] == "{" else "'}' closes nothing"
            raise ExpressionError(at + 1, f"{problem}; write {text[at] * 2} for a brace")
        if match["field"] is not None:
            pieces.append(_field(match["field"], at + 2, features))
        else:
            pieces.append(_plain(match[0], at + 1)[0] if match["brace"] else _plain(match[0], at + 1))
        at = match.end()
    return pieces


def _plain(text: str, column: int) -> str:
    for i, character in enumerate(text):
        # Neither a NUL nor half of a surrogate pair can be stored as JSON, and a line break breaks logs.
        if not character.isprintable():
            raise ExpressionError(column + i, f"{character!a} cannot be printed; remove it")
    return text


def _field(inside: str, column: int, features: Collection[str]) -> Field:
    name, colon, form = inside.partition(":")
    if not _NAME.match(name):
        raise ExpressionError(column, f"{shortened(name)!a} is no name; write {{symbol}} or {{rsi:.1f}}")
    if name not in TEXTS and name not in features:
        raise ExpressionError(column, f"{shortened(name)!r} is no field; {near(name, {*TEXTS, *features})}")
    if colon and (name in TEXTS or not form or not _FORMAT.match(form)):
        place = column + len(name) + 1
        if name in TEXTS:
            raise ExpressionError(place, f"{name} is a text and takes no format; write {{{name}}}")
        raise ExpressionError(place, f"{shortened(form)!a} is no format; write one such as .2f, +.1% or .3g")
    return Field(name, form)


def _written(field: Field, texts: Mapping[str, str], numbers: Mapping[str, float]) -> str:
    if field.name in TEXTS:
        return texts[field.name]
    number = numbers[field.name]
    return format(number, field.form) if math.isfinite(number) else MISSING
