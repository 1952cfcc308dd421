"""The rules adapter: the same signals for the same bars, as pandas would find them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_core.batch import I64
from market_data_core.events import BarSeries
from market_data_pipeline.features.table import FeatureTable
from market_data_pipeline.inference.adapter import Decisions, InferenceAdapter
from market_data_pipeline.inference.adapters.rules import Rules
from market_data_pipeline.inference.checking import checked
from market_data_pipeline.inference.rules_file import load_rules
from tests.unit.rule_samples import FEATURES, SERIES, every, rules, table

NAN: Final = math.nan
Row = tuple[int, str, float, float]


def _rows(decided: Decisions) -> list[Row]:
    return list(
        zip(decided.row.tolist(), decided.name, decided.value.tolist(), decided.score.tolist(), strict=True)
    )


def _whole(decided: Decisions) -> tuple[Any, ...]:
    cooldown = None if decided.cooldown_ns is None else decided.cooldown_ns.tolist()
    return _rows(decided), list(decided.meta), cooldown


# --- against pandas --------------------------------------------------------------------------------------------

# Nullable floats and booleans: their & | ~ are Kleene's, implemented by somebody else.
_RULES: Final[list[tuple[dict[str, object], Callable[[pd.DataFrame], Any]]]] = [
    ({"condition": "momentum > 0.01"}, lambda d: d.momentum > 0.01),
    ({"condition": "not rsi > 70"}, lambda d: ~(d.rsi > 70)),
    (
        {"condition": "rsi > 70 and not volatility > 0.3"},
        lambda d: (d.rsi > 70) & ~(d.volatility > 0.3),
    ),
    ({"condition": "rsi < 30 or volume * 2 >= price"}, lambda d: (d.rsi < 30) | (d.volume * 2 >= d.price)),
    ({"condition": "30 <= rsi < 70 != volume"}, lambda d: (d.rsi >= 30) & (d.rsi < 70) & (d.volume != 70)),
    ({"condition": "max(rsi, volume) == 70", "trigger": "edge"}, lambda d: _larger(d.rsi, d.volume) == 70),
    ({"condition": "rsi > 70", "trigger": "edge"}, lambda d: d.rsi > 70),
    ({"condition": "not rsi > 70", "trigger": "edge", "symbols": ["BRK*"]}, lambda d: ~(d.rsi > 70)),
    ({"condition": "price > 0", "symbols": ["SPY"]}, lambda d: d.price > 0),
]


def _larger(a: Any, b: Any) -> Any:
    return a.where(a >= b, b).mask(a.isna() | b.isna())


def _expected(of: FeatureTable, wanted: I64) -> list[Row]:
    symbols = pd.Series([SERIES[c].symbol for c in of.code.tolist()], dtype=object)
    data = pd.DataFrame({name: pd.array(column, dtype="Float64") for name, column in of.columns.items()})
    series = pd.Series(of.code)
    out = []
    for i, (written, evaluated) in enumerate(_RULES):
        true = evaluated(data).fillna(False).astype(bool)
        fires = true
        if written.get("trigger") == "edge":
            fires = true & ~true.groupby(series).shift(1, fill_value=False)
        if "symbols" in written:
            fires &= symbols.str.match("BRK" if written["symbols"] == ["BRK*"] else "SPY$").astype(bool)
        out += [(row, i, f"r{i}", 1.0, 0.5) for row in wanted.tolist() if fires[row]]
    return [(row, *rest) for row, _, *rest in sorted(out)]


@st.composite
def tables(draw: st.DrawFn) -> tuple[FeatureTable, I64]:
    """Interleaved bars of several series with gaps, and the rows that are asked for."""
    n = draw(st.integers(0, 25))
    near = st.sampled_from([NAN, 0.0, 0.01, 0.3, 20.0, 30.0, 35.0, 70.0, 70.5, -5.0])
    values = st.lists(st.one_of(near, st.floats(-100, 100)), min_size=n, max_size=n)
    code = draw(st.lists(st.integers(0, len(SERIES) - 1), min_size=n, max_size=n))
    chosen = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    whole = table(code, {name: draw(values) for name in FEATURES})
    return whole, np.flatnonzero(np.array(chosen, np.bool_))


@settings(max_examples=150, deadline=None)
@given(tables())
def test_the_same_rows_fire_as_with_pandas(asked: tuple[FeatureTable, I64]) -> None:
    decided = checked(rules(*(written for written, _ in _RULES)).decide(*asked), *asked)
    assert _rows(decided) == _expected(*asked)


@settings(max_examples=50, deadline=None)
@given(tables(), st.randoms(use_true_random=False))
def test_what_is_decided_is_a_function_of_the_row_and_the_one_before(
    asked: tuple[FeatureTable, I64], random: Any
) -> None:
    whole, wanted = asked
    meta = {"note": "{symbol} {rsi:.1f}", "rsi": "{rsi}"}
    written = [{**r, "meta": meta, "cooldown": f"{i + 1}s"} for i, (r, _) in enumerate(_RULES)]
    once = _whole(rules(*written).decide(whole, wanted))
    again = rules(*written)
    again.decide(whole, every(whole))
    assert _whole(again.decide(whole, wanted)) == once

    # Cut into pieces, in which the rows before are there to be looked back at.
    pieces: list[Decisions] = []
    cuts = sorted(random.randrange(len(wanted) + 1) for _ in range(3))
    for start, end in zip([0, *cuts], [*cuts, len(wanted)], strict=True):
        part = wanted[start:end]
        needed = np.unique(np.concatenate([part, whole.previous[part]]))
        needed = needed[needed >= 0]
        decided = again.decide(whole.take(needed), np.searchsorted(needed, part))
        pieces.append(
            Decisions(needed[decided.row], decided.name, decided.value, decided.score, decided.meta)
        )
    assert [row for piece in pieces for row in _rows(piece)] == once[0]
    assert [meta for piece in pieces for meta in piece.meta] == once[1]


# --- signals ---------------------------------------------------------------------------------------------------


def test_the_rules_of_the_seed_signal_as_the_contract_says() -> None:
    seed = Rules(load_rules(Path("configs/rules.yaml"), FEATURES))
    bars = table(
        [0, 1, 2, 0],
        {
            "price": [425.15, 1.0, 2.0, 425.5],
            "momentum": [0.02, -0.02, NAN, 0.01],
            "volatility": [0.4, 0.3, NAN, 0.1],
            "rsi": [70.1, 30.0, NAN, 29.9],
        },
    )
    decided = seed.decide(bars, every(bars))
    assert _rows(decided) == [
        (0, "price_momentum_up", 1.0, 0.8),
        (0, "high_volatility", 0.0, 0.9),
        (0, "rsi_overbought", -1.0, 0.7),
        (1, "price_momentum_down", -1.0, 0.8),
        (3, "rsi_oversold", 1.0, 0.7),
    ]
    assert decided.meta[0] == {"adapter": "rules", "window": "1m", "price": 425.15}
    assert decided.cooldown_ns is None
    assert decided.value.dtype == decided.score.dtype == np.float64
    assert decided.row.dtype == np.int64


def test_it_is_an_adapter_that_says_what_it_needs() -> None:
    adapter: InferenceAdapter = rules(
        {"condition": "rsi > 70", "meta": {"m": "{momentum:.2f} of {symbol}"}}, {"condition": "volume > rsi"}
    )
    assert (adapter.name, adapter.blocking, adapter.needs_previous) == ("rules", False, False)
    assert list(adapter.features) == ["price", "rsi", "momentum", "volume"]
    assert rules({"condition": "rsi > 70", "trigger": "edge"}).needs_previous
    adapter.close()


@pytest.mark.parametrize("adapter", [rules(), rules({"condition": "rsi > 1000"})])
@pytest.mark.parametrize("code", [[], [0, 1]])
def test_where_nothing_fires_there_is_nothing(adapter: Rules, code: list[int]) -> None:
    bars = table(code, {})
    assert len(adapter.decide(bars, every(bars))) == 0
    assert len(adapter.decide(bars, every(bars)[:0])) == 0


def test_an_edge_needs_a_bar_before_on_which_it_was_not_true() -> None:
    bars = table([0, 0, 1, 0, 1, 0, 0], {"rsi": [71, 72, 71, NAN, 69, 75, 76]})
    adapter = rules({"condition": "rsi > 70", "trigger": "edge"})
    # Unknown is not true, so the rule fires again after a gap.
    assert adapter.decide(bars, every(bars)).row.tolist() == [0, 2, 5]
    # The row before need not be among the wanted ones.
    assert adapter.decide(bars, np.array([1, 6])).row.tolist() == []


def test_cooldowns_are_told_for_each_decision() -> None:
    bars = table([0, 0], {"rsi": [80, 20]})
    adapter = rules({"condition": "rsi < 100", "cooldown": "60s"}, {"condition": "rsi > 70"})
    decided = adapter.decide(bars, every(bars))
    assert decided.cooldown_ns is not None
    assert decided.cooldown_ns.tolist() == [60 * 10**9, 0, 60 * 10**9]


def test_symbols_are_chosen_by_patterns_with_case() -> None:
    bars = table([0, 1, 2], {})
    for patterns, fired in (
        (["SPY"], [0, 2]),
        (["BRK*"], [1]),
        (["?PY", "BRK.[AB]"], [0, 1, 2]),
        (["spy"], []),
        (["*"], [0, 1, 2]),
        (["SP"], []),
    ):
        adapter = rules({"condition": "rsi > 0", "symbols": patterns})
        assert adapter.decide(bars, every(bars)).row.tolist() == fired, patterns


def test_a_new_list_of_series_is_noticed() -> None:
    adapter = rules({"condition": "rsi > 0", "symbols": ["BRK*"]})
    bars = table([0, 1], {})
    assert adapter.decide(bars, every(bars)).row.tolist() == [1]
    swapped = FeatureTable(SERIES[1::-1], bars.code, bars.ts, bars.at, bars.columns, bars.previous)
    assert adapter.decide(swapped, every(bars)).row.tolist() == [0]


# --- texts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("{symbol}", "BRK.A"),
        ("{provider}/{symbol} {interval}", "p1/BRK.A 1m"),
        ("{rsi}", 71.25),
        ("{price}", 20.5),
        ("{rsi:.1f}", "71.2"),
        ("rsi {rsi:.0f} over 70", "rsi 71 over 70"),
        ("{volume:,.0f}", "1,234,567"),
        ("{momentum:+.1%}", "+1.5%"),
        ("{rsi:08.3f}", "0071.250"),
        ("{rsi:.2g}", "71"),
        ("{volatility}", None),
        ("{volatility:.1f}", "missing"),
        ("vol {volatility}", "vol missing"),
        ("{{rsi}} is {rsi}", "{rsi} is 71.25"),
        ("{{}}", "{}"),
        ("über 70: {symbol}", "über 70: BRK.A"),
        ("", ""),
        (5, 5),
        (0.25, 0.25),
        (True, True),
        (None, None),
    ],
)
def test_meta_says_what_is_written(written: object, said: object) -> None:
    row: dict[str, list[float]] = {
        "price": [20.5],
        "rsi": [71.25],
        "momentum": [0.015],
        "volatility": [NAN],
        "volume": [1234567],
    }
    bars = table([1], row)
    meta = rules({"condition": "rsi > 70", "meta": {"note": written}}).decide(bars, every(bars)).meta[0]
    assert meta == {"adapter": "rules", "window": "1m", "price": 20.5, "note": said}
    assert type(meta["note"]) is type(said)
    assert json.loads(msgspec.json.encode(meta)) == meta


def test_a_missing_price_is_null() -> None:
    bars = table([0], {"price": [NAN]})
    assert rules({"condition": "rsi > 0"}).decide(bars, every(bars)).meta[0]["price"] is None


def test_names_tell_series_apart() -> None:
    bars = table([0, 1, 2], {})
    adapter = rules({"name": "high_{symbol}_{interval}:{provider}", "condition": "rsi > 0"})
    decided = adapter.decide(bars, every(bars))
    assert list(decided.name) == ["high_SPY_1m:p1", "high_BRK.A_1m:p1", "high_SPY_5m:p2"]


def test_of_two_rules_that_come_to_one_name_the_later_counts() -> None:
    bars = table([0, 1], {})
    written: list[dict[str, object]] = [
        {"name": "up_{symbol}", "condition": "rsi > 0", "signal": 1.0, "cooldown": "1s"},
        {"name": "other", "condition": "rsi > 0", "signal": 2.0},
        {"name": "up_SPY", "condition": "rsi > 0", "signal": 3.0, "meta": {"m": 1}},
    ]
    decided = checked(rules(*written).decide(bars, every(bars)), bars, every(bars))
    assert [(r, n, v) for r, n, v, _ in _rows(decided)] == [
        (0, "other", 2.0),
        (0, "up_SPY", 3.0),
        (1, "up_BRK.A", 1.0),
        (1, "other", 2.0),
        (1, "up_SPY", 3.0),
    ]
    assert [meta.get("m") for meta in decided.meta] == [None, 1, None, None, 1]
    assert decided.cooldown_ns is not None
    assert decided.cooldown_ns.tolist() == [0, 0, 10**9, 0, 0]


def test_a_name_is_cut_where_a_symbol_makes_it_too_long_and_can_be_printed() -> None:
    bars = table([0], {})
    odd = (BarSeries("p", "S\x01" + "Y" * 62, "1m"),)
    of = FeatureTable(odd, bars.code, bars.ts, bars.at, bars.columns, bars.previous)
    decided = rules({"name": "high_{symbol}", "condition": "rsi > 0"}).decide(of, every(of))
    assert checked(decided, of, every(of)).name == ["high_S?" + "Y" * 57]


def test_no_meta_is_shared_between_signals() -> None:
    bars = table([0, 0], {})
    decided = rules({"condition": "rsi > 0", "meta": {"a": 1}}).decide(bars, every(bars))
    decided.meta[0]["a"] = 2
    assert decided.meta[1]["a"] == 1
