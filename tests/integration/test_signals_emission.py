"""Real trades become signals: produce, micro-batch and infer as processes, against a recount by pandas.

The seed's rules on a day of SPY and IBM in bars of two seconds, on four partitions with two workers. The topic and the
table hold the same signals; the second time around nothing is added.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest

from tests.integration.signals_recount import seed_signals
from tests.integration.test_real_ticks import DATA, Mdp

COLUMNS = ["symbol", "at", "name", "value", "score", "price"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real market data at {DATA}; set MDP_DATA"),
    pytest.mark.timeout(280),
]


@pytest.fixture(scope="module")
def mdp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mdp]:
    mdp = Mdp(tmp_path_factory.mktemp("home"), MDP_BUS__REDIS__PARTITIONS="4")
    try:
        mdp.run("dev", "up")
        yield mdp
    finally:
        mdp.run("dev", "down")


def replay(mdp: Mdp) -> None:
    for symbol in ("spy", "ibm"):
        mdp.run(
            "stream",
            "replay",
            "--dataset",
            str(DATA / f"tick_{symbol}_20131007_trade.zip"),
            "--preset",
            "lean",
        )


def infer(mdp: Mdp, *more: str) -> list[dict[str, int]]:
    """Two workers, until nothing comes; their summaries."""
    workers = [
        mdp.start("stream", "infer", "--adapter", "rules", "--until-idle", "3s", "--json", *more)
        for _ in range(2)
    ]
    summaries = []
    for worker in workers:
        out, _ = worker.communicate(timeout=120)
        assert worker.returncode == 0, out
        summaries.append(json.loads(out.splitlines()[-1]))
    return summaries


def seconds(times: pd.Series[str]) -> pd.Series[int]:
    stamps = pd.to_datetime(times)
    return (stamps - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(seconds=1)


def stored(mdp: Mdp) -> pd.DataFrame:
    rows = [json.loads(line) for line in mdp.run("store", "signals", "--format", "json").splitlines()]
    return flat(rows)


def published(mdp: Mdp) -> pd.DataFrame:
    out = mdp.run("stream", "tail", "--topic", "mdp.signals", "--from-start", "--limit", "1000000", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert {row["type"] for row in rows} == {"signal"}
    # At least once: the newest of each key counts.
    return flat(list({(r["provider"], r["symbol"], r["ts"], r["name"]): r for r in rows}.values()))


def flat(rows: list[dict[str, object]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    frame["at"] = seconds(frame["ts"])
    frame["price"] = [meta["price"] for meta in frame["meta"]]
    assert all(meta == {"adapter": "rules", "window": "2s", "price": meta["price"]} for meta in frame["meta"])
    assert set(frame["provider"]) == {"lean"}
    return frame[COLUMNS].sort_values(COLUMNS).reset_index(drop=True)


def wanted(mdp: Mdp) -> tuple[pd.DataFrame, set[tuple[str, int, str]]]:
    parts = []
    for symbol in ("SPY", "IBM"):
        out = mdp.run("store", "bars", "--symbol", symbol, "--interval", "2s", "--format", "csv")
        parts.append(pd.read_csv(io.StringIO(out)))
    bars = pd.concat(parts)
    bars["ts"] = seconds(bars["ts"])
    fired, unsure = seed_signals(bars[["symbol", "ts", "close"]], 2)
    return fired[COLUMNS], set(zip(unsure["symbol"], unsure["at"], unsure["name"], strict=True))


def without(frame: pd.DataFrame, keys: set[tuple[str, int, str]]) -> pd.DataFrame:
    kept = [key not in keys for key in zip(frame["symbol"], frame["at"], frame["name"], strict=True)]
    return frame[kept].sort_values(COLUMNS).reset_index(drop=True)


def test_signals_of_a_real_day_equal_the_recount(mdp: Mdp) -> None:
    replay(mdp)
    mdp.run("stream", "micro-batch", "--window", "2s", "--until-idle", "2s")
    summaries = infer(mdp)
    table, (expected, unsure) = stored(mdp), wanted(mdp)
    assert sum(s["signals_stored"] for s in summaries) == len(table)
    assert len(unsure) < 20
    pd.testing.assert_frame_equal(without(table, unsure), without(expected, unsure), check_dtype=False)
    assert set(table["name"]) >= {"high_volatility", "rsi_overbought", "rsi_oversold"}
    assert np.isfinite(table["value"]).all()
    pd.testing.assert_frame_equal(published(mdp), table)

    replay(mdp)
    mdp.run("stream", "micro-batch", "--window", "2s", "--until-idle", "2s")
    again = infer(mdp)
    assert sum(s["signals_stored"] for s in again) == 0
    pd.testing.assert_frame_equal(stored(mdp), table)

    # Another group decides on everything anew, and finds every signal there.
    anew = infer(mdp, "--group", "another")
    assert sum(s["bars"] for s in anew) > 10_000
    assert sum(s["signals_stored"] for s in anew) == 0
    pd.testing.assert_frame_equal(published(mdp), table)
