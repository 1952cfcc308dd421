"""What the bars must be, by polars over all events of the load; nothing here is shared with the window code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from tests.chaos.load import Load

EXACT = ("open", "high", "low", "close", "volume", "n_events")
KEY = ("symbol", "ts")
_VWAP_TOLERANCE = 1e-12


@dataclass(frozen=True, slots=True)
class Expected:
    """``bars``: symbol, ts, and the values. ``events``: distinct. ``copies``: what came more than once, on top."""

    bars: pl.DataFrame
    events: int
    copies: int


@dataclass(frozen=True, slots=True)
class Difference:
    """How bars differ from the expected ones. ``rows``: the first of them, as text."""

    lost: int
    duplicated: int
    wrong: int
    rows: str

    @property
    def none(self) -> bool:
        return not (self.lost or self.duplicated or self.wrong)


def expected(load: Load, until: int, window_ns: int) -> Expected:
    """The bars of all events of ``load`` that happened before ``until``, each counted once."""
    symbols = load.spec().symbols
    frames = []
    total = 0
    for batch in load.arrivals(lambda: until):
        total += len(batch)
        columns = {"code": batch.code, "src_ts": batch.src_ts, "seq": batch.seq, "c": batch.c, "v": batch.v}
        frames.append(pl.DataFrame(columns))
    events = pl.concat(frames).unique(["code", "src_ts", "seq"]).sort("code", "src_ts", "seq")
    bars = (
        events.with_columns(ts=pl.col("src_ts") - pl.col("src_ts") % window_ns)
        .group_by("code", "ts", maintain_order=True)
        .agg(
            open=pl.col("c").first(),
            high=pl.col("c").max(),
            low=pl.col("c").min(),
            close=pl.col("c").last(),
            volume=pl.col("v").sum(),
            n_events=pl.len().cast(pl.Int64),
            vwap=(pl.col("c") * pl.col("v")).sum() / pl.col("v").sum(),
        )
    )
    names = np.array(symbols)[bars["code"].to_numpy()]
    bars = bars.with_columns(pl.Series("symbol", names)).drop("code").sort(*KEY)
    return Expected(bars, len(events), total - len(events))


def compare(want: pl.DataFrame, have: pl.DataFrame) -> Difference:
    """Row by row. Events lost and duplicated are summed over bars; ``wrong`` counts bars that differ in anything."""
    both = want.join(have, on=KEY, how="full", suffix="_have", coalesce=True).sort(*KEY)
    short = pl.col("n_events").fill_null(0) - pl.col("n_events_have").fill_null(0)
    same = pl.all_horizontal(pl.col(name).eq_missing(pl.col(f"{name}_have")) for name in EXACT)
    near = ((pl.col("vwap") - pl.col("vwap_have")).abs() <= pl.col("vwap").abs() * _VWAP_TOLERANCE).fill_null(
        False
    )
    wrong = both.filter(~(same & near))
    lost, duplicated = both.select(
        lost=short.clip(lower_bound=0).sum(), duplicated=(-short).clip(lower_bound=0).sum()
    ).row(0)
    with pl.Config(tbl_cols=-1, tbl_rows=12, tbl_width_chars=240, fmt_float="full"):
        rows = str(wrong.head(12)) if len(wrong) else ""
    return Difference(int(lost or 0), int(duplicated or 0), len(wrong), rows)
