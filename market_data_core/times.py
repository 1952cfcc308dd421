"""RFC 3339 times to int64 nanoseconds UTC and back, one at a time and a column at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

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
"""Characters of a time up to its hour, as in ``2025-10-24T14``."""


def _pairs() -> NDArray[np.uint8]:
    """The number that two characters are, by the 16 bits they make in memory; 255 where they are no digits."""
    table = np.full(1 << 16, 255, np.uint8)
    for number in range(100):
        table[int.from_bytes(f"{number:02d}".encode(), "little")] = number
    return table


_PAIRS: Final = _pairs()


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
    nine = (times % 1000).any()
    texts: list[str] = np.datetime_as_string(times.view("M8[ns]"), unit="ns" if nine else "us").tolist()
    if nine:
        return [(t[:-3] if t.endswith("000") else t) + "Z" for t in texts]
    return [t + "Z" for t in texts]


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
    """The column when every text has this length and the form that :func:`read_utc` reads, else None."""
    if not utc_length(length):
        return None
    try:
        raw = "".join(texts).encode("ascii")
    except UnicodeEncodeError:
        return None
    found, good = read_utc(np.frombuffer(raw, np.uint8).reshape(len(texts), length), 0, length)
    return found if good.all() else None


def utc_length(length: int) -> bool:
    """Whether ``YYYY-MM-DDTHH:MM:SSZ``, with one to nine decimals or none, can be so long."""
    return length == 20 or 22 <= length <= 30


def read_utc(chars: NDArray[np.uint8], at: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """:func:`parse_time` of the ``length`` characters from column ``at`` on of each row of ``chars`` (contiguous), and
    for which rows it holds: those of the form ``YYYY-MM-DDTHH:MM:SS[.f]Z`` that exist.

    Up to the hour the text is looked up, as few hours come in one batch; from the minutes on it is pairs of digits.
    """
    good = chars[:, at + length - 1] == ord("Z")
    for separator in (13, 16):
        good &= chars[:, at + separator] == ord(":")
    if length > 20:
        good &= chars[:, at + 19] == ord(".")
    rest = np.zeros(len(chars), np.int64)
    fraction = [(i, 10 ** (27 - i)) for i in range(20, length - 2, 2)]
    for i, weight in ((14, 60 * 10**9), (17, 10**9), *fraction):
        pair = _PAIRS[_words(chars, at + i, "<u2")]
        good &= pair < (100 if i >= 20 else 60)
        rest += np.multiply(pair, weight, dtype=np.int64)
    if length % 2 == 0 and length > 20:
        # An odd number of decimals: the last by itself. What is below "0" wraps round to a large number.
        last = chars[:, at + length - 2] - np.uint8(ord("0"))
        good &= last <= 9
        rest += np.multiply(last, 10 ** (30 - length), dtype=np.int64)
    return _hours(chars, at, good) + rest, good


def _words(chars: NDArray[np.uint8], at: int, dtype: str) -> NDArray[Any]:
    """The bytes from column ``at`` on of each row as one number."""
    return np.ndarray((len(chars),), dtype, chars, at, (chars.shape[1],))


def _hours(chars: NDArray[np.uint8], at: int, good: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The full hour of each row, ns; rows without one become no ``good``."""
    head, tail = _words(chars, at, "<u8"), _words(chars, at + _HOUR - 8, "<u8")
    change = np.flatnonzero((head[1:] != head[:-1]) | (tail[1:] != tail[:-1])) + 1
    starts = np.concatenate(([0], change))
    found = []
    for i, end in zip(starts.tolist(), [*change.tolist(), len(chars)], strict=True):
        try:
            found.append(_hour(chars[i, at : at + _HOUR].tobytes().decode("ascii")))
        except ValueError:
            found.append(0)
            good[i:end] = False
    if len(found) == 1:
        return np.full(len(chars), found[0], np.int64)
    return np.repeat(np.array(found, np.int64), np.diff(starts, append=len(chars)))


@lru_cache(maxsize=4096)
def _hour(text: str) -> int:
    return parse_time(f"{text}:00:00Z")
