"""What an event may hold: numbers and times in their limits, names that can be kept, lanes that can be named."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np

from market_data_core.batch import EventBatch, Mask
from market_data_core.errors import PoisonRecord
from market_data_core.events import (
    KINDS,
    MAX_NOTIONAL,
    MAX_PRICE,
    MAX_VOLUME,
    Series,
    format_interval,
    parse_interval,
)
from market_data_core.times import MAX_TIME, MAX_YEAR, MIN_TIME, MIN_YEAR

MAX_NAME: Final = 128
MAX_LANE: Final = 400
MAX_SERIES: Final = 200_000
"""How many series a table of a consumer may hold before it is begun anew."""


def sound(batch: EventBatch) -> Mask:
    """True for each row whose numbers and times can be an event's."""
    o, h, low, c, v = batch.o, batch.h, batch.l, batch.c, batch.v
    with np.errstate(invalid="ignore", over="ignore"):
        good: Mask = (np.abs(c) <= MAX_PRICE) & (v >= 0) & (v <= MAX_VOLUME) & (np.abs(c) * v <= MAX_NOTIONAL)
        if not (o is c and h is c and low is c):
            good &= (np.abs(h) <= MAX_PRICE) & (np.abs(low) <= MAX_PRICE)
            good &= (low <= h) & (low <= o) & (o <= h) & (low <= c) & (c <= h)
            good &= (np.abs(h) * v <= MAX_NOTIONAL) & (np.abs(low) * v <= MAX_NOTIONAL)
    for times in (batch.src_ts, batch.ingest_ts):
        good &= (times >= MIN_TIME) & (times <= MAX_TIME)
    return good


def faults(batch: EventBatch) -> dict[int, str]:
    """Rows whose numbers cannot be an event's, with the reason; empty when all are good."""
    good = sound(batch)
    if good.all():
        return {}
    return {i: _fault(batch.take(slice(i, i + 1))) for i in np.flatnonzero(~good).tolist()}


def _fault(row: EventBatch) -> str:
    o, h, low, c, v = (float(x[0]) for x in (row.o, row.h, row.l, row.c, row.v))
    for name, value in zip("ohlcv", (o, h, low, c, v), strict=True):
        if not np.isfinite(value):
            return f"{name} is not a finite number"
    for name, value in zip("ohlc", (o, h, low, c), strict=True):
        if abs(value) > MAX_PRICE:
            return f"{name} {value:g} is beyond the largest price {MAX_PRICE:g}"
    if v < 0:
        return f"v {v:g} is negative"
    if v > MAX_VOLUME:
        return f"v {v:g} is beyond the largest volume {MAX_VOLUME:g}"
    if low > h:
        return f"l {low:g} is above h {h:g}"
    if not (low <= o <= h and low <= c <= h):
        return f"o {o:g} or c {c:g} is outside of l {low:g} to h {h:g}"
    for name, at in (("src_ts", row.src_ts[0]), ("ingest_ts", row.ingest_ts[0])):
        if not MIN_TIME <= at <= MAX_TIME:
            return f"{name} is outside of the years {MIN_YEAR} to {MAX_YEAR}"
    return f"price times volume is beyond {MAX_NOTIONAL:g}"


def canonical_series(provider: str, symbol: str, kind: str, interval: str) -> Series:
    """The series with its interval in canonical form.

    Raises:
        PoisonRecord: a name, the kind or the interval is not acceptable.
    """
    for field_name, name in (("provider", provider), ("symbol", symbol)):
        if not 0 < len(name) <= MAX_NAME:
            raise PoisonRecord(f"{field_name} must have 1 to {MAX_NAME} characters, not {len(name)}")
        if "|" in name or not name.isprintable():
            raise PoisonRecord(f"{field_name} has a '|' or a character that cannot be printed")
    if kind not in KINDS:
        raise PoisonRecord(f"kind {kind[:32]!r} is none of {', '.join(KINDS)}")
    try:
        return Series(provider, symbol, kind, _canonical_interval(interval[:32]))
    except ValueError as error:
        raise PoisonRecord(f"interval {error}") from None


@lru_cache(maxsize=256)
def _canonical_interval(text: str) -> str:
    return format_interval(parse_interval(text))


def check_lane(lane: str) -> None:
    """Raise PoisonRecord unless ``lane`` can name one: it is kept in the store, and the empty name is taken."""
    if not (0 < len(lane) <= MAX_LANE and lane.isprintable()):
        raise PoisonRecord(f"a lane must have 1 to {MAX_LANE} printable characters")
