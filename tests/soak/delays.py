"""How long each window took, from when it could first be closed to its commit and beyond.

When it could be closed is told by the events themselves: that is when the event arrived at the producer that moved the
watermark past the window's end. The commit is PostgreSQL's own time of it, noted just before its log is flushed; the
record of the bars on the bus follows the answer to the commit. So the moment of being durable lies between the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import polars as pl
import psycopg

from market_data_core.partitioner import partition_of
from tests.soak.plan import WINDOW_NS, Plan
from tests.soak.tap import Tap

STEPS: Final = {
    "on the bus": "closing event on the bus",
    "committed": "bars committed",
    "published": "bars on the bus",
    "signals committed": "signals committed",
    "signals published": "signals on the bus",
}
"""The way of a window, in order: what took so long since it could first be closed."""
AFTER_END: Final = "committed after its end"
_QUANTILES: Final = (0.5, 0.95, 0.99)
_NS: Final = "(extract(epoch FROM {}) * 1000000)::int8 * 1000"
_BARS: Final = f"""
    SELECT provider, symbol, {_NS.format("ts")}, {_NS.format("pg_xact_commit_timestamp(xmin)")}
    FROM bars_ohlcv WHERE "interval" = '2s' AND revision = 1
"""
_SIGNALS: Final = f"""
    SELECT provider, symbol, {_NS.format("ts")}, {_NS.format("min(pg_xact_commit_timestamp(xmin))")}
    FROM signals WHERE NOT meta ? 'withdrawn' GROUP BY provider, symbol, ts
"""


@dataclass(frozen=True, slots=True)
class Spread:
    """Delays in ms of ``n`` windows."""

    n: int
    p50: float
    p95: float
    p99: float
    max: float


async def delays(url: str, tap: Tap, plan: Plan) -> pl.DataFrame:
    """A row for each window of a partition that an event has closed: provider, partition, end and due (ns), and for
    each of :data:`STEPS` the ms that it took; null where nothing came.

    Of bars the last one of the window counts, of signals the first: those of a window are written in one transaction,
    and more come only when a late event amends a bar."""
    schema = {
        "provider": pl.String,
        "partition": pl.Int64,
        "end": pl.Int64,
        "due": pl.Int64,
        "heard": pl.Int64,
    }
    rows = [(c.provider, c.partition, c.end, c.due, c.on_bus) for c in tap.closings]
    windows = pl.DataFrame(rows, schema=schema, orient="row").unique(
        ["provider", "partition", "end"], keep="first"
    )
    key = ["provider", "partition", "end"]
    async with await psycopg.AsyncConnection.connect(url) as connection:
        bars = _frame(await (await connection.execute(_BARS)).fetchall())
        signals = _frame(await (await connection.execute(_SIGNALS)).fetchall())
    moments = {
        "committed": bars.with_columns(pl.col("ts") + WINDOW_NS),
        "published": tap.bars().with_columns(pl.col("ts") + WINDOW_NS, at=pl.col("published") * 1_000_000),
        "signals committed": signals,
        "signals published": tap.signals().select(
            "provider", "symbol", ts="at", at=pl.col("published") * 1_000_000
        ),
    }
    places = {name: partition_of(name, plan.partitions) for name in plan.names}
    for name, frame in moments.items():
        moment = pl.col("at").min() if name.startswith("signals") else pl.col("at").max()
        found = (
            frame.with_columns(
                pl.col("symbol").replace_strict(places, return_dtype=pl.Int64).alias("partition")
            )
            .rename({"ts": "end"})
            .group_by(key)
            .agg(moment.alias(name))
        )
        windows = windows.join(found, on=key, how="left")
    return windows.select(
        *key,
        "due",
        ((pl.col("heard") * 1_000_000 - pl.col("due")) / 1e6).alias("on the bus"),
        *(((pl.col(name) - pl.col("due")) / 1e6).alias(name) for name in moments),
        ((pl.col("committed") - pl.col("end")) / 1e6).alias(AFTER_END),
    ).sort("due")


def spread(windows: pl.DataFrame, step: str) -> Spread | None:
    """The distribution of one step; None without a window."""
    values = windows[step].drop_nulls()
    if not len(values):
        return None
    p50, p95, p99 = (float(values.quantile(q, "linear") or 0.0) for q in _QUANTILES)
    return Spread(len(values), p50, p95, p99, float(values.max()))  # type: ignore[arg-type]


def _frame(rows: list[tuple[str, str, int, int]]) -> pl.DataFrame:
    schema = {"provider": pl.String, "symbol": pl.String, "ts": pl.Int64, "at": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")
