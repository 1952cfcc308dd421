"""Real trades through three processes and the embedded services, against a recount by pandas.

Two replays, at full speed and at once, and one micro-batcher. Every bar equals the recount; SPY's volume equals the
vendor's own minute bars; replaying again, whole or cut, changes no row.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

DATA = Path(os.environ.get("MDP_DATA", Path(__file__).parents[3] / "shared" / "data")) / "equity"
DAYS = {"SPY": ["20131007"], "IBM": ["20131007", "20131008"]}
MINUTE = 60_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real market data at {DATA}; set MDP_DATA"),
    pytest.mark.timeout(280),
]


class Mdp:
    """The command line, on services of its own."""

    def __init__(self, home: Path, **settings: str) -> None:
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("MDP_", "REDIS_", "DATABASE_"))}
        self._env = keep | {"MDP_HOME": str(home), "MDP_TELEMETRY__METRICS_PORT": "0"} | settings
        self._cwd = home

    def start(self, *args: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "market_data_pipeline.cli.app", *args]
        return subprocess.Popen(command, env=self._env, cwd=self._cwd, stdout=subprocess.PIPE, text=True)

    def run(self, *args: str) -> str:
        process = self.start(*args)
        out, _ = process.communicate(timeout=200)
        assert process.returncode == 0, (args, out)
        return out

    def bars(self, symbol: str) -> pd.DataFrame:
        out = self.run("store", "bars", "--symbol", symbol, "--interval", "60s", "--format", "csv")
        frame: pd.DataFrame = pd.read_csv(io.StringIO(out))
        return frame


@pytest.fixture(scope="module")
def mdp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mdp]:
    mdp = Mdp(tmp_path_factory.mktemp("home"))
    try:
        mdp.run("dev", "up")
        yield mdp
    finally:
        mdp.run("dev", "down")


@pytest.fixture(scope="module")
def replayed(mdp: Mdp) -> Mdp:
    replay_all(mdp)
    return mdp


def replay_all(mdp: Mdp) -> dict[str, int]:
    """Replay every day, two replays and a micro-batcher side by side; the batcher's summary."""
    replays = [
        mdp.start("stream", "replay", *_files(symbol), "--preset", "lean", "--speed", "max")
        for symbol in DAYS
    ]
    batcher = mdp.start("stream", "micro-batch", "--window", "1m", "--until-idle", "6s", "--json")
    for replay in replays:
        replay.communicate(timeout=120)
        assert replay.returncode == 0
    out, _ = batcher.communicate(timeout=120)
    assert batcher.returncode == 0, out
    summary: dict[str, int] = json.loads(out.splitlines()[-1])
    return summary


def _files(symbol: str) -> list[str]:
    files = [DATA / f"tick_{symbol.lower()}_{day}_trade.zip" for day in DAYS[symbol]]
    return [word for f in files for word in ("--dataset", str(f))]


def _csv(name: str, columns: list[str]) -> pd.DataFrame:
    with zipfile.ZipFile(DATA / name) as z:
        frame: pd.DataFrame = pd.read_csv(io.BytesIO(z.read(z.namelist()[0])), header=None, names=columns)
        return frame


def recount(symbol: str) -> pd.DataFrame:
    """Minute bars by pandas alone, indexed by UTC."""
    parts = []
    for day in DAYS[symbol]:
        frame = _csv(
            f"tick_{symbol.lower()}_{day}_trade.zip",
            ["ms", "price", "size", "venue", "condition", "suspicious"],
        )
        midnight = pd.Timestamp(day, tz="America/New_York")
        frame["ts"] = (
            (midnight + pd.to_timedelta(frame["ms"], unit="ms")).dt.tz_convert("UTC").dt.floor("min")
        )
        frame["price"] /= 10_000
        frame["notional"] = frame["price"] * frame["size"]
        grouped = frame.groupby("ts")
        bars = grouped["price"].agg(open="first", high="max", low="min", close="last")
        bars["volume"] = grouped["size"].sum()
        bars["vwap"] = grouped["notional"].sum() / bars["volume"]
        bars["n_events"] = grouped.size()
        parts.append(bars)
    out: pd.DataFrame = pd.concat(parts)
    return out


@pytest.mark.parametrize("symbol", list(DAYS))
def test_every_bar_equals_the_recount(replayed: Mdp, symbol: str) -> None:
    stored, want = replayed.bars(symbol), recount(symbol)
    assert list(pd.to_datetime(stored["ts"])) == list(want.index)
    for column in ("open", "high", "low", "close", "volume", "n_events"):
        np.testing.assert_array_equal(stored[column].to_numpy(), want[column].to_numpy(), err_msg=column)
    np.testing.assert_allclose(stored["vwap"], want["vwap"], rtol=1e-12)
    assert set(stored["revision"]) == {1}


def test_the_volume_is_the_vendors(replayed: Mdp) -> None:
    vendor = _csv("minute_spy_20131007_trade.zip", ["ms", "open", "high", "low", "close", "volume"])
    midnight = pd.Timestamp("20131007", tz="America/New_York")
    vendor.index = pd.DatetimeIndex(
        (midnight + pd.to_timedelta(vendor["ms"], unit="ms")).dt.tz_convert("UTC")
    )
    stored = replayed.bars("SPY")
    ours = pd.Series(stored["volume"].to_numpy(), pd.DatetimeIndex(pd.to_datetime(stored["ts"])))
    equal = int((vendor["volume"] == ours.reindex(vendor.index)).sum())
    assert (len(vendor), equal >= 825) == (828, True), equal


def test_replaying_again_changes_no_row(replayed: Mdp) -> None:
    before = {symbol: replayed.bars(symbol) for symbol in DAYS}
    summary = replay_all(replayed)
    assert summary["events"] > 300_000
    assert (summary["bars_stored"], summary["bars_amended"]) == (0, 0)
    for symbol, frame in before.items():
        pd.testing.assert_frame_equal(replayed.bars(symbol), frame)


def test_replaying_a_range_that_cuts_bars_changes_no_row(replayed: Mdp) -> None:
    before = replayed.bars("SPY")
    batcher = replayed.start("stream", "micro-batch", "--window", "1m", "--until-idle", "4s", "--json")
    window = ("--from", "2013-10-07T10:00:30-04:00", "--to", "2013-10-07T10:05:30-04:00")
    replayed.run("stream", "replay", *_files("SPY"), "--preset", "lean", *window)
    out, _ = batcher.communicate(timeout=120)
    summary = json.loads(out.splitlines()[-1])
    assert summary["bars_refused"] == 2, "the first and the last minute are cut"
    assert summary["bars_unchanged"] == 4
    pd.testing.assert_frame_equal(replayed.bars("SPY"), before)
