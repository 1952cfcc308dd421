"""``mdp features``: the features of stored bars, and how it fails."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from market_data_core.batch import BarBatch
from market_data_core.config_signals import Features
from market_data_core.times import format_time
from market_data_pipeline.cli.app import main
from market_data_pipeline.features.definitions import definitions
from market_data_pipeline.features.offline import OfflineFeatures
from market_data_store import StoreClient
from tests.integration.store_samples import flush
from tests.unit.feature_oracle import INTERVAL, T0, batch, walk

Mdp = Callable[..., tuple[int, str, str]]
NAMES = ("vwap_1m", "ret_30s", "vol_5m")
SPAN = ("--from", format_time(T0 + 300 * INTERVAL), "--to", format_time(T0 + 900 * INTERVAL))


@pytest.fixture
def mdp(
    database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> Mdp:
    """Runs a command on the test's database; gives exit code, stdout and stderr."""
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("MDP_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["features", *args])
        out, err = capfdbinary.readouterr()
        code = end.value.code
        return code if isinstance(code, int) else 0, out.decode(), err.decode()

    return run


def stored(symbol: str, seed: int) -> BarBatch:
    """A thousand bars, of which some are missing."""
    candles = [c for c in walk(seed, 1000) if c.window % 97 > 2]
    return batch([replace(c, symbol=symbol) for c in candles])


@pytest.fixture
async def filled(store: StoreClient) -> StoreClient:
    """Two symbols of 2 s bars."""
    claim = await store.claim("t", "g", 0, "me")
    for number, symbol in enumerate(("IBM", "SPY"), 1):
        await store.commit(flush(claim, number, stored(symbol, number), window=INTERVAL))
    return store


def expected() -> list[dict[str, str | float | None]]:
    rows: list[dict[str, str | float | None]] = []
    for number, symbol in enumerate(("IBM", "SPY"), 1):
        bars = stored(symbol, number)
        for table in OfflineFeatures(definitions(Features(), INTERVAL, NAMES), INTERVAL).tables(bars):
            for i in range(len(table)):
                if 300 <= (table.ts[i] - T0) // INTERVAL < 900:
                    ts, at = format_time(int(table.ts[i])), format_time(int(table.at[i]))
                    values = {n: float(table.columns[n][i]) for n in NAMES}
                    known = {n: None if math.isnan(v) else v for n, v in values.items()}
                    key = {"provider": "sim", "symbol": symbol, "interval": "2s", "ts": ts, "at": at}
                    rows.append(key | known)
    return rows


@pytest.mark.usefixtures("filled")
def test_the_same_numbers_in_every_format(mdp: Mdp, tmp_path: Path) -> None:
    rows = expected()
    assert len(rows) == 2 * sum(w % 97 > 2 for w in range(300, 900))
    assert sum(row["ret_30s"] is None for row in rows) == 0 < sum(row["vol_5m"] is not None for row in rows)

    code, out, err = mdp("--symbol", "SPY,IBM", *SPAN, "--format", "json")
    assert (code, err) == (0, "")
    assert [json.loads(line) for line in out.splitlines()] == rows

    _, out, _ = mdp("--symbol", "SPY", "--symbol", "IBM", *SPAN, "--format", "csv", "--interval", "2000ms")
    assert list(csv.DictReader(io.StringIO(out))) == [{k: str(v) for k, v in row.items()} for row in rows]

    path = tmp_path / "features.parquet"
    code, out, err = mdp("--symbol", "SPY,IBM", *SPAN, "--format", "parquet", "--output", str(path))
    assert (code, out, err) == (0, "", "")
    frame = pq.read_table(path)
    for name in ("provider", "symbol", *NAMES):
        assert frame[name].to_pylist() == [row[name] for row in rows], name
    assert (np.diff(frame["at"].to_numpy().astype(np.int64)[:5]) == INTERVAL).all()


@pytest.mark.usefixtures("filled")
def test_a_table_of_chosen_features(mdp: Mdp) -> None:
    start, end = format_time(T0), format_time(T0 + 10 * INTERVAL)
    code, out, _ = mdp(
        "--symbol", "SPY", "--from", start, "--to", end, "--names", "price,rsi", "--provider", "sim"
    )
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["provider", "symbol", "interval", "ts", "at", "price", "rsi"]
    assert len(lines) == 8, "a head and bars 3 to 9"
    code, out, _ = mdp("--symbol", "SPY", *SPAN, "--provider", "nobody", "--format", "csv")
    assert (code, out) == (0, "provider,symbol,interval,ts,at,vwap_1m,ret_30s,vol_5m\n")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--names", "rssi"), "no feature is called 'rssi'; did you mean rsi?"),
        (
            ("--interval", "1m", "--names", "ret_30s"),
            "ret_30s has a horizon of 30s, shorter than the bars of 1m",
        ),
        (("--interval", "soon"), "--interval: 'soon' is not a duration"),
        (("--symbol", ","), "--symbol: name a symbol, as in --symbol SPY"),
    ],
)
def test_what_cannot_be_is_one_sentence(mdp: Mdp, args: tuple[str, ...], says: str) -> None:
    symbol = () if "--symbol" in args else ("--symbol", "SPY")
    code, out, err = mdp(*symbol, *SPAN, *args)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


def test_from_must_be_before_to(mdp: Mdp) -> None:
    code, _, err = mdp("--symbol", "SPY", "--from", "2024-01-02", "--to", "2024-01-01")
    assert (code, err) == (2, "mdp: --from 2024-01-02 must be before --to 2024-01-01\n")
