"""RFC 3339 times to int64 nanoseconds UTC and back, one at a time and a column at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:([Zz])|([+-])(\d\d):(\d\d))\Z",
    re.ASCII,
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MIN_YEAR: Final = 1678
MAX_YEAR: Final = 2261
MIN_TIME: Final = -9_214_560_000 * 10**9
"""1678-01-01, the first time that is understood."""
MAX_TIME: Final = 9_214_646_400 * 10**9 - 1
"""The last nanosecond of 2261: sums of a time and a window or a lateness stay within int64."""
_HOUR: Final = 13
_SEPARATOR_AT: Final = np.array([13, 16])
_DIGIT_AT: Final = np.array([14, 15, 17, 18])
_DIGIT_NS: Final = (600 * 10**9, 60 * 10**9, 10 * 10**9, 10**9)
_SMALL: Final = np.array([5, 9, 5, 9], np.uint8)


def parse_time(text: str) -> int:
    """Nanoseconds of one RFC 3339 time with a zone, at most nine decimals.

    Raises:
        ValueError: with the reason, for a person.
    """
    match = _RFC3339.match(text)
    if match is None:
        if _RFC3339.match(text + "Z"):
            raise ValueError(f"time {text!r} has no time zone; end it with Z or an offset such as +02:00")
        raise ValueError(f"{text[:64]!r} is not an RFC 3339 time such as 2025-10-24T14:02:01.234567Z")
    year, month, day, hour, minute, second = (int(match[i]) for i in range(1, 7))
    try:
        at = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as error:
        raise ValueError(f"time {text!r} does not exist: {error}") from None
    offset = timedelta()
    if match[9]:
        offset_hours, offset_minutes = int(match[10]), int(match[11])
        if offset_hours > 23 or offset_minutes > 59:
            raise ValueError(f"time {text!r} has an impossible offset from UTC")
        offset = timedelta(hours=offset_hours, minutes=offset_minutes)
    delta = at - _EPOCH - (offset if match[9] == "+" else -offset)
    ns = (delta.days * 86_400 + delta.seconds) * 10**9 + int((match[7] or "0").ljust(9, "0"))
    if not MIN_TIME <= ns <= MAX_TIME:
        raise ValueError(f"time {text!r} is outside of the years {MIN_YEAR} to {MAX_YEAR}")
    return ns


def format_time(ns: int) -> str:
    """Canonical text: six decimals, or nine where the time has nanoseconds."""
    seconds, fraction = divmod(int(ns), 10**9)
    at = _EPOCH + timedelta(seconds=seconds)
    digits = f"{fraction:09d}"
    return f"{at:%Y-%m-%dT%H:%M:%S}.{digits[:6] if digits.endswith('000') else digits}Z"


def format_times(times: NDArray[np.int64]) -> list[str]:
    """:func:`format_time` of a column."""
    stamps = times.view("M8[ns]")
    if not (times % 1000).any():
        return [t + "Z" for t in np.datetime_as_string(stamps, unit="us").tolist()]
    return [format_time(t) for t in times.tolist()]


def parse_times(texts: Sequence[str]) -> NDArray[np.int64]:
    """:func:`parse_time` of a column; times in UTC (ending in Z) are parsed as arrays of digits.

    Raises:
        ValueError: some time is wrong; the message is :func:`parse_time`'s for the first such.
    """
    lengths = set(map(len, texts))
    if len(lengths) == 1:
        parsed = _parse_utc(texts, lengths.pop())
        return np.array([parse_time(t) for t in texts], np.int64) if parsed is None else parsed
    result = np.empty(len(texts), np.int64)
    of_length = np.fromiter(map(len, texts), np.int64, len(texts))
    for length in lengths:
        rows = np.flatnonzero(of_length == length)
        parsed = _parse_utc([texts[i] for i in rows.tolist()], length)
        if parsed is None:
            return np.array([parse_time(t) for t in texts], np.int64)
        result[rows] = parsed
    return result


def _parse_utc(texts: Sequence[str], length: int) -> NDArray[np.int64] | None:
    """The column when every text has this length and the form ``YYYY-MM-DDTHH:MM:SS[.f]Z``, else None.

    Up to the hour the text is looked up, as few hours come in one batch; from the minutes on it is digits.
    """
    decimals = length - 21
    if not (length == 20 or 1 <= decimals <= 9):
        return None
    try:
        raw = "".join(texts).encode("ascii")
    except UnicodeEncodeError:
        return None
    chars = np.frombuffer(raw, np.uint8).reshape(len(texts), length)
    if (chars[:, _SEPARATOR_AT] != ord(":")).any() or (chars[:, -1] != ord("Z")).any():
        return None
    if length > 20 and (chars[:, 19] != ord(".")).any():
        return None
    # What is below "0" wraps round to a large number, so one comparison finds every other character.
    clock = chars[:, _DIGIT_AT] - np.uint8(ord("0"))
    fraction = chars[:, 20:-1] - np.uint8(ord("0"))
    if (clock > _SMALL).any() or (fraction > 9).any():
        return None
    try:
        out = _hours(texts, chars[:, :_HOUR])
    except ValueError:
        return None
    for digit, ns in zip(clock.T, _DIGIT_NS, strict=True):
        out += digit * np.int64(ns)
    for place, digit in enumerate(fraction.T):
        out += digit * np.int64(10 ** (8 - place))
    return out


def _hours(texts: Sequence[str], chars: NDArray[np.uint8]) -> NDArray[np.int64]:
    """A new column of the full hours, ns."""
    if (chars == chars[0]).all():
        return np.full(len(texts), _hour(texts[0][:_HOUR]), np.int64)
    hours = np.ascontiguousarray(chars).view(f"S{_HOUR}").ravel()
    starts = np.concatenate(([0], np.flatnonzero(hours[1:] != hours[:-1]) + 1))
    found = np.array([_hour(texts[i][:_HOUR]) for i in starts.tolist()], np.int64)
    return np.repeat(found, np.diff(starts, append=len(texts)))


@lru_cache(maxsize=4096)
def _hour(text: str) -> int:
    return parse_time(f"{text}:00:00Z")
