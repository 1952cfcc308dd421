"""Secrets that cannot be printed by accident."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

_HIDDEN: Final = "***"
# Greedy up to the last @ of the word: a password with an unescaped @ or / must not show its tail.
_USERINFO: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s:@/]*:)\S*@")
_PARAMETER: Final = re.compile(
    r"""\b((?:\w*password|passwd|secret|token|api_?key)['"]?\s*[=:]\s*)(?:'[^']*'|"[^"]*"|[^\s&;,'"})]+)""",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """``text`` with every password of a URL, query or ``password=`` pair replaced by ``***``."""
    return _PARAMETER.sub(rf"\g<1>{_HIDDEN}", _USERINFO.sub(rf"\g<1>{_HIDDEN}@", text))


class SecretUrl:
    """A URL that may hold a password. ``str`` and ``repr`` hide it; :meth:`reveal` does not."""

    __slots__ = ("_url",)

    def __init__(self, url: str) -> None:
        self._url = url.strip()

    def reveal(self) -> str:
        """The URL as it is: to connect with, never to print."""
        return self._url

    def __str__(self) -> str:
        return redact(self._url)

    def __repr__(self) -> str:
        return f"SecretUrl({str(self)!r})"

    def __bool__(self) -> bool:
        return bool(self._url)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._url == self._url

    def __hash__(self) -> int:
        return hash(self._url)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema  # an error message wants redact, and nothing else of this

        return core_schema.no_info_plain_validator_function(
            cls._validate, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def _validate(cls, value: Any) -> SecretUrl:
        if isinstance(value, SecretUrl):
            return value
        if value is None:
            return cls("")
        if not isinstance(value, str):
            raise ValueError("must be a URL")
        return cls(value)


class SecretText(SecretUrl):
    """A text that is secret as a whole, such as a password. ``str`` and ``repr`` hide it; :meth:`reveal` does not."""

    __slots__ = ()

    def __str__(self) -> str:
        return _HIDDEN if self else ""

    @classmethod
    def _validate(cls, value: Any) -> SecretUrl:
        if value is not None and not isinstance(value, str | SecretUrl):
            raise ValueError("must be a text; quote it if it is a number")
        return super()._validate(value)
