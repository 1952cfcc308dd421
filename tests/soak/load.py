"""What was produced, made once more from its seed, and what the bars and signals of it must be.

Nothing here is shared with windows, features or rules: bars are recounted by polars, signals by pandas. That the bus
carried these very events is checked by the tallies that :mod:`tests.soak.tap` took of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from market_data_core.batch import EventBatch
from market_data_pipeline.producers.synthetic import SyntheticProvider, SyntheticSpec
from tests.chaos.signals_oracle import KEY as SIGNAL_KEY
from tests.chaos.signals_oracle import VALUES, Wanted
from tests.integration.signals_recount import seed_signals
from tests.soak.plan import WINDOW_NS, WINDOW_S, Phase, Plan

_S = 10**9


@dataclass(frozen=True, slots=True)
class Tally:
    """What two ways of looking at the same events must agree on."""

    events: int = 0
    volume: int = 0
    seq: int = 0

    def plus(self, batch: EventBatch) -> Tally:
        """With ``batch`` counted too; its volumes are whole."""
        volume = int(batch.v.astype(np.int64).sum())
        return Tally(self.events + len(batch), self.volume + volume, self.seq + int(batch.seq.sum()))


@dataclass(frozen=True, slots=True)
class Produced:
    """The events of a phase: those that a seed gives from ``start`` (ns UTC) on, and the first ``taken`` of them."""

    plan: Plan
    phase: Phase
    start: int
    taken: int

    def batches(self) -> Iterator[EventBatch]:
        """In order of arrival."""
        plan = self.plan
        spec = SyntheticSpec(
            symbols=plan.names,
            rate=self.phase.rate,
            start_ts=self.start,
            seed=plan.seed,
            volatility=plan.volatility,
            disorder_ms=plan.disorder_ms,
            late_ratio=plan.late,
            duplicate_ratio=plan.duplicates,
            provider=self.phase.name,
        )
        left = self.taken
        for batch in SyntheticProvider(spec).batches():
            yield batch if len(batch) <= left else batch.take(slice(left))
            left -= len(batch)
            if left <= 0:
                return

    def tally(self) -> Tally:
        """Of all events, copies included."""
        total = Tally()
        for batch in self.batches():
            total = total.plus(batch)
        return total

    def events(self) -> pl.DataFrame:
        """The distinct events: code, src_ts, seq, price, volume, by symbol and time."""
        frames = [
            pl.DataFrame({"code": b.code, "src_ts": b.src_ts, "seq": b.seq, "price": b.c, "volume": b.v})
            for b in self.batches()
        ]
        return pl.concat(frames).unique(["code", "src_ts", "seq"]).sort("code", "src_ts", "seq")

    def bars(self) -> pl.DataFrame:
        """The bars of the distinct events, by symbol and window."""
        price, volume = pl.col("price"), pl.col("volume")
        bars = (
            self.events()
            .with_columns(ts=pl.col("src_ts") // WINDOW_NS * WINDOW_NS)
            .group_by("code", "ts", maintain_order=True)
            .agg(
                open=price.first(),
                high=price.max(),
                low=price.min(),
                close=price.last(),
                volume=volume.sum(),
                n_events=pl.len().cast(pl.Int64),
                vwap=(price * volume).sum() / volume.sum(),
            )
        )
        return self._named(bars).sort("symbol", "ts")

    def write_range(self, start: int, end: int, file: Path) -> int:
        """Write the distinct events of ``[start, end)`` as a dataset; how many."""
        events = self.events().filter(pl.col("src_ts").is_between(start, end, closed="left"))
        rows = self._named(events).sort("src_ts", "seq", "symbol").rename({"src_ts": "time"})
        rows.select("symbol", "time", "price", "volume", "seq").write_csv(file)
        return len(rows)

    def _named(self, rows: pl.DataFrame) -> pl.DataFrame:
        names = np.array(self.plan.names)[rows["code"].to_numpy()]
        return rows.with_columns(pl.Series("symbol", names)).drop("code")


def signals(bars: pl.DataFrame) -> Wanted:
    """The signals of ``bars`` by the seed's rules."""
    table = bars.select("symbol", "close", ts=pl.col("ts") // _S).sort("symbol", "ts").to_pandas()
    fired, unsure = seed_signals(table, WINDOW_S)
    kinds = {"symbol": pl.String, "at": pl.Int64, "name": pl.String, **dict.fromkeys(VALUES, pl.Float64)}
    frames = [
        pl.DataFrame({name: rows[name].to_list() for name in kinds}, schema=kinds)
        .with_columns(pl.col("at") * _S)
        .sort(*SIGNAL_KEY)
        for rows in (fired, unsure)
    ]
    return Wanted(*frames)
