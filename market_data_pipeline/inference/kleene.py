"""Numbers that may be missing, and what can be said of them: true, false or unknown. Whole columns at a time.

The logic is Kleene's strong one (S. C. Kleene, Introduction to Metamathematics, 1952, section 64), which SQL has too.
Missing is NaN, and nothing infinite is known: a sum, quotient or function whose result is not finite is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
"""A column, or a constant without dimensions that stands for a column of itself."""
Flags = NDArray[np.bool_]


class Truth(NamedTuple):
    """Where something is known to be true, and where it is known to be false; unknown is neither."""

    true: Flags
    false: Flags


def known(numbers: Numbers) -> Numbers:
    """``numbers`` with NaN for what is not finite."""
    finite = np.isfinite(numbers)
    return numbers if finite.all() else np.where(finite, numbers, np.nan)


def negation(a: Truth) -> Truth:
    """False where ``a`` is true; what is unknown stays so."""
    return Truth(a.false, a.true)


def conjunction(a: Truth, b: Truth) -> Truth:
    """Both: one false is enough to know."""
    return Truth(a.true & b.true, a.false | b.false)


def disjunction(a: Truth, b: Truth) -> Truth:
    """Either: one true is enough to know."""
    return Truth(a.true | b.true, a.false & b.false)


def _equal(a: Numbers, b: Numbers) -> Truth:
    return Truth(a == b, (a < b) | (a > b))


# Every comparison with NaN is false, save !=, so each is given with its opposite.
COMPARISONS: Final[dict[str, Callable[[Numbers, Numbers], Truth]]] = {
    "<": lambda a, b: Truth(a < b, a >= b),
    "<=": lambda a, b: Truth(a <= b, a > b),
    ">": lambda a, b: Truth(a > b, a <= b),
    ">=": lambda a, b: Truth(a >= b, a < b),
    "==": _equal,
    "!=": lambda a, b: negation(_equal(a, b)),
}

ARITHMETIC: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "%": np.mod,
}
"""As in Python; ``%`` has the sign of the divisor."""


def _clip(x: Any, low: Any, high: Any) -> Any:
    return np.minimum(np.maximum(x, low), high)


class Function(NamedTuple):
    """What a name before parentheses stands for. ``most`` None: it takes any number of arguments, two by two."""

    call: Callable[..., Any]
    least: int
    most: int | None

    @property
    def takes(self) -> str:
        """For a message."""
        if self.most is None:
            return f"{self.least} numbers or more"
        return "1 number" if self.most == 1 else f"{self.most} numbers"


FUNCTIONS: Final[dict[str, Function]] = {
    "abs": Function(np.abs, 1, 1),
    "min": Function(np.minimum, 2, None),
    "max": Function(np.maximum, 2, None),
    "sqrt": Function(np.sqrt, 1, 1),
    "log": Function(np.log, 1, 1),
    "exp": Function(np.exp, 1, 1),
    "clip": Function(_clip, 3, 3),
}
