"""The words and signs of a condition.

The list is closed: whatever is not on it is refused with its column before anything is made of the text. There are
no texts, dots, brackets or colons in it, so nothing of Python beyond arithmetic and comparisons can even be spelled.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple

from market_data_core.errors import ExpressionError

MAX_LENGTH: Final = 1000
"""Characters of a condition."""
MAX_NUMBER: Final = 32
"""Characters of a number."""
_SHOWN: Final = 40

WORDS: Final = frozenset({"and", "or", "not"})

_TOKEN: Final = re.compile(
    r"(?P<space>[ \t\r\n]+)"
    # Everything that begins as a number, so that 0x10, 1_000 and 2rsi are refused as a whole.
    r"|(?P<number>(?:[0-9]|\.[0-9])(?:[eE][+-]|[A-Za-z0-9_.])*)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<sign>\*\*|//|<<|>>|<=|>=|==|!=|=>|=<|[-+*/%()<>,])"
)
_NUMBER: Final = re.compile(r"(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\Z")
_FOREIGN: Final = frozenset({"**", "//", "<<", ">>", "=>", "=<"})
"""Read as one sign only to be refused as one."""
_HINTS: Final = {
    "=": "write == to compare",
    "=>": "write >=",
    "=<": "write <=",
    "&": "write and",
    "|": "write or",
    "!": "write not, or != to compare",
    "~": "write not",
    "**": "write x * x, or exp",
    "//": "write /",
}


class Token(NamedTuple):
    """One word, number or sign; ``column`` counts from 1. The last of a text is of kind ``end``."""

    kind: Literal["number", "name", "word", "sign", "end"]
    text: str
    column: int

    def __str__(self) -> str:
        return "the end" if self.kind == "end" else f"{shortened(self.text)!r}"


def tokens(text: str) -> Iterator[Token]:
    """What ``text`` is made of, and an ``end``.

    Raises:
        ExpressionError: the text is too long, or something in it belongs to no condition.
    """
    if len(text) > MAX_LENGTH:
        raise ExpressionError(
            MAX_LENGTH + 1, f"is longer than {MAX_LENGTH:,} characters; split it into several rules"
        )
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _stray(text[at], at + 1)
        token = _token(match)
        if token is not None:
            yield token
        at = match.end()
    yield Token("end", "", len(text) + 1)


def shortened(text: str) -> str:
    """``text`` as a message can hold it."""
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def near(name: str, names: Iterable[str]) -> str:
    """What to propose for a ``name`` that is none of ``names``."""
    known = sorted(names)
    close = difflib.get_close_matches(name[:64], known, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known are {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}"


def _token(match: re.Match[str]) -> Token | None:
    text, column = match[0], match.start() + 1
    if match.lastgroup == "space":
        return None
    if match.lastgroup == "number":
        if len(text) > MAX_NUMBER:
            raise ExpressionError(
                column, f"a number has at most {MAX_NUMBER} characters, this has {len(text)}"
            )
        if not _NUMBER.match(text):
            raise ExpressionError(column, f"{text!r} is no number; write it as 70, 0.5 or 1e-3")
        return Token("number", text, column)
    if match.lastgroup == "name":
        return Token("word" if text in WORDS else "name", text, column)
    if text in _FOREIGN:
        raise _stray(text, column)
    return Token("sign", text, column)


def _stray(text: str, column: int) -> ExpressionError:
    if not text.isascii():
        return ExpressionError(
            column, f"{text!a} is not ASCII, whatever it looks like; type it on a plain keyboard"
        )
    hint = _HINTS.get(text, "it has features, numbers, and or not, comparisons, + - * / % and parentheses")
    return ExpressionError(column, f"{text!r} is no part of a condition; {hint}")
