"""Conditions over features, such as ``rsi > 70 and not volatility > 0.3``.

They are written as in Python, and bind as there. A condition is parsed once, by the precedence climbing below, into
closures over numpy columns; each of its parts is a number or a truth value, and which of them is settled then. No
text of a rule comes near Python's own parser, so nothing but the functions of :mod:`.kleene` can be called.

    condition   := operand { sign operand }       by precedence: or, and, comparisons (chained), + -, * / %
    operand     := ("not" | "-" | "+") operand | NUMBER | FEATURE | FUNCTION "(" condition { "," condition } ")"
                 | "(" condition ")"

A comparison with something missing is unknown, and a rule fires only on what is true.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from functools import reduce
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from market_data_core.batch import F64
from market_data_core.errors import ExpressionError
from market_data_pipeline.inference.kleene import (
    ARITHMETIC,
    COMPARISONS,
    FUNCTIONS,
    Numbers,
    Truth,
    conjunction,
    disjunction,
    known,
    negation,
)
from market_data_pipeline.inference.tokens import Token, near, tokens

MAX_DEPTH: Final = 32
"""Parentheses, functions and signs within each other."""

_OR, _AND, _NOT, _COMPARE, _ADD, _MULTIPLY, _SIGN = range(1, 8)
_BINDS: Final = {
    "or": _OR,
    "and": _AND,
    **dict.fromkeys(COMPARISONS, _COMPARE),
    **dict.fromkeys("+-", _ADD),
    **dict.fromkeys("*/%", _MULTIPLY),
}

_Columns: TypeAlias = Mapping[str, Numbers]


class _Part(NamedTuple):
    """A part of a condition. ``logical``: it gives a Truth, otherwise Numbers. ``column``: where it begins."""

    logical: bool
    value: Callable[[_Columns], Any]
    column: int


class Condition:
    """A condition, ready to be asked of any number of rows.

    Args:
        text: as a person writes it.
        features: the names that may stand in it.

    Raises:
        ExpressionError: with the column and what is wrong there.
    """

    def __init__(self, text: str, features: Collection[str]) -> None:
        parser = _Parser(text, features)
        whole = parser.whole()
        self.text = text
        self.features: tuple[str, ...] = tuple(parser.used)
        """The names in it, in the order of their first use."""
        self._value: Callable[[_Columns], Truth] = whole.value

    def __repr__(self) -> str:
        return f"Condition({self.text!r})"

    def truth(self, columns: Mapping[str, F64], n: int) -> Truth:
        """What is known of each of ``n`` rows. ``columns`` has the ``features``, each of length ``n``."""
        with np.errstate(all="ignore"):
            found = self._value({name: known(columns[name]) for name in self.features})
        return Truth(np.broadcast_to(found.true, n), np.broadcast_to(found.false, n))


class _Parser:
    def __init__(self, text: str, features: Collection[str]) -> None:
        self._tokens = list(tokens(text))
        self._at = 0
        self._depth = 0
        self._features = features
        self.used: dict[str, None] = {}

    def whole(self) -> _Part:
        if self._peek().kind == "end":
            raise ExpressionError(1, "the condition is empty; write one such as rsi > 70")
        part = self._expression(_OR)
        if self._peek().kind != "end":
            raise self._unexpected()
        if not part.logical:
            raise ExpressionError(
                part.column, "this is a number, neither true nor false; compare it, as in rsi > 70"
            )
        return part

    # --- reading -------------------------------------------------------------------------------------------------

    def _peek(self) -> Token:
        return self._tokens[self._at]

    def _take(self) -> Token:
        token = self._peek()
        self._at += 1
        return token

    def _unexpected(self) -> ExpressionError:
        token = self._peek()
        before = self._tokens[self._at - 1] if self._at else None
        if token.text == ")" and token.kind == "sign" and self._depth == 0:
            return ExpressionError(token.column, "')' closes nothing; remove it")
        if token.kind == "name" and before is not None and before.kind in ("name", "number"):
            return ExpressionError(
                token.column, f"{token} cannot follow {before}; put a sign or a word between them"
            )
        after = f" after {before}" if before is not None else ""
        return ExpressionError(token.column, f"{token} cannot stand here{after}")

    def _expression(self, least: int) -> _Part:
        """An operand, and all that follows and binds at least as tightly as ``least``."""
        left = self._operand(least)
        while (binds := self._binds(self._peek())) >= least:
            left = self._row(left, binds)
        return left

    def _binds(self, token: Token) -> int:
        return _BINDS.get(token.text, 0) if token.kind in ("sign", "word") else 0

    def _row(self, left: _Part, binds: int) -> _Part:
        """``left`` and everything of one precedence after it: one part, however long, so that nothing nests."""
        signs: list[Token] = []
        parts = [left]
        while self._binds(self._peek()) == binds:
            signs.append(self._take())
            parts.append(self._expression(binds + 1))
        for i, part in enumerate(parts):
            self._need(part, logical=binds in (_OR, _AND), sign=signs[max(i - 1, 0)])
        values = [part.value for part in parts]
        if binds == _COMPARE:
            return _Part(True, _chain(values, [COMPARISONS[s.text] for s in signs]), left.column)
        if binds in (_OR, _AND):
            joined = disjunction if binds == _OR else conjunction
            return _Part(True, lambda c: reduce(joined, (value(c) for value in values)), left.column)
        return _Part(False, _fold(values, [ARITHMETIC[s.text] for s in signs]), left.column)

    def _operand(self, least: int) -> _Part:
        token = self._peek()
        if token.kind == "number":
            return self._number(self._take())
        if token.kind == "name":
            return self._name(self._take())
        if token.text == "not" and least > _NOT:
            raise ExpressionError(token.column, "'not' needs parentheses here, as in (not rsi > 70)")
        if token.kind not in ("sign", "word") or token.text not in ("(", "-", "+", "not"):
            raise self._unexpected()
        self._take()
        self._deeper(token)
        if token.text == "(":
            part = self._expression(_OR)._replace(column=token.column)
            self._close(token)
        elif token.text == "not":
            inner = self._expression(_NOT)
            self._need(inner, logical=True, sign=token)
            part = _Part(True, lambda c: negation(inner.value(c)), token.column)
        else:
            inner = self._expression(_SIGN)
            self._need(inner, logical=False, sign=token)
            minus = token.text == "-"
            part = _Part(False, (lambda c: -inner.value(c)) if minus else inner.value, token.column)
        self._depth -= 1
        return part

    def _number(self, token: Token) -> _Part:
        number = float(token.text)
        if not math.isfinite(number):
            raise ExpressionError(token.column, f"{token} is too large a number; the largest is 1.8e308")
        constant = np.float64(number)
        return _Part(False, lambda _: constant, token.column)

    def _name(self, token: Token) -> _Part:
        name = token.text
        if self._peek().text == "(":
            return self._function(token)
        if name not in self._features:
            if name in FUNCTIONS:
                raise ExpressionError(
                    token.column, f"{token} is a function; write {name}( ) around what it is of"
                )
            raise ExpressionError(token.column, f"{token} is no feature; {near(name, self._features)}")
        self.used[name] = None
        return _Part(False, lambda columns: columns[name], token.column)

    def _function(self, token: Token) -> _Part:
        function = FUNCTIONS.get(token.text)
        if function is None:
            raise ExpressionError(token.column, f"{token} is no function; {near(token.text, FUNCTIONS)}")
        opening = self._take()
        self._deeper(opening)
        parts: list[_Part] = []
        while self._peek().text != ")" or parts:
            parts.append(self._expression(_OR))
            self._need(parts[-1], logical=False, sign=token)
            if self._peek().text != ",":
                break
            self._take()
        self._close(opening)
        self._depth -= 1
        if len(parts) < function.least or (function.most is not None and len(parts) > function.most):
            raise ExpressionError(token.column, f"{token.text} takes {function.takes}, not {len(parts)}")
        values = [part.value for part in parts]
        if function.most is None:
            return _Part(False, _fold(values, [function.call] * (len(values) - 1)), token.column)
        return _Part(False, lambda c: known(function.call(*(value(c) for value in values))), token.column)

    def _close(self, opening: Token) -> None:
        if self._peek().kind == "end":
            raise ExpressionError(opening.column, "'(' is never closed; add a ')'")
        if self._peek().text != ")":
            raise self._unexpected()
        self._take()

    def _deeper(self, token: Token) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ExpressionError(
                token.column, f"is nested deeper than {MAX_DEPTH}; split it into several rules"
            )

    # --- checking ------------------------------------------------------------------------------------------------

    def _need(self, part: _Part, *, logical: bool, sign: Token) -> None:
        if part.logical == logical:
            return
        if logical:
            problem = f"this is a number, and {sign} joins what is true or false; compare it, as in rsi > 70"
        else:
            problem = f"this is true or false, and {sign} is of numbers"
        raise ExpressionError(part.column, problem)


def _fold(
    values: list[Callable[[_Columns], Any]], steps: list[Callable[..., Any]]
) -> Callable[[_Columns], Any]:
    """From the left, each result made missing where it is not finite."""

    def value(columns: _Columns) -> Any:
        result = values[0](columns)
        for step, operand in zip(steps, values[1:], strict=True):
            result = known(step(result, operand(columns)))
        return result

    return value


def _chain(
    values: list[Callable[[_Columns], Any]], steps: list[Callable[[Numbers, Numbers], Truth]]
) -> Callable[[_Columns], Truth]:
    """``a < b < c`` is ``a < b and b < c``; b is computed once."""

    def value(columns: _Columns) -> Truth:
        numbers = [operand(columns) for operand in values]
        return reduce(
            conjunction, (step(a, b) for step, a, b in zip(steps, numbers, numbers[1:], strict=False))
        )

    return value
