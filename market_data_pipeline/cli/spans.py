"""Times, durations, symbols and topics as they are given on the command line."""

from __future__ import annotations

import re
from typing import overload


def names(symbols: list[str] | None) -> list[str] | None:
    """The symbols of ``--symbol A,B --symbol C``; None when none was given."""
    if not symbols:
        return None
    return [name for part in symbols for name in part.split(",") if name]


def topic(option: str, text: str) -> str:
    """The topic given with ``option``.

    Raises:
        UsageError: no bus can have one of that name.
    """
    from market_data_core.errors import BusError, UsageError
    from market_data_pipeline.streaming.partitions import check_topic

    try:
        return check_topic(text)
    except BusError as error:
        raise UsageError(f"{option}: {error}") from None


@overload
def span(start: str, end: str) -> tuple[int, int]: ...
@overload
def span(start: str | None, end: str | None) -> tuple[int | None, int | None]: ...
def span(start: str | None, end: str | None) -> tuple[int | None, int | None]:
    """[from, to) in ns UTC.

    Raises:
        UsageError: one is no time, or they are in the wrong order.
    """
    from market_data_core.errors import UsageError

    since, until = when("--from", start), when("--to", end)
    if since is not None and until is not None and since >= until:
        raise UsageError(f"--from {start} must be before --to {end}")
    return since, until


@overload
def when(option: str, text: str) -> int: ...
@overload
def when(option: str, text: None) -> None: ...
def when(option: str, text: str | None) -> int | None:
    """The time given with ``option``, RFC 3339 or a day (UTC), in ns UTC; None when it was not given.

    Raises:
        UsageError: it is no time.
    """
    from market_data_core.codecs import parse_time
    from market_data_core.errors import UsageError

    if text is None:
        return None
    try:
        return parse_time(f"{text}T00:00:00Z" if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text) else text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def length(option: str, text: str) -> int:
    """The ns of a duration given with ``option``.

    Raises:
        UsageError: it is no duration.
    """
    from market_data_core.errors import UsageError
    from market_data_core.events import parse_interval

    try:
        return parse_interval(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
