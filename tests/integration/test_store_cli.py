"""``mdp store``: what it prints, and how it fails."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from market_data_core.events import Signal
from market_data_pipeline.cli.app import main
from market_data_store import JobRunTracker, StoreClient
from tests.integration.store_samples import T0, S, bars, flush
from tests.servers.postgres import PASSWORD, PostgresServer

Mdp = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mdp(
    database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Mdp:
    """Runs a command on the test's database; gives exit code, stdout and stderr."""
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("MDP_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["store", *args])
        out, err = capfd.readouterr()
        code = end.value.code
        return code if isinstance(code, int) else 0, out, err

    return run


@pytest.fixture
async def filled(store: StoreClient) -> StoreClient:
    claim = await store.claim("t", "g", 0, "me")
    await store.commit(flush(claim, 1, bars(3, symbols=["SPY", "IBM"])))
    await store.commit(flush(claim, 2, bars(1, symbols=["VOD"], notional=False, provider="vendor")))
    await store.write_signals([Signal("sim", "SPY", T0, "cross", 1.0, 0.5, {"window": "1m"})])
    async with JobRunTracker(
        store, "micro-batch", command="mdp stream micro-batch", counters=lambda: {"bars": 6}
    ):
        pass
    return store


@pytest.mark.usefixtures("filled")
def test_bars_as_csv(mdp: Mdp) -> None:
    code, out, err = mdp("bars", "--interval", "60s", "--format", "csv")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "provider,symbol,interval,ts,open,high,low,close,volume,vwap,n_events,revision"
    assert lines[1] == "sim,IBM,1m,2023-11-14T22:14:00.000000Z,103.0,104.0,102.0,103.5,10.0,103.0,3,1"
    assert lines[-1] == "vendor,VOD,1m,2023-11-14T22:14:00.000000Z,100.0,101.0,99.0,100.5,10.0,,3,1"
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(r["symbol"], r["ts"]) for r in rows] == sorted((r["symbol"], r["ts"]) for r in rows)
    assert len(rows) == 7


@pytest.mark.usefixtures("filled")
def test_bars_of_a_range_as_json(mdp: Mdp) -> None:
    span = ("--from", "2023-11-14T22:15:00Z", "--to", "2023-11-14T23:16:00+01:00")
    for args in (("--format", "json"), ("--json",)):
        code, out, _ = mdp("bars", "--interval", "1m", "--symbol", "SPY,VOD", *span, *args)
        assert code == 0
        assert [json.loads(line) for line in out.splitlines()] == [
            {
                **{"provider": "sim", "symbol": "SPY", "interval": "1m", "ts": "2023-11-14T22:15:00.000000Z"},
                **{"open": 101.0, "high": 102.0, "low": 100.0, "close": 101.5, "volume": 10.0, "vwap": 101.0},
                **{"n_events": 3, "revision": 1},
            }
        ]
    assert mdp("bars", "--interval", "1m", "--from", "2023-11-15", "--format", "json") == (0, "", "")


@pytest.mark.usefixtures("filled")
def test_bars_as_table_and_parquet(mdp: Mdp, tmp_path: Path) -> None:
    code, out, _ = mdp("bars", "--interval", "1m", "--provider", "vendor")
    assert code == 0
    assert "VOD" in out
    assert "IBM" not in out
    file = tmp_path / "bars.parquet"
    assert mdp("bars", "--interval", "1m", "--format", "parquet", "--output", str(file))[0] == 0
    table = pq.read_table(file)
    assert table.num_rows == 7
    assert table.column("symbol").to_pylist() == ["IBM"] * 3 + ["SPY"] * 3 + ["VOD"]
    assert table.column("vwap").to_pylist()[-1] is None
    assert table.column("ts").cast("int64").to_pylist()[0] == T0


@pytest.mark.usefixtures("filled")
def test_signals_and_jobs(mdp: Mdp) -> None:
    code, out, _ = mdp("signals", "--name", "cross", "--json")
    assert code == 0
    assert json.loads(out) == {
        **{"provider": "sim", "symbol": "SPY", "ts": "2023-11-14T22:14:00.000000Z", "name": "cross"},
        **{"value": 1.0, "score": 0.5, "meta": {"window": "1m"}},
    }
    assert mdp("signals", "--symbol", "IBM", "--format", "csv") == (
        *(0, "provider,symbol,ts,name,value,score,meta\n"),
        "",
    )
    code, out, _ = mdp("jobs", "--json")
    job: dict[str, Any] = json.loads(out)
    assert (job["job"], job["outcome"], job["counters"]) == ("micro-batch", "done", {"bars": 6})
    code, out, _ = mdp("jobs", "--outcome", "done")
    assert "micro-batch" in out
    assert mdp("jobs", "--outcome", "failed", "--json") == (0, "", "")


@pytest.fixture
async def signals(store: StoreClient) -> list[Signal]:
    """In the order in which they are read."""
    made = [
        Signal(provider, symbol, T0 + at * S, name, -1.5, 0.25, {"window": "1m", "n": 2} if at else {})
        for symbol in ("IBM", "SPY")
        for at in (0, 60)
        for provider in ("sim", "vendor")
        for name in ("cross", "spike")
    ]
    await store.write_signals(made[::-1])
    return made


def test_signals_as_csv_are_ordered(mdp: Mdp, signals: list[Signal]) -> None:
    code, out, err = mdp("signals", "--format", "csv")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "provider,symbol,ts,name,value,score,meta"
    assert out.splitlines()[1] == "sim,IBM,2023-11-14T22:14:00.000000Z,cross,-1.5,0.25,"
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(r["symbol"], r["provider"], r["name"]) for r in rows] == [
        (s.symbol, s.provider, s.name) for s in signals
    ]
    assert json.loads(rows[-1]["meta"]) == {"window": "1m", "n": 2}


