"""``mdp signals report`` on a real PostgreSQL: the table, JSON, the picture, and how it fails."""

from __future__ import annotations

import json
import re
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from market_data_core.batch import BarBatch
from market_data_core.events import Signal
from market_data_pipeline.cli.app import main
from market_data_pipeline.signals.reading import Question, read_outcomes, steps_to
from market_data_pipeline.signals.report import figures
from market_data_store import StoreClient
from tests.integration.store_samples import T0, S, bars, flush

Mdp = Callable[..., tuple[int, str, str]]
SPAN = ("--from", "2023-11-14", "--to", "2023-11-16")


@pytest.fixture
def mdp(
    database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Mdp:
    """Runs ``mdp signals report`` on the test's database; gives exit code, stdout and stderr."""
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("MDP_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["signals", "report", *args])
        out, err = capfd.readouterr()
        code = end.value.code
        return code if isinstance(code, int) else 0, out, err

    return run


def walk(count: int, symbol: str, seed: int, *, drift: float = 0.0, provider: str = "sim") -> BarBatch:
    """Bars of 2 s whose closes are a random walk of about 1 bp a bar."""
    made = bars(count, symbols=[symbol], interval="2s", step=2 * S, provider=provider)
    close = 100 * np.exp(np.cumsum(np.random.default_rng(seed).normal(drift, 1e-4, count)))
    return replace(made, open=close, high=close, low=close, close=close)


def after_bar(batch: BarBatch, row: int, name: str, value: float, **meta: Any) -> Signal:
    """A signal made of the bar of that row."""
    provider, symbol, _ = batch.series[0]
    return Signal(provider, symbol, int(batch.ts[row]) + 2 * S, name, value, 0.5, meta)


@pytest.fixture
async def filled(store: StoreClient) -> dict[str, BarBatch]:
    """An hour of two symbols: ``oracle`` knows the next minute, ``coin`` does not, ``quiet`` has no direction."""
    claim = await store.claim("t", "g", 0, "me")
    made = {symbol: walk(1800, symbol, seed) for seed, symbol in enumerate(("IBM", "SPY"), 1)}
    rng = np.random.default_rng(3)
    signals = []
    for number, batch in enumerate(made.values(), 1):
        await store.commit(flush(claim, number, batch, window=2 * S))
        for row in range(0, 1800, 20):
            ahead = batch.close[min(row + 30, 1799)] - batch.close[row]
            signals.append(after_bar(batch, row, "oracle", float(np.sign(ahead)) or 1.0))
            signals.append(after_bar(batch, row, "coin", float(rng.choice([-1.0, 1.0]))))
            signals.append(after_bar(batch, row, "quiet", 0.0))
        signals.append(after_bar(batch, 7, "coin", 1.0, withdrawn=True))
    await store.write_signals(signals)
    return made


def rows_of(out: str) -> dict[tuple[str | None, str | None], dict[str, Any]]:
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == len({(row["name"], row["symbol"]) for row in rows})
    return {(row["name"], row["symbol"]): row for row in rows}


def test_json_has_a_line_a_group(mdp: Mdp, filled: dict[str, BarBatch]) -> None:
    code, out, err = mdp(*SPAN, "--interval", "2s", "--json")
    assert (code, err) == (0, "")
    rows = rows_of(out)
    names = ("coin", "oracle", "quiet")
    assert list(rows) == [
        (None, None),
        *((name, None) for name in names),
        *((name, symbol) for name in names for symbol in ("IBM", "SPY")),
    ]
    for batch in filled.values():
        symbol = batch.series[0].symbol
        oracle = rows["oracle", symbol]
        # A signal every 20 bars; the last two have less than the 30 bars of a minute before them.
        at = np.arange(0, 1770, 20)
        forward = 1e4 * np.abs(batch.close[at + 30] / batch.close[at] - 1)
        counts = (oracle["count"], oracle["scored"], oracle["open"], oracle["withdrawn"])
        assert counts == (90, 89, 1, 0)
        assert oracle["mean_bps"] == pytest.approx(forward.mean())
        assert oracle["median_bps"] == pytest.approx(np.median(forward))
        assert (oracle["worst_bps"], oracle["best_bps"]) == pytest.approx((forward.min(), forward.max()))
        assert oracle["hit_rate"] == 1.0
        assert oracle["low_bps"] < oracle["mean_bps"] < oracle["high_bps"]
        assert rows["quiet", symbol]["mean_abs_bps"] == pytest.approx(forward.mean())
        assert rows["quiet", symbol]["hit_rate"] is None
        assert rows["coin", symbol]["withdrawn"] == 1
    coin, oracle = rows["coin", None], rows["oracle", None]
    assert coin["low_bps"] < 0 < coin["high_bps"]
    assert oracle["t"] > 5 > abs(coin["t"])
    assert (oracle["group"], oracle["horizon"], oracle["interval"]) == ("name", "1m", "2s")
    assert rows[None, None]["count"] == 6 * 90 + 2


@pytest.mark.usefixtures("filled")
def test_what_is_asked_for_is_reported(mdp: Mdp) -> None:
    code, out, _ = mdp(*SPAN, "--symbols", "SPY,VOD", "--name", "coin", "--horizon", "10s", "--json")
    assert code == 0
    rows = rows_of(out)
    assert list(rows) == [(None, None), ("coin", None), ("coin", "SPY")]
    assert (rows["coin", "SPY"]["count"], rows["coin", "SPY"]["horizon"]) == (91, "10s")
    assert rows["coin", "SPY"]["interval"] == "2s", "without --interval that of micro_batch.window_ms"
    for none in (("--provider", "vendor"), ("--name", "none"), ("--symbols", "none")):
        code, out, _ = mdp(*SPAN, *none, "--json")
        assert code == 0
        assert list(rows_of(out)) == [(None, None)]
    code, out, _ = mdp("--from", "2023-11-14T22:20:00Z", "--to", "2023-11-14T22:21:00Z", "--json")
    at = {T0 + (2 + 40 * i) * S for i in range(90)}
    inside = [t for t in at if T0 + 360 * S <= t < T0 + 420 * S]
    assert rows_of(out)["coin", "SPY"]["count"] == len(inside)


@pytest.mark.usefixtures("filled")
def test_the_table_is_for_people(mdp: Mdp) -> None:
    code, out, err = mdp(*SPAN)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("Signals of 2023-11-14 to 2023-11-16: return over 1m")
    assert re.split(r"\s{2,}", lines[1].strip())[:6] == [
        "name",
        "symbol",
        "count",
        "scored",
        "open",
        "withdrawn",
    ]
    assert lines[2].startswith("(all)")
    [oracle] = [line for line in lines if re.match(r"oracle\s+\(all\)", line)]
    assert re.match(
        r"oracle\s+\(all\)\s+180\s+178\s+2\s+0\s+100\.0\s+\+\d+\.\d\d\s+\+\d+\.\d\d … \+\d+\.\d\d", oracle
    )


@pytest.mark.usefixtures("filled")
def test_bars_of_another_length_have_no_prices(mdp: Mdp) -> None:
    code, out, err = mdp(*SPAN, "--interval", "5m", "--json")
    assert code == 0
    row = rows_of(out)[None, None]
    assert (row["scored"], row["unpriced"]) == (0, row["open"])
    assert "signals without a price to start from: 540, since no bar of 5m" in err


@pytest.mark.usefixtures("filled")
def test_pictures_are_drawn_and_the_same_again(mdp: Mdp, tmp_path: Path) -> None:
    for name in ("first.svg", "second.svg", "report.png"):
        code, _, err = mdp(*SPAN, "--plot", name)
        assert (code, err) == (0, "")
    first = (tmp_path / "first.svg").read_bytes()
    assert first == (tmp_path / "second.svg").read_bytes()
    assert ET.fromstring(first).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314
    # matplotlib writes each text as a remark beside its outlines.
    texts = re.findall(r"<!-- (.*?) -->", first.decode())
    for text in (
        "What followed 534 signals (all symbols), 2023-11-14 to 2023-11-16, on bars of 2s",
        "Mean return after 1m, with its 95 % interval",
        "time since the signal (s)",
        "return in the direction of the signal (bps)",
        "oracle",
        "n = 178",
    ):
        assert text in texts
    assert "quiet" not in texts, "what has no direction has no signed return"
    png = (tmp_path / "report.png").read_bytes()
    assert png.startswith(b"\x89PNG")


def test_a_picture_of_nothing_says_so(mdp: Mdp, tmp_path: Path) -> None:
    code, out, _ = mdp(*SPAN, "--plot", "empty.svg", "--json")
    assert code == 0
    assert rows_of(out)[None, None]["count"] == 0
    assert "no signal with a direction could be scored" in (tmp_path / "empty.svg").read_text()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--from", "2023-11-14"), "(?i)missing option .--to"),
        (("--from", "2023-11-16", "--to", "2023-11-14"), "--from 2023-11-16 must be before --to 2023-11-14"),
        (("--from", "yesterday", "--to", "2023-11-14"), "--from: 'yesterday' is not an RFC 3339 time"),
        ((*SPAN, "--horizon", "1 minute"), "--horizon: '1 minute' is not a duration"),
        ((*SPAN, "--interval", "0s"), "--interval: '0s' is not a duration"),
        ((*SPAN, "--plot", "report.gif"), "--plot: report.gif must end in .svg or .png"),
        ((*SPAN, "--plot", "nowhere/report.svg"), "--plot: there is no folder nowhere"),
    ],
)
def test_wrong_usage_is_one_sentence(mdp: Mdp, args: tuple[str, ...], said: str) -> None:
    code, out, err = mdp(*args)
    assert (code, out) == (2, "")
    assert re.search(said, err)
    assert err.count("\n") == 1


