"""Times: the column parser, the scalar parser and an independent one agree, and refuse alike."""

from __future__ import annotations

import calendar
from datetime import datetime

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from market_data_core.times import MAX_TIME, MIN_TIME, format_time, format_times, parse_time, parse_times
from tests.unit.strategies import TIMES

MOMENTS = st.datetimes(datetime(1678, 1, 2), datetime(2261, 12, 30, 23, 59, 59))
FRACTIONS = st.text("0123456789", min_size=1, max_size=9)


@st.composite
def written(draw: st.DrawFn) -> tuple[str, int]:
    """A time as text, and its nanoseconds by the calendar of the standard library."""
    at = draw(MOMENTS).replace(microsecond=0)
    text = at.strftime("%Y-%m-%dT%H:%M:%S")
    ns = calendar.timegm(at.timetuple()) * 10**9
    if draw(st.booleans()):
        fraction = draw(FRACTIONS)
        text += f".{fraction}"
        ns += int(f"{fraction:0<9}")
    if draw(st.booleans()):
        return text + "Z", ns
    sign, hours, minutes = draw(st.tuples(st.sampled_from("+-"), st.integers(0, 23), st.integers(0, 59)))
    away = (hours * 60 + minutes) * 60 * 10**9
    return f"{text}{sign}{hours:02}:{minutes:02}", ns - away if sign == "+" else ns + away


@given(st.lists(written(), max_size=20))
def test_column_scalar_and_calendar_agree(times: list[tuple[str, int]]) -> None:
    texts = [text for text, _ in times]
    assert [parse_time(t) for t in texts] == [ns for _, ns in times]
    assert parse_times(texts).tolist() == [ns for _, ns in times]


@given(st.lists(TIMES, max_size=30))
@example([MIN_TIME, MAX_TIME])
@example([0, -1, 999, 1000, 10**9 - 1])
def test_times_survive_being_written(times: list[int]) -> None:
    texts = [format_time(ns) for ns in times]
    assert [parse_time(t) for t in texts] == times
    assert parse_times(texts).tolist() == times
    assert format_times(np.array(times, np.int64)) == texts
    whole = np.array(times, np.int64) // 1000 * 1000
    assert format_times(whole) == [format_time(ns) for ns in whole.tolist()]
    assert all(len(text) == 27 for text in format_times(whole))


@given(TIMES)
def test_numpy_reads_what_we_write(ns: int) -> None:
    assert int(np.datetime64(format_time(ns)[:-1], "ns").astype(np.int64)) == ns


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2000-02-29T12:00:00Z", 951_825_600 * 10**9),
        ("2024-02-29T23:59:59.999999999Z", 1_709_251_199 * 10**9 + 999_999_999),
        ("1969-12-31T23:59:59.999999999Z", -1),
        ("2025-10-24t14:02:01.5z", 1_761_314_521_500_000_000),
        ("2025-10-24 14:02:01.5+02:00", 1_761_307_321_500_000_000),
        ("2025-10-24T14:02:01-00:30", 1_761_316_321 * 10**9),
        ("1678-01-01T00:00:00Z", MIN_TIME),
        ("2261-12-31T23:59:59.999999999Z", MAX_TIME),
        ("2262-01-01T00:59:59+01:00", MAX_TIME - 999_999_999),
    ],
)
def test_known_times(text: str, ns: int) -> None:
    assert parse_time(text) == ns
    assert parse_times([text, "1970-01-01T00:00:00Z"]).tolist() == [ns, 0]


