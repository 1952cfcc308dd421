"""Wall times to UTC, against zoneinfo and pandas."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline.producers.local_time import FIRST, LAST, midnight, wall_to_utc

EPOCH = datetime(1970, 1, 1)
NEW_YORK = "America/New_York"


def by_zoneinfo(wall: int, zone: str) -> int:
    """The same by the standard library, one at a time."""
    at = (EPOCH + timedelta(seconds=wall // 10**9)).replace(tzinfo=ZoneInfo(zone))
    since = at.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 10**9 + wall % 10**9


@settings(max_examples=60, deadline=None)
@given(
    zone=st.sampled_from(
        [
            NEW_YORK,
            "Europe/Berlin",
            "Australia/Lord_Howe",
            "Asia/Kolkata",
            "Africa/Casablanca",
            "America/Caracas",
        ]
    ),
    seconds=st.lists(st.integers(-50 * 365 * 86_400, 80 * 365 * 86_400), min_size=1, max_size=50),
    fraction=st.integers(0, 10**9 - 1),
)
def test_as_zoneinfo_has_it(zone: str, seconds: list[int], fraction: int) -> None:
    wall = np.array([s * 10**9 + fraction for s in seconds], np.int64)
    assert wall_to_utc(wall, zone).tolist() == [by_zoneinfo(w, zone) for w in wall.tolist()]


@pytest.mark.parametrize(
    "day",
    [
        date(2013, 3, 10),
        date(2013, 11, 3),
        date(2013, 10, 7),
        date(2025, 3, 9),
        date(2025, 11, 2),
        date(2013, 1, 2),
    ],
)
def test_a_day_of_new_york_minute_by_minute(day: date) -> None:
    """Also on the days when clocks change: half past nine is half past nine."""
    minutes = np.arange(0, 86_400, 60, dtype=np.int64) * 10**9
    utc = wall_to_utc(midnight(day) + minutes, NEW_YORK)
    local = pd.DatetimeIndex(pd.Timestamp(day) + pd.to_timedelta(minutes))
    want = local.tz_localize(
        NEW_YORK, ambiguous=np.ones(len(local), np.bool_), nonexistent=pd.Timedelta("1h")
    )
    gap = np.asarray(
        local.tz_localize(NEW_YORK, ambiguous=np.ones(len(local), np.bool_), nonexistent="NaT").isna()
    )
    assert np.array_equal(utc[~gap], want[~gap].as_unit("ns").asi8)
    opening = pd.Timestamp(int(utc[9 * 60 + 30]), tz="UTC").tz_convert(NEW_YORK)
    assert (opening.hour, opening.minute) == (9, 30)


def test_the_hour_that_comes_twice_is_the_first() -> None:
    wall = np.array([midnight(date(2013, 11, 3)) + (3600 + 1800) * 10**9])
    assert pd.Timestamp(int(wall_to_utc(wall, NEW_YORK)[0])) == pd.Timestamp("2013-11-03T05:30:00")


def test_the_hour_that_is_missing_is_as_if_clocks_had_not_changed() -> None:
    wall = np.array([midnight(date(2013, 3, 10)) + (2 * 3600 + 1800) * 10**9])
    assert pd.Timestamp(int(wall_to_utc(wall, NEW_YORK)[0])) == pd.Timestamp("2013-03-10T07:30:00")


def test_the_bounds_fit() -> None:
    bounds = np.array([FIRST, LAST])
    for zone in (NEW_YORK, "Pacific/Kiritimati", "Pacific/Pago_Pago"):
        assert wall_to_utc(bounds, zone).tolist() == [by_zoneinfo(w, zone) for w in bounds.tolist()]
    assert wall_to_utc(bounds, "UTC") is bounds
    assert len(wall_to_utc(bounds[:0], NEW_YORK)) == 0
