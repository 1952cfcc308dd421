"""Seeded ticks to measure with, and a recount of the bars that they must make."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from market_data_core.batch import BarBatch, EventBatch
from market_data_core.events import Series

WINDOW_NS: Final = 2_000_000_000
PER_SYMBOL: Final = 20
"""Ticks of each symbol in a second of event time: 40 a bar, however many symbols there are."""
PROVIDER: Final = "bench"
START: Final = 1_761_314_520 * 10**9
_SILENCE: Final = 60 * 10**9


class WrongBars(Exception):
    """What was stored is not what the ticks make."""


def ticks(count: int, symbols: int, seed: int = 7) -> EventBatch:
    """``count`` ticks of ``symbols`` symbols in order of arrival, and one more, a minute later, that closes their
    windows.

    One in a hundred arrives up to 100 ms after its time, which is within the allowed lateness.
    """
    random = np.random.default_rng(seed)
    step = 10**9 // (PER_SYMBOL * symbols)
    at = START + np.arange(count, dtype=np.int64) * step // 1000 * 1000
    delay = np.where(random.random(count) < 0.01, random.integers(0, 100_000_000, count), 0)
    order = np.argsort(at + delay, kind="stable")
    code = random.integers(0, symbols, count).astype(np.int32)
    cents = 10_000 + code % 50_000 + (random.standard_normal(count).cumsum() * 3).astype(np.int64) % 5000
    size = random.integers(1, 500, count).astype(np.float64)
    last = np.int64(at[-1] + _SILENCE)
    src_ts = np.append(at[order], last)
    price = np.append(cents[order] / 100.0, 1.0)
    return EventBatch(
        series=tuple(Series(PROVIDER, f"SYM{i:05d}", "tick", "1s") for i in range(symbols)),
        code=np.append(code[order], np.int32(0)),
        src_ts=src_ts,
        ingest_ts=src_ts + np.append(delay[order], 0) + 1_500_000,
        o=price,
        h=price,
        l=price,
        c=price,
        v=np.append(size[order], 1.0),
        seq=np.append(order.astype(np.int64), count),
    )


def recount(batch: EventBatch) -> pl.DataFrame:
    """The bars of all ticks but the last, by polars. Sums are of whole cents, so they are exact."""
    frame = pl.DataFrame(
        {
            "symbol": pl.Series([s.symbol for s in batch.series])[batch.code[:-1]],
            "src_ts": batch.src_ts[:-1],
            "seq": batch.seq[:-1],
            "price": batch.c[:-1],
            "size": batch.v[:-1].astype(np.int64),
        }
    )
    cents = (pl.col("price") * 100).round().cast(pl.Int64)
    return (
        frame.sort("src_ts", "seq")
        .with_columns(ts=pl.col("src_ts") // WINDOW_NS * WINDOW_NS)
        .group_by("symbol", "ts", maintain_order=True)
        .agg(
            open=pl.col("price").first(),
            high=pl.col("price").max(),
            low=pl.col("price").min(),
            close=pl.col("price").last(),
            volume=pl.col("size").sum(),
            vwap=(cents * pl.col("size")).sum() / 100 / pl.col("size").sum(),
            n_events=pl.len().cast(pl.Int64),
        )
        .sort("symbol", "ts")
    )


def check(stored: BarBatch, expected: pl.DataFrame, what: str) -> None:
    """Compare stored bars, but those of the last tick, with a recount.

    Raises:
        WrongBars: a bar is missing, or too many, or differs.
    """
    latest = int(expected["ts"].max())  # type: ignore[arg-type]
    bars = stored.take(stored.ts <= latest)
    if len(bars) != len(expected):
        raise WrongBars(f"{what}: {len(bars)} bars are stored, {len(expected)} are expected")
    names = (
        pl.Series([s.symbol for s in bars.series])[bars.code] if len(bars) else pl.Series([], dtype=pl.String)
    )
    columns = ("ts", "open", "high", "low", "close", "volume", "vwap", "n_events")
    found = pl.DataFrame({"symbol": names} | {n: getattr(bars, n) for n in columns}).sort("symbol", "ts")
    for name in ("symbol", "ts", "open", "high", "low", "close", "volume", "n_events"):
        if not (found[name] == expected[name]).all():
            raise WrongBars(f"{what}: {name} of some bar differs from the recount")
    off = float(np.abs(found["vwap"].to_numpy() / expected["vwap"].to_numpy() - 1).max())
    if off > 1e-12:
        raise WrongBars(f"{what}: vwap of some bar differs from the recount by {off:.1e}")


def write_csv(batch: EventBatch, path: Path) -> None:
    """The ticks as a file: time in microseconds since 1970, symbol, price, size and sequence number."""
    names = np.array([s.symbol for s in batch.series])
    pl.DataFrame(
        {
            "time": batch.src_ts // 1000,
            "symbol": names[batch.code],
            "price": batch.c,
            "size": batch.v,
            "seq": batch.seq,
        }
    ).write_csv(path)
