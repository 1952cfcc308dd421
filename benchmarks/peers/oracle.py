"""The bars that a program stored, compared with a recount by polars."""

from __future__ import annotations

from typing import Final

import polars as pl

KEY: Final = ("symbol", "ts")
VALUES: Final = ("open", "high", "low", "close", "volume", "n_events")
"""What every program stores of a bar besides its key; ``ts`` is the window's start in nanoseconds."""


def differences(found: pl.DataFrame, expected: pl.DataFrame) -> list[str]:
    """What is wrong with ``found``, in words; nothing when it holds exactly the expected bars.

    Windows after the last expected one are those of the ticks that only close windows: they are passed over.
    """
    latest = expected["ts"].max()
    found = found.filter(pl.col("ts") <= latest)
    both = expected.join(found, on=KEY, suffix="_found", maintain_order="left")
    out = []
    if missing := len(expected.join(found, on=KEY, how="anti")):
        out.append(f"{missing:,} of {len(expected):,} bars are missing")
    if more := len(found.join(expected, on=KEY, how="anti")):
        out.append(f"{more:,} bars are of windows that have no tick")
    if twice := len(found) - found.select(KEY).n_unique():
        out.append(f"{twice:,} bars are there more than once")
    for name in VALUES:
        other = f"{name}_found"
        wrong = both.filter(pl.col(name).cast(pl.Float64).ne_missing(pl.col(other).cast(pl.Float64)))
        if len(wrong):
            symbol, ts, have, want = wrong.select(*KEY, other, name).row(0)
            example = f"{symbol} at {ts // 10**9}: {have}, not {want}"
            out.append(f"{name} differs in {len(wrong):,} of {len(expected):,} bars ({example})")
    return out