def test_signals_are_chosen_by_name_symbol_provider_time_and_number(mdp: Mdp, signals: list[Signal]) -> None:
    def found(*args: str) -> list[tuple[str, str, str, str]]:
        code, out, _ = mdp("signals", *args, "--json")
        assert code == 0
        rows = [json.loads(line) for line in out.splitlines()]
        return [(r["symbol"], r["ts"][14:16], r["provider"], r["name"]) for r in rows]

    everything = [(s.symbol, "14" if s.ts == T0 else "15", s.provider, s.name) for s in signals]
    assert found() == everything
    assert found("--name", "spike") == [e for e in everything if e[3] == "spike"]
    assert found("--symbol", "SPY,VOD") == [e for e in everything if e[0] == "SPY"]
    assert found("--symbol", "SPY", "--symbol", "IBM") == everything
    assert found("--provider", "vendor") == [e for e in everything if e[2] == "vendor"]
    assert found("--from", "2023-11-14T22:15:00Z") == [e for e in everything if e[1] == "15"]
    assert found("--to", "2023-11-14T22:15:00Z") == [e for e in everything if e[1] == "14"]
    assert found("--limit", "3") == everything[:3]
    assert found("--limit", "99") == everything
    code, out, _ = mdp("signals", "--limit", "1")
    assert code == 0
    assert out.split() == [
        *("provider", "symbol", "ts", "name", "value", "score", "meta"),
        *("sim", "IBM", "2023-11-14T22:14:00.000000Z", "cross", "-1.5", "0.25"),
    ]


def test_signals_as_parquet_and_in_files(mdp: Mdp, signals: list[Signal], tmp_path: Path) -> None:
    made = {}
    for name in ("parquet", "csv", "json"):
        made[name] = tmp_path / f"signals.{name}"
        assert mdp("signals", "--format", name, "-o", str(made[name])) == (0, "", "")
    table = pq.read_table(made["parquet"])
    assert table.column_names == ["provider", "symbol", "ts", "name", "value", "score", "meta"]
    assert [str(kind) for kind in table.schema.types[2:]] == [
        *("timestamp[ns, tz=UTC]", "dictionary<values=string, indices=int32, ordered=0>"),
        *("double", "double", "string"),
    ]
    rows = zip(
        *(table.column(n).to_pylist() for n in ("provider", "symbol", "name", "value", "score")), strict=True
    )
    assert list(rows) == [(s.provider, s.symbol, s.name, s.value, s.score) for s in signals]
    assert table.column("ts").cast("int64").to_pylist() == [s.ts for s in signals]
    metas = [json.loads(text) if text else {} for text in table.column("meta").to_pylist()]
    assert metas == [s.meta for s in signals]
    assert made["csv"].read_text() == mdp("signals", "--format", "csv")[1]
    assert [json.loads(line)["meta"] for line in made["json"].read_text().splitlines()] == metas
    few = tmp_path / "few.parquet"
    assert mdp("signals", "--limit", "3", "--format", "parquet", "--output", str(few))[0] == 0
    assert pq.read_table(few).to_pylist() == table.slice(0, 3).to_pylist()
    code, _, err = mdp("signals", "--output", "s.txt")
    assert (code, "choose --format json, csv or parquet" in err) == (2, True)


def test_the_schema_goes_down_and_up(mdp: Mdp) -> None:
    assert mdp("check") == (0, "the database is as declared\n", "")
    code, out, _ = mdp("current", "--json")
    assert json.loads(out)["revision"] == "0006"
    assert mdp("downgrade", "-1")[0] == 0
    code, out, _ = mdp("check", "--json")
    assert code == 1
    assert not json.loads(out)["ok"]
    code, _, err = mdp("bars", "--interval", "1m")
    assert code == 1
    assert "run `mdp store upgrade`" in err
    code, out, _ = mdp("upgrade", "--compress-after", "14d", "--retention", "off")
    assert code == 0
    assert out.startswith("the schema is at 0006")
    assert mdp("check")[0] == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("bars", "--interval", "1x"), "--interval: '1x' is not a duration"),
        (("bars", "--from", "2025-13-01"), "--from: time"),
        (("bars", "--from", "2025-10-01T00:00:00"), "--from: time .* has no time zone"),
        (
            ("bars", "--from", "2025-10-02", "--to", "2025-10-01"),
            "--from 2025-10-02 must be before --to 2025-10-01",
        ),
        (("bars", "--format", "xml"), "xml"),
        (("bars", "--output", "x.txt"), "--output: choose --format"),
        (("jobs", "--outcome", "lost"), "--outcome: must be one of running, done"),
        (("upgrade", "12"), "use head, base or one of"),
        (("upgrade", "--retention", "1d"), "retention must not be shorter"),
        (("upgrade", "--compress-after", "soon"), "--compress-after: must be a duration"),
        (("downgrade",), "(?i)missing argument .revision"),
    ],
)
def test_wrong_usage_is_one_sentence(mdp: Mdp, args: tuple[str, ...], said: str) -> None:
    code, out, err = mdp(*args)
    assert code == 2
    assert out == ""
    assert re.search(said, err)
    assert "Traceback" not in err


def test_a_wrong_password_is_not_shown(
    mdp: Mdp, monkeypatch: pytest.MonkeyPatch, postgres: PostgresServer
) -> None:
    monkeypatch.setenv("DATABASE_URL", postgres.url().replace(PASSWORD, "wr0ng"))
    code, _, err = mdp("bars", "--interval", "1m")
    assert code == 1
    assert "refuses the login" in err
    assert "wr0ng" not in err
    assert err.count("\n") == 1
