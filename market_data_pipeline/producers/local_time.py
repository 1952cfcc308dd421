"""Times on a wall to UTC, a column at a time.

A file that counts milliseconds since midnight counts as a clock on the wall of its exchange shows them, so half
past nine is 34,200,000 on every day of the year, also on the days when clocks change. A time that a change to winter
makes twice is the first of the two; one that a change to summer leaves out is taken as if clocks had not
changed yet (both as PEP 495 has it for ``fold=0``).
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from market_data_core.batch import I64
from market_data_core.times import MAX_YEAR, MIN_YEAR

_EPOCH: Final = datetime(1970, 1, 1)
_S: Final = 1_000_000_000
_DAY: Final = 86_400 * _S
_STEP: Final = timedelta(hours=6)
#: Wall times within these become UTC times that int64 nanoseconds can hold, whatever the zone.
FIRST: Final = int((datetime(MIN_YEAR, 1, 2) - _EPOCH).total_seconds()) * _S
LAST: Final = int((datetime(MAX_YEAR, 12, 30) - _EPOCH).total_seconds()) * _S


def midnight(day: date) -> int:
    """The wall time, in nanoseconds since midnight of 1970-01-01 on the same wall, at which ``day`` begins."""
    return (day - _EPOCH.date()).days * _DAY


def wall_to_utc(wall: I64, zone: str) -> I64:
    """UTC nanoseconds of wall times in nanoseconds, all from :data:`FIRST` to :data:`LAST`."""
    if len(wall) == 0 or zone == "UTC":
        return wall
    first, last = _year(int(wall.min())), _year(int(wall.max()))
    years = (
        [first]
        if first == last
        else np.unique(wall.astype("M8[ns]").astype("M8[Y]").astype(int) + 1970).tolist()
    )
    found = [_changes(zone, year) for year in years]
    starts, offsets = (np.concatenate(columns) for columns in zip(*found, strict=True))
    out: I64 = wall - offsets[np.searchsorted(starts, wall, "right") - 1]
    return out


def _year(wall: int) -> int:
    return (_EPOCH + timedelta(seconds=wall // _S)).year


@lru_cache(maxsize=1024)
def _changes(zone: str, year: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The wall times from which an offset from UTC holds in this year, and the offsets."""
    info = ZoneInfo(zone)

    def offset(at: datetime) -> timedelta:
        return at.replace(tzinfo=info).utcoffset() or timedelta(0)

    at, end = datetime(year, 1, 1), datetime(year + 1, 1, 1)
    found = [(at, offset(at))]
    while at < end:
        step = at + _STEP
        if offset(step) != found[-1][1]:
            low, high = at, step
            while high - low > timedelta(seconds=1):
                middle = low + timedelta(seconds=(high - low) // timedelta(seconds=2))
                low, high = (middle, high) if offset(middle) == found[-1][1] else (low, middle)
            found.append((high, offset(high)))
        at = step
    starts = [int((when - _EPOCH).total_seconds()) * _S for when, _ in found]
    return np.array(starts, np.int64), np.array([int(o.total_seconds()) * _S for _, o in found], np.int64)
