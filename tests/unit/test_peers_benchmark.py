"""The benchmark beside other programs: what it takes, and that it sees a wrong bar."""

from __future__ import annotations

import polars as pl
import pytest
from rich.console import Console

from benchmarks import ticks
from benchmarks.measure import Measured
from benchmarks.peers import oracle
from benchmarks.peers.__main__ import Bench, options, pinned
from benchmarks.peers.contenders import CONTENDERS, Contender
from benchmarks.peers.stage import with_ends
from benchmarks.peers.venvs import HERE


@pytest.fixture(scope="module")
def expected() -> pl.DataFrame:
    return ticks.recount(ticks.ticks(4000, 5))


def stored(expected: pl.DataFrame) -> pl.DataFrame:
    """As a program stores it: in no order, and with the windows of the ticks that close windows."""
    bars = expected.select(*oracle.KEY, *oracle.VALUES).sample(fraction=1.0, shuffle=True, seed=1)
    bars = bars.with_columns(pl.col("volume").cast(pl.Float64))
    ends = bars.head(5).with_columns(ts=pl.lit(bars["ts"].to_numpy().max() + 60 * 10**9))
    return pl.concat([bars, ends])


def test_the_right_bars_are_right(expected: pl.DataFrame) -> None:
    assert oracle.differences(stored(expected), expected) == []


@pytest.mark.parametrize("column", oracle.VALUES)
def test_one_wrong_value_is_seen(expected: pl.DataFrame, column: str) -> None:
    bars = stored(expected)
    wrong = pl.when(pl.int_range(pl.len()) == 7).then(pl.col(column) + 1).otherwise(pl.col(column))
    [text] = oracle.differences(bars.with_columns(wrong.alias(column)), expected)
    assert text.startswith(f"{column} differs in 1 of {len(expected)} bars")


def test_a_value_that_is_not_there_is_wrong(expected: pl.DataFrame) -> None:
    bars = stored(expected).with_columns(close=pl.lit(None, dtype=pl.Float64))
    [text] = oracle.differences(bars, expected)
    assert text.startswith(f"close differs in {len(expected)} of {len(expected)} bars")


def test_missing_and_invented_and_repeated_bars_are_seen(expected: pl.DataFrame) -> None:
    bars = stored(expected)
    assert oracle.differences(bars[3:], expected) == [f"3 of {len(expected):,} bars are missing"]
    before = bars.head(1).with_columns(ts=pl.col("ts") - 1000 * ticks.WINDOW_NS)
    assert oracle.differences(pl.concat([bars, before]), expected) == [
        "1 bars are of windows that have no tick"
    ]
    assert (
        oracle.differences(pl.concat([bars, bars.head(2)]), expected)[0] == "2 bars are there more than once"
    )
    assert oracle.differences(bars.clear(), expected) == [
        f"{len(expected)} of {len(expected)} bars are missing"
    ]


def test_every_symbol_has_a_tick_that_closes_its_windows() -> None:
    batch = ticks.ticks(2000, 7)
    whole = with_ends(batch)
    assert len(whole) == 2000 + 7
    assert sorted(whole.code[-7:].tolist()) == list(range(7))
    assert set(whole.src_ts[-7:].tolist()) == {batch.src_ts[-1]}
    assert len({event.event_id for event in whole.events()}) == len(whole)


def test_options() -> None:
    assert options([]).names == tuple(CONTENDERS)
    assert options([]).events == 1_500_000
    asked = options(["bytewax", "mdp", "--events", "1_000", "--rounds", "1", "--json"])
    assert (asked.names, asked.events, asked.rounds, asked.as_json) == (("bytewax", "mdp"), 1000, 1, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["flink"], "flink: use names of mdp"),
        (["--events", "0"], "0 is not a whole number above 0"),
        (["--rounds", "few"], "few is not a whole number above 0"),
        (["--symbols", "51"], "at most 50"),
    ],
)
def test_wrong_options_are_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        options(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("contender", [c for c in CONTENDERS.values() if c.lock], ids=lambda c: c.label)
def test_every_peer_is_pinned_with_hashes(contender: Contender) -> None:
    lock = HERE / contender.lock
    text = lock.read_text(encoding="utf-8")
    assert pinned(lock, contender.label)[0].isdigit()
    assert "--hash=sha256:" in text
    assert "://" not in text


def test_a_program_whose_bars_differ_is_named_once_for_each_difference() -> None:
    bench = Bench(options([]), Console())
    wrong = {"differences": ["3 of 9 bars are missing"]}
    bench.report.runs = {
        "mdp, JSON": [Measured(9, 1.0, {"client": 1.0}, more={"differences": []})],
        "bytewax": [Measured(9, 1.0, {"client": 1.0}, more=wrong) for _ in range(3)],
    }
    assert bench.wrong() == {"bytewax": ["3 of 9 bars are missing"]}
