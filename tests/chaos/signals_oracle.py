"""What the signals must be: the rules of the run once more, by pandas over the stored bars.

The rules are written here twice, for mdp and by hand; nothing is shared with what makes features or asks conditions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
import polars as pl

from tests.integration.signals_recount import BORDER, features

FEATURES: Final = "[{name: high_9s, horizon: 9s}, {name: vwap_5s, horizon: 5s}]"
"""Windows of the run's own, for its configuration."""
_RULES: Final = """\
- {name: price_momentum_up, condition: momentum > 0.00013, signal: 1.0, score: 0.8}
- {name: price_momentum_down, condition: momentum < -0.00013, signal: -1.0, score: 0.8}
- {name: high_volatility, condition: volatility > 0.171, signal: 0.0, score: 0.9}
- {name: rsi_overbought, condition: rsi > 57.3, signal: -1.0, score: 0.7}
- {name: rsi_oversold, condition: rsi < 42.7, signal: 1.0, score: 0.7}
- {name: breaks_out, condition: close >= high_9s and momentum > 0.00007, signal: 2.0, score: 0.6, trigger: edge}
- {name: below_vwap, condition: vwap_5s - close > 0.0031, signal: -2.0, score: 0.25}
- {name: not_many, condition: n_events < EVENTS, signal: -3.0, score: 0.5}
"""
NAMES: Final = 8
KEY: Final = ("symbol", "at", "name")
VALUES: Final = ("value", "score", "price")
_S: Final = 10**9


@dataclass(frozen=True, slots=True)
class Wanted:
    """``fired``: symbol, at (ns), name, value, score, price. ``unsure``: the keys that rounding decides."""

    fired: pl.DataFrame
    unsure: pl.DataFrame


@dataclass(frozen=True, slots=True)
class SignalDifference:
    """How the table's signals differ from the wanted. ``lost``: not there, or withdrawn. ``doubled``: there twice.
    ``unwanted``: there, and not by the rules. ``wrong``: there with other values. ``rows``: the first, as text."""

    lost: int
    doubled: int
    unwanted: int
    wrong: int
    rows: str

    @property
    def none(self) -> bool:
        return not (self.lost or self.doubled or self.unwanted or self.wrong)


def rules(events: int) -> str:
    """The rules file, for bars of about so many ``events``: every late one may take a signal back."""
    return _RULES.replace("EVENTS", str(events))


def wanted(bars: pl.DataFrame, events: int) -> Wanted:
    """The signals of ``bars`` (symbol, ts in ns, and the values), which are of one second."""
    frames = []
    for (symbol,), of in bars.sort("ts").group_by("symbol"):
        table = of.select("ts", "high", "close", "volume", "vwap", "n_events").to_pandas()
        table["ts"] //= _S
        frames.append(_windows(features(table, 1)).assign(symbol=symbol))
    table = pd.concat(frames, ignore_index=True)
    fired, unsure = zip(
        _rule(table, "price_momentum_up", _above(table["momentum"], 0.00013), 1.0, 0.8),
        _rule(table, "price_momentum_down", _above(-table["momentum"], 0.00013), -1.0, 0.8),
        _rule(table, "high_volatility", _above(table["volatility"], 0.171), 0.0, 0.9),
        _rule(table, "rsi_overbought", _above(table["rsi"], 57.3), -1.0, 0.7),
        _rule(table, "rsi_oversold", _above(-table["rsi"], -42.7), 1.0, 0.7),
        _rule(table, "breaks_out", _rising(table, _breaks_out(table)), 2.0, 0.6),
        _rule(table, "below_vwap", _above(table["vwap_5s"] - table["close"], 0.0031), -2.0, 0.25),
        _rule(table, "not_many", _exactly(table["n_events"] < events), -3.0, 0.5),
        strict=True,
    )
    return Wanted(_frame(pd.concat(fired)), _frame(pd.concat(unsure)))


