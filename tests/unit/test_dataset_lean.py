"""LEAN trade files, against pandas reading them in its own way. Real data where it is there."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from market_data_core.batch import EventBatch
from market_data_core.codecs import parse_time
from market_data_core.config import Dataset, Settings
from market_data_core.errors import DatasetError, UsageError
from market_data_pipeline.producers.dataset import DatasetProvider, file_provider, find_dataset
from market_data_pipeline.producers.provider import BadRow

DATA = Path(os.environ.get("MDP_DATA", Path(__file__).parents[3] / "shared" / "data")) / "equity"
Archive = Callable[[str, str], Path]


def lean(*paths: Path, start: int | None = None, end: int | None = None) -> DatasetProvider:
    named = [find_dataset(Settings(), str(path), "lean", None) for path in paths]
    return file_provider(Settings(), named, start=start, end=end)


def events(provider: DatasetProvider) -> EventBatch:
    items = list(provider.batches())
    assert not [item for item in items if isinstance(item, BadRow)]
    batches = [item for item in items if isinstance(item, EventBatch)]
    return EventBatch.concat(batches) if batches else EventBatch.empty()


def real(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there; set MDP_DATA to the folder of the market data")
    return path


def frame(path: Path, columns: list[str]) -> pd.DataFrame:
    """The file as pandas reads it by itself."""
    return pd.read_csv(path, header=None, names=columns)


def utc(path: Path, ms: pd.Series[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Milliseconds of the day as UTC, by pandas' own time zones."""
    day = pd.Timestamp(path.name.split("_")[2])
    local = pd.DatetimeIndex(day + pd.to_timedelta(ms, unit="ms"))
    return np.asarray(local.tz_localize("America/New_York").as_unit("ns").asi8)


@pytest.mark.parametrize(
    ("name", "rows", "first", "last"),
    [
        ("tick_spy_20131007_trade.zip", 250_601, "2013-10-07T08:00:00.464Z", "2013-10-07T23:59:59.536Z"),
        ("tick_ibm_20131007_trade.zip", 24_293, "2013-10-07T08:00:30.270Z", "2013-10-07T23:26:07.550Z"),
        ("tick_ibm_20131008_trade.zip", 33_381, "2013-10-08T12:47:49.457Z", "2013-10-08T23:23:56.822Z"),
    ],
)
def test_every_trade_of_a_day(name: str, rows: int, first: str, last: str) -> None:
    path = real(name)
    got = events(lean(path))
    want = frame(path, ["ms", "price", "size", "exchange", "condition", "suspicious"])
    assert len(got) == len(want) == rows
    assert (int(got.src_ts[0]), int(got.src_ts[-1])) == (parse_time(first), parse_time(last))
    assert np.array_equal(got.src_ts, utc(path, want["ms"]))
    assert np.array_equal(got.c, want["price"] / 10_000)
    assert got.o is got.c or np.array_equal(got.o, got.c)
    assert np.array_equal(got.v, want["size"])
    assert np.array_equal(got.seq, np.arange(1, rows + 1))
    (series,) = got.series
    assert (series.provider, series.symbol, series.kind) == ("lean", name.split("_")[1].upper(), "tick")
    assert not got.ingest_ts.any()


@pytest.mark.parametrize(
    ("name", "interval"), [("minute_spy_20131007_trade.zip", "1m"), ("second_spy_20131007_trade.zip", "1s")]
)
def test_bars_of_the_vendor(name: str, interval: str) -> None:
    path = real(name)
    got = events(lean(path))
    want = frame(path, ["ms", "o", "h", "l", "c", "v"])
    assert np.array_equal(got.src_ts, utc(path, want["ms"]))
    for column in "ohlc":
        assert np.array_equal(getattr(got, column), want[column] / 10_000)
    assert np.array_equal(got.v, want["v"])
    assert [(s.kind, s.interval) for s in got.series] == [("bar", interval)]


def test_three_files_are_one_stream_in_time_order() -> None:
    paths = [real(f"tick_{n}_trade.zip") for n in ("ibm_20131008", "spy_20131007", "ibm_20131007")]
    provider = lean(*paths)
    got = events(provider)
    assert len(got) == 250_601 + 24_293 + 33_381
    assert np.all(np.diff(got.src_ts) >= 0)
    assert provider.disorder.rows == 0
    for symbol in ("SPY", "IBM"):
        rows = got.take(np.array([s.symbol == symbol for s in got.series])[got.code])
        alone = events(lean(*sorted(p for p in paths if symbol.lower() in p.name)))
        assert np.array_equal(rows.src_ts, alone.src_ts)
        assert np.array_equal(rows.seq, alone.seq), "ties keep the file's order"
        assert np.array_equal(rows.c, alone.c)


def test_reading_again_gives_the_same_ids() -> None:
    path = real("tick_ibm_20131007_trade.zip")
    ids = [[e.event_id for e in events(lean(path)).events()] for _ in range(2)]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 24_293


def test_a_range_is_half_open() -> None:
    path = real("tick_spy_20131007_trade.zip")
    whole = events(lean(path))
    start, end = int(whole.src_ts[1000]), int(whole.src_ts[200_000])
    part = events(lean(path, start=start, end=end))
    want = whole.take((whole.src_ts >= start) & (whole.src_ts < end))
    assert np.array_equal(part.src_ts, want.src_ts)
    assert np.array_equal(part.seq, want.seq)
    assert part.src_ts[0] == start
    assert part.src_ts[-1] < end


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    def make(inner: str, rows: str) -> Path:
        path = tmp_path / f"{inner}.zip"
        with zipfile.ZipFile(path, "w") as out:
            out.writestr(inner, rows)
        return path

    return make


