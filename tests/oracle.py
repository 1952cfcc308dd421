"""What bars must be: an independent recount with polars, which shares no code with what makes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import polars as pl

from market_data_core.events import Bar, StreamEvent

VWAP_TOLERANCE = 1e-12

Key = tuple[str, str, int]
"""(provider, symbol, start of the window in ns)."""


class Expected(NamedTuple):
    """One bar. ``vwap`` is None when nothing was traded."""

    open: float
    high: float
    low: float
    close: float
    volume: float
    vwap: float | None
    n_events: int
    first_ts: int
    last_ts: int


def recount(events: Iterable[StreamEvent], window_ns: int) -> dict[Key, Expected]:
    """The bars of ``events``, in whatever order they come and however often each is there."""
    names = ("provider", "symbol", "src_ts", "seq", "o", "h", "l", "c", "v")
    rows = [tuple(getattr(e, name) for name in names) for e in events]
    ints, floats = ("src_ts", "seq"), ("o", "h", "l", "c", "v")
    types = {n: pl.Int64 if n in ints else pl.Float64 if n in floats else pl.String for n in names}
    o, h, low, c, v = (pl.col(name) for name in floats)
    flat = (o == c) & (h == c) & (low == c)
    price = pl.when(flat).then(c).otherwise((h + low + c) / 3)
    bars = (
        pl.DataFrame(rows, schema=types, orient="row")
        .unique(["provider", "symbol", "src_ts", "seq"])
        .sort("provider", "symbol", "src_ts", "seq")
        .with_columns(start=pl.col("src_ts").floordiv(window_ns) * window_ns, money=price * v)
        .group_by("provider", "symbol", "start", maintain_order=True)
        .agg(
            open=o.first(),
            high=h.max(),
            low=low.min(),
            close=c.last(),
            volume=v.sum(),
            money=pl.col("money").sum(),
            n_events=pl.len(),
            first_ts=pl.col("src_ts").min(),
            last_ts=pl.col("src_ts").max(),
        )
    )
    out = {}
    for row in bars.iter_rows(named=True):
        key = (row.pop("provider"), row.pop("symbol"), row.pop("start"))
        money = row.pop("money")
        out[key] = Expected(vwap=money / row["volume"] if row["volume"] > 0 else None, **row)
    return out


def keyed(bars: Iterable[Bar]) -> dict[Key, Bar]:
    """Bars by key; no key may come twice."""
    out: dict[Key, Bar] = {}
    for bar in bars:
        key = (bar.provider, bar.symbol, bar.ts)
        assert key not in out, f"two bars of {key}"
        out[key] = bar
    return out


def assert_equal(bars: Iterable[Bar], expected: Mapping[Key, Expected], *, whole_sizes: bool = True) -> None:
    """Every bar as recounted, and none besides: to the bit, but for vwap (1e-12 of itself), and for the volume when
    sizes are not whole numbers."""
    got = keyed(bars)
    lost, extra = sorted(expected.keys() - got.keys()), sorted(got.keys() - expected.keys())
    assert not lost, f"{len(lost)} bars lost, first {lost[:3]}"
    assert not extra, f"{len(extra)} bars too many, first {extra[:3]}"
    for key, want in expected.items():
        bar = got[key]
        for name in Expected._fields:
            a, b = getattr(bar, name), getattr(want, name)
            close = a is not None and b is not None and abs(a - b) <= VWAP_TOLERANCE * abs(b)
            loose = name == "vwap" or (name == "volume" and not whole_sizes)
            assert a == b or (loose and close), f"{key}: {name} is {a!r}, not {b!r}"