def compare(want: Wanted, have: pl.DataFrame) -> SignalDifference:
    """The wanted signals against the table's rows: ``have`` has ``withdrawn`` beside the columns of ``fired``."""
    sure = want.fired.join(want.unsure, on=KEY, how="anti")
    live = have.filter(~pl.col("withdrawn")).join(want.unsure, on=KEY, how="anti")
    lost = sure.join(live, on=KEY, how="anti")
    unwanted = live.join(sure, on=KEY, how="anti")
    both = sure.join(live, on=KEY, how="inner", suffix="_have")
    same = pl.all_horizontal(pl.col(name).eq_missing(pl.col(f"{name}_have")) for name in VALUES)
    wrong = both.filter(~same)
    doubled = len(have) - have.select(KEY).n_unique()
    with pl.Config(tbl_cols=-1, tbl_rows=12, tbl_width_chars=240, fmt_float="full"):
        shown = (("lost", lost), ("unwanted", unwanted), ("wrong", wrong))
        rows = "\n".join(f"{what}: {some.sort(*KEY).head(12)}" for what, some in shown if len(some))
    return SignalDifference(len(lost), doubled, len(unwanted), len(wrong), rows)


def _windows(bars: pd.DataFrame) -> pd.DataFrame:
    """``bars`` of one symbol with the run's own windows, which look at the seconds and not at the number of bars."""
    ts, high = bars["ts"].to_numpy(), bars["high"].to_numpy()
    volume = bars["volume"].to_numpy()
    notional = (bars["vwap"] * bars["volume"]).to_numpy()
    highest, average = np.empty(len(bars)), np.full(len(bars), np.nan)
    for i in range(len(bars)):
        highest[i] = high[np.searchsorted(ts, ts[i] - 8) : i + 1].max()
        last = slice(np.searchsorted(ts, ts[i] - 4), i + 1)
        if volume[last].sum() > 0:
            average[i] = notional[last].sum() / volume[last].sum()
    return bars.assign(high_9s=highest, vwap_5s=average)


_Truth = tuple["pd.Series[bool]", "pd.Series[bool]"]
"""Whether a condition is true, and whether rounding decides it."""


def _above(values: pd.Series[float], threshold: float) -> _Truth:
    return values > threshold, (values - threshold).abs() <= BORDER * max(abs(threshold), 1.0)


def _exactly(true: pd.Series[bool]) -> _Truth:
    return true, pd.Series(data=False, index=true.index)


def _breaks_out(table: pd.DataFrame) -> _Truth:
    """Both are prices as they were traded, so the first comparison is exact."""
    high = table["close"] >= table["high_9s"]
    moved, near = _above(table["momentum"], 0.00007)
    return high & moved, high & near


def _rising(table: pd.DataFrame, truth: _Truth) -> _Truth:
    """What is true and was not on the bar before, if that one was near enough to be looked at."""
    true, near = truth
    by_symbol = table["symbol"]
    follows = table.groupby("symbol")["ts"].diff() <= 64
    before = true.groupby(by_symbol).shift(fill_value=False) & follows
    near_before = near.groupby(by_symbol).shift(fill_value=False) & follows
    return true & ~before, near | (near_before & true)


def _rule(
    table: pd.DataFrame, name: str, truth: _Truth, value: float, score: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows = table[["symbol", "ts", "close"]].assign(name=name, value=value, score=score)
    return rows[truth[0]], rows[truth[1]]


def _frame(rows: pd.DataFrame) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "symbol": rows["symbol"].to_list(),
            "at": ((rows["ts"] + 1) * _S).to_list(),
            "name": rows["name"].to_list(),
            "value": rows["value"].to_list(),
            "score": rows["score"].to_list(),
            "price": rows["close"].to_list(),
        },
        schema={
            "symbol": pl.String,
            "at": pl.Int64,
            "name": pl.String,
            **dict.fromkeys(VALUES, pl.Float64),
        },
    ).sort(*KEY)