@pytest.mark.parametrize(
    ("day", "opening"),
    [
        ("20130308", "2013-03-08T14:30:00Z"),
        ("20130310", "2013-03-10T13:30:00Z"),
        ("20130311", "2013-03-11T13:30:00Z"),
        ("20131101", "2013-11-01T13:30:00Z"),
        ("20131103", "2013-11-03T14:30:00Z"),
        ("20131104", "2013-11-04T14:30:00Z"),
    ],
)
def test_half_past_nine_around_the_change_of_clocks(archive: Archive, day: str, opening: str) -> None:
    got = events(lean(archive(f"{day}_spy_Trade_Tick.csv", "34200000,1674100,100,P,2000,0\n")))
    assert got.src_ts.tolist() == [parse_time(opening)]


def test_the_name_decides(archive: Archive) -> None:
    got = events(lean(archive("20131007_brk.b_minute_trade.csv", "0,10000,20000,5000,15000,7\n")))
    (event,) = got.events()
    assert (event.symbol, event.kind, event.interval) == ("BRK.B", "bar", "1m")
    assert (event.o, event.h, event.l, event.c, event.v) == (1.0, 2.0, 0.5, 1.5, 7.0)
    assert event.src_ts == parse_time("2013-10-07T04:00:00Z")


@pytest.mark.parametrize(
    "inner",
    ["20131007_spy_Quote_Tick.csv", "spy.csv", "20131007_spy_hour_trade.csv", "2013107_spy_Trade_Tick.csv"],
)
def test_other_files_are_refused(archive: Archive, inner: str) -> None:
    with pytest.raises(DatasetError, match=f"{inner} is no LEAN trade file"):
        lean(archive(inner, "0,1,1\n"))
    with pytest.raises(DatasetError, match="20131399 does not exist"):
        lean(archive("20131399_spy_Trade_Tick.csv", "0,1,1\n"))


def test_a_time_outside_of_the_day_is_a_bad_row(archive: Archive) -> None:
    rows = "86399999,10000,1,P,0,0\n86400000,10000,1,P,0,0\n-1,10000,1,P,0,0\n"
    items = list(lean(archive("20131007_spy_Trade_Tick.csv", rows)).batches())
    bad = [item for item in items if isinstance(item, BadRow)]
    assert [b.place.rpartition(":")[2] for b in bad] == ["2", "3"]
    assert bad[0].reason == "time 86400000 is not within the day"


def test_files_outside_of_the_range_are_not_opened(archive: Archive) -> None:
    for day in ("20131007", "20131008", "20131009"):
        archive(f"{day}_spy_Trade_Tick.csv", "34200000,1674100,100,P,2000,0\n")
    folder = archive("20131010_spy_Trade_Tick.csv", "rubbish that would fail\n").parent
    at = parse_time("2013-10-08T13:30:00Z")
    provider = file_provider(
        Settings(), [find_dataset(Settings(), f"{folder}/*.zip", "lean", None)], start=at, end=at + 1
    )
    assert events(provider).src_ts.tolist() == [at]


def test_the_provider_is_called_lean_unless_named() -> None:
    configured = Settings.model_validate(
        {
            "datasets": {
                "a": {"path": "a.zip", "preset": "lean"},
                "b": {"path": "b.zip", "preset": "lean", "provider": "quantconnect"},
            }
        }
    )
    assert find_dataset(configured, "a", None, None).provider == "lean"
    assert find_dataset(configured, "a", "lean", "mine").provider == "mine"
    assert find_dataset(configured, "b", None, None).provider == "quantconnect"


def test_what_names_no_dataset(tmp_path: Path) -> None:
    settings = Settings.model_validate({"datasets": {"spy_day": {"path": "a.zip", "preset": "lean"}}})
    with pytest.raises(UsageError, match=r"no dataset 'nope' in the configuration \(it has spy_day\)"):
        find_dataset(settings, "nope", None, None)
    file = tmp_path / "x.csv"
    file.write_text("a\n")
    with pytest.raises(UsageError, match="nothing says how to read"):
        find_dataset(settings, str(file), None, None)
    with pytest.raises(UsageError, match="there is no preset 'learn'; use --preset lean"):
        find_dataset(settings, "x.zip", "learn", None)
    with pytest.raises(UsageError, match="give --dataset store alone"):
        file_provider(
            settings,
            [find_dataset(settings, "store", None, None), find_dataset(settings, "spy_day", None, None)],
        )
    with pytest.raises(DatasetError, match=r"there is no file a\.zip; correct datasets\.spy_day"):
        file_provider(settings, [find_dataset(settings, "spy_day", None, None)])


def test_a_configured_layout_and_a_preset_exclude_each_other() -> None:
    columns = {"time": "t", "price": "p"}
    settings = Settings(
        datasets={"d": Dataset.model_validate({"path": "a.csv", "columns": columns, "symbol": "A"})}
    )
    with pytest.raises(UsageError, match="leave out --preset lean"):
        find_dataset(settings, "d", "lean", None)