def test_a_picture_that_cannot_be_written(mdp: Mdp, tmp_path: Path) -> None:
    (tmp_path / "taken.svg").mkdir()
    code, _, err = mdp(*SPAN, "--plot", "taken.svg")
    assert code == 2
    assert err == "mdp: --plot: cannot write taken.svg (Is a directory); name another file\n"


def test_without_matplotlib_the_extra_is_named(mdp: Mdp, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert mdp(*SPAN, "--json")[0] == 0
    code, out, err = mdp(*SPAN, "--plot", "report.svg")
    assert (code, out) == (1, "")
    assert err == "mdp: a picture needs matplotlib; run: pip install 'mdp[plot]'\n"


async def test_the_bars_are_never_in_memory_at_once(store: StoreClient) -> None:
    """A signal at each end of 300,000 bars: the columns of them all would take 37 MB."""
    claim = await store.claim("t", "g", 0, "me")
    batch = walk(300_000, "SPY", 5)
    await store.commit(flush(claim, 1, batch, window=2 * S))
    await store.write_signals([after_bar(batch, 0, "up", 1.0), after_bar(batch, 299_000, "up", 1.0)])
    whole = sum(getattr(batch, name).nbytes for name in ("ts", "open", "close", "volume", "n_events")) * 3
    del batch
    question = Question(T0 - S, T0 + 10**6 * S, 60 * S, "2s")
    tracemalloc.start()
    outcomes = await read_outcomes(store, question, steps_to(60 * S, 2 * S))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert figures(outcomes, 60 * S)[0].scored == 2
    assert peak < whole / 2
