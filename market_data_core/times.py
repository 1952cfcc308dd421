"""RFC 3339 times to int64 nanoseconds UTC and back, one at a time and a column at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
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
_SEPARATORS: Final = np.frombuffer(b"--T::", np.uint8)
_SEPARATOR_AT: Final = np.array([4, 7, 10, 13, 16])
_DIGIT_AT: Final = np.array([0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18])
_WEIGHT: Final = 10 ** np.arange(8, -1, -1, dtype=np.int64)
_MONTH_DAYS: Final = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], np.int64)


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
    if not MIN_YEAR <= year <= MAX_YEAR:
        raise ValueError(f"time {text!r} is outside of the years {MIN_YEAR} to {MAX_YEAR}")
    try:
        at = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as error:
        raise ValueError(f"time {text!r} does not exist: {error}") from None
    if match[9]:
        offset_hours, offset_minutes = int(match[10]), int(match[11])
        if offset_hours > 23 or offset_minutes > 59:
            raise ValueError(f"time {text!r} has an impossible offset from UTC")
        offset = timedelta(hours=offset_hours, minutes=offset_minutes)
        at = at - offset if match[9] == "+" else at + offset
    delta = at - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 10**9 + int((match[7] or "0").ljust(9, "0"))


def format_time(ns: int) -> str:
    """Canonical text: six decimals, or nine where the time has nanoseconds."""
    seconds, fraction = divmod(int(ns), 10**9)
    at = _EPOCH + timedelta(seconds=seconds)
    digits = f"{fraction:09d}"
    return f"{at:%Y-%m-%dT%H:%M:%S}.{digits[:6] if digits.endswith('000') else digits}Z"


def format_times(times: NDArray[np.int64]) -> list[str]:
    """:func:`format_time` of a column."""
    if len(times) == 0:
        return []
    stamps = times.view("M8[ns]")
    if not (times % 1000).any():
        return [t + "Z" for t in np.datetime_as_string(stamps, unit="us").tolist()]
    return [format_time(t) for t in times.tolist()]


def parse_times(texts: Sequence[str]) -> NDArray[np.int64]:
    """:func:`parse_time` of a column; times in UTC (ending in Z) are parsed as arrays of digits.

    Raises:
        ValueError: some time is wrong; the message is :func:`parse_time`'s for the first such.
    """
    n = len(texts)
    lengths = np.fromiter(map(len, texts), np.int64, n)
    if n == 0:
        return lengths
    if (lengths == lengths[0]).all():
        out = _parse_utc(texts, int(lengths[0]))
        if out is not None:
            return out
        return np.array([parse_time(t) for t in texts], np.int64)
    result = np.empty(n, np.int64)
    for length in np.unique(lengths).tolist():
        rows = np.flatnonzero(lengths == length)
        some = [texts[i] for i in rows.tolist()]
        parsed = _parse_utc(some, length)
        result[rows] = [parse_time(t) for t in some] if parsed is None else parsed
    return result


def _parse_utc(texts: Sequence[str], length: int) -> NDArray[np.int64] | None:
    """The column when every text has this length and the form ``YYYY-MM-DDTHH:MM:SS[.f]Z``, else None."""
    decimals = length - 21
    if not (length == 20 or 1 <= decimals <= 9):
        return None
    try:
        raw = "".join(texts).encode("ascii")
    except UnicodeEncodeError:
        return None
    chars = np.frombuffer(raw, np.uint8).reshape(len(texts), length)
    if not ((chars[:, _SEPARATOR_AT] == _SEPARATORS).all() and (chars[:, -1] == ord("Z")).all()):
        return None
    digits = chars[:, _DIGIT_AT].astype(np.int64) - ord("0")
    fraction = np.zeros(len(texts), np.int64)
    if length > 20:
        tail = chars[:, 20:-1].astype(np.int64) - ord("0")
        if not ((chars[:, 19] == ord(".")).all() and ((tail >= 0) & (tail <= 9)).all()):
            return None
        fraction = tail @ _WEIGHT[:decimals]
    if not ((digits >= 0) & (digits <= 9)).all():
        return None
    year = digits[:, 0] * 1000 + digits[:, 1] * 100 + digits[:, 2] * 10 + digits[:, 3]
    month, day, hour, minute, second = (digits[:, i] * 10 + digits[:, i + 1] for i in (4, 6, 8, 10, 12))
    in_range = (year >= MIN_YEAR) & (year <= MAX_YEAR) & (month >= 1) & (month <= 12) & (day >= 1)
    in_range &= (hour < 24) & (minute < 60) & (second < 60)
    if not in_range.all():
        return None
    leap = ((year % 4 == 0) & (year % 100 != 0)) | (year % 400 == 0)
    if not (day <= _MONTH_DAYS[month] + (leap & (month == 2))).all():
        return None
    # Days from civil, H. Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    y = year - (month <= 2)
    era = y // 400
    of_era = y - era * 400
    of_year = (153 * (month + np.where(month > 2, -3, 9)) + 2) // 5 + day - 1
    days = era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468
    seconds = days * 86_400 + hour * 3600 + minute * 60 + second
    out: NDArray[np.int64] = seconds * 10**9 + fraction
    return out