REFUSED = {
    "1900-02-29T00:00:00Z": "does not exist",
    "2023-02-29T00:00:00.000000Z": "does not exist",
    "2024-02-30T00:00:00Z": "does not exist",
    "2024-04-31T00:00:00Z": "does not exist",
    "2024-00-10T00:00:00Z": "does not exist",
    "2024-13-10T00:00:00Z": "does not exist",
    "2024-01-00T00:00:00Z": "does not exist",
    "2024-01-01T24:00:00Z": "does not exist",
    "2024-01-01T23:60:00Z": "does not exist",
    "2024-01-01T23:59:60Z": "does not exist",
    "0000-01-01T00:00:00Z": "does not exist",
    "1677-12-31T23:59:59Z": "outside of the years 1678 to 2261",
    "2262-01-01T00:00:00Z": "outside of the years 1678 to 2261",
    "2261-12-31T23:59:59-00:01": "outside of the years 1678 to 2261",
    "1678-01-01T00:00:00+00:01": "outside of the years 1678 to 2261",
    "2024-01-01T00:00:00+24:00": "impossible offset",
    "2024-01-01T00:00:00-10:60": "impossible offset",
    "2024-01-01T00:00:00": "no time zone",
    "2024-01-01T00:00:00.123": "no time zone",
    "2024-01-01T00:00:00.1234567890Z": "not an RFC 3339 time",
    "2024-01-01T00:00:00.Z": "not an RFC 3339 time",
    "2024-01-01T00:00Z": "not an RFC 3339 time",
    "2024-1-01T00:00:00Z": "not an RFC 3339 time",
    "2024-01-01T00:00:00 Z": "not an RFC 3339 time",
    " 2024-01-01T00:00:00Z": "not an RFC 3339 time",
    "2024-01-01T00:00:00Z\n": "not an RFC 3339 time",
    "2024-01-01T0٣:00:00Z": "not an RFC 3339 time",
    "2024-01-01T00:00:0-Z": "not an RFC 3339 time",
    "1704067200": "not an RFC 3339 time",
    "now": "not an RFC 3339 time",
    "": "not an RFC 3339 time",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_time_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[text]) as alone:
        parse_time(text)
    good = "2024-01-01T00:00:00Z"
    for column in ([text, good], [good, text, good], [good, good, text], [text, text]):
        with pytest.raises(ValueError, match=REFUSED[text]) as together:
            parse_times(column)
        assert str(together.value) == str(alone.value)


def test_the_first_wrong_time_of_a_column_is_the_one_named() -> None:
    with pytest.raises(ValueError, match="2024-02-30"):
        parse_times(["2024-01-01T00:00:00.1Z", "2024-02-30T00:00:00.12Z", "2024-02-31T00:00:00.1Z"])


def test_a_long_text_is_cut_in_the_message() -> None:
    with pytest.raises(ValueError, match="RFC 3339") as error:
        parse_time("9" * 1_000_000)
    assert len(str(error.value)) < 200


@given(st.lists(TIMES, min_size=1, max_size=4), st.data())
def test_one_wrong_character_is_treated_as_by_the_scalar_parser(
    times: list[int], data: st.DataObject
) -> None:
    texts = format_times(np.array(times, np.int64))
    row = data.draw(st.integers(0, len(texts) - 1))
    at = data.draw(st.integers(0, len(texts[row]) - 1))
    other = data.draw(st.one_of(st.sampled_from("0123456789-:TZ. +"), st.characters()))
    texts[row] = texts[row][:at] + other + texts[row][at + 1 :]
    try:
        times[row] = parse_time(texts[row])
        reason = None
    except ValueError as error:
        reason = str(error)
    if reason is None:
        assert parse_times(texts).tolist() == times
    else:
        with pytest.raises(ValueError) as together:  # noqa: PT011 - the message is compared
            parse_times(texts)
        assert str(together.value) == reason


def test_columns_that_cross_hours_days_and_years() -> None:
    start = parse_time("1999-12-31T22:59:59.999000Z")
    times = [start + i * 61 * 10**9 for i in range(200)] + [start]
    assert parse_times([format_time(t) for t in times]).tolist() == times


def test_an_empty_column() -> None:
    assert parse_times([]).dtype == np.int64
    assert len(parse_times([])) == 0
    assert format_times(np.empty(0, np.int64)) == []
