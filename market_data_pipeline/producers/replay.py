"""What makes a replay: its lanes, and the range of event time it takes.

A replay publishes history into the live topic on lanes of its own, ``replay/<run>/<provider>``, so that yesterday is
neither late nor a disturbance there. When it has published everything it ends its lanes, which closes their windows
at once. One that is interrupted goes on to the end of the window it is in and then ends its lanes, so that it leaves
no cut bar; one that is killed leaves its last windows to be closed by the clock, and stored bars of more events keep
those out unless it was forced.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple

from market_data_core.codecs import format_time, parse_time
from market_data_core.errors import UsageError
from market_data_core.events import format_interval

_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d\Z", re.ASCII)
_ZONE: Final = re.compile(r"(?:[Zz]|[+-]\d\d:\d\d)\Z", re.ASCII)


class Range(NamedTuple):
    """Event time ``[start, end)`` in ns UTC; None is unbounded."""

    start: int | None
    end: int | None


def new_run(now: int) -> str:
    """A name for a replay run that no other has; names sort by the time ``now`` (ns UTC) at which they began."""
    at = datetime.fromtimestamp(now // 10**9, UTC)
    return f"{at:%Y%m%dT%H%M%S}.{now % 10**9 // 1000:06d}Z-{secrets.token_hex(3)}"


def replay_lane(run: str, *, force: bool) -> Callable[[str], str]:
    """The lane of a provider's events in this run. Bars of a forced run replace stored ones of more events."""
    head = "replay!" if force else "replay"
    return lambda provider: f"{head}/{run}/{provider}"


def parse_moment(option: str, text: str) -> int:
    """Nanoseconds UTC of a time given with ``option``: RFC 3339, or a day, or a time without a zone, which is UTC.

    Raises:
        UsageError: it is none of these.
    """
    given = f"{text}T00:00:00Z" if _DAY.match(text) else text if _ZONE.search(text) else f"{text}Z"
    try:
        return parse_time(given)
    except ValueError:
        raise UsageError(
            f"{option}: {text!r} is no time; write it like 2025-10-01, 2025-10-01T14:30:00Z or "
            "2025-10-01T09:30:00-05:00"
        ) from None


def parse_range(start: str | None, end: str | None, window_ns: int | None = None) -> Range:
    """The range of ``--from`` and ``--to``, cut with ``window_ns`` to the whole windows within.

    Raises:
        UsageError: a time is wrong, or nothing lies in the range.
    """
    first = None if start is None else parse_moment("--from", start)
    last = None if end is None else parse_moment("--to", end)
    if first is not None and last is not None and first >= last:
        raise UsageError(f"--from {start} is not before --to {end}; exchange them or move one")
    if window_ns is None:
        return Range(first, last)
    first = None if first is None else -(-first // window_ns) * window_ns
    last = None if last is None else last // window_ns * window_ns
    if first is not None and last is not None and first >= last:
        raise UsageError(
            f"no whole window of {format_interval(window_ns)} lies from {start} to {end}; widen the range, "
            "or leave out --window"
        )
    return Range(first, last)


def parse_speed(text: str) -> float | None:
    """How many times as fast as it happened; None for ``max``.

    Raises:
        UsageError: it is neither ``max`` nor a number above 0.
    """
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < 1e9:
        raise UsageError(f"--speed: must be max or a number above 0, such as 1 or 10 (got {text!r})")
    return speed


def describe(asked: Range) -> str:
    """For people: from when to when."""
    start = "the beginning" if asked.start is None else format_time(asked.start)
    end = "the end" if asked.end is None else format_time(asked.end)
    return f"{start} to {end}"
