"""Columns of raw values to events: times, prices, symbols, and which rows are none and why.

Readers (:mod:`csv_file`, :mod:`parquet_file`) bring the columns of a file; all that is the same for every format
happens here, a column at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from market_data_core.batch import F64, I32, I64, EventBatch, Mask
from market_data_core.codecs import canonical_series, faults
from market_data_core.errors import DatasetError, PoisonRecord
from market_data_core.events import Series
from market_data_pipeline.producers import local_time
from market_data_pipeline.producers.layout import DAY, PRICES, Layout

UNIT_NS: Final = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_AWARE: Final = r"[T ].*(?:[Zz]|[+-]\d\d(?::?\d\d)?)$"


class EventMaker:
    """Makes events of one file's columns; symbols keep their codes from one batch to the next."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._codes: dict[str, int] = {}
        self._reasons: dict[str, str] = {}
        self._series: tuple[Series, ...] = ()
        if layout.symbol is not None:
            code = self._code(layout.symbol)
            if code < 0:
                raise DatasetError(
                    f"the symbol {layout.symbol!r} of {layout.key} cannot be used: {self._reasons[layout.symbol]}"
                )

    def make(
        self,
        columns: Mapping[str, NDArray[Any]],
        rows: I64,
        symbols: tuple[I32, Sequence[str]] | None = None,
    ) -> tuple[EventBatch, dict[int, str]]:
        """The events of ``columns`` (by field), and the rows, by index, that are none, with the reason.

        ``rows`` are row numbers, which serve as ``seq`` where no column does. ``symbols`` are codes into names.
        Without a column of prices they are 0: for those who only ask which symbols are there, and when.
        """
        src_ts, bad_time = self._times(columns["time"])
        n = len(src_ts)
        reasons = {i: self._time_reason(columns["time"][i]) for i in np.flatnonzero(bad_time).tolist()}
        code = np.zeros(n, np.int32)
        if symbols is not None:
            known = np.array([self._code(name) for name in symbols[1]] or [0], np.int32)
            code = known[symbols[0]]
            for i in np.flatnonzero(code < 0).tolist():
                reasons.setdefault(i, f"symbol: {self._reasons[symbols[1][int(symbols[0][i])]]}")
        if "price" in columns:
            o = h = l = c = self._price(columns["price"])
        elif "close" in columns:
            o, h, l, c = (self._price(columns[name]) for name in PRICES)
        else:
            o = h = l = c = np.zeros(n)
        zeros = np.zeros(n, np.int64)
        batch = EventBatch(
            series=self._series,
            code=code,
            src_ts=src_ts,
            ingest_ts=zeros,
            o=o,
            h=h,
            l=l,
            c=c,
            v=np.asarray(columns["volume"], np.float64) if "volume" in columns else np.zeros(n),
            seq=np.asarray(columns["seq"], np.int64) if "seq" in columns else rows,
        )
        for i, reason in faults(batch).items():
            reasons.setdefault(i, _in_words(reason, "price" in columns))
        if reasons:
            keep = np.ones(n, np.bool_)
            keep[list(reasons)] = False
            batch = batch.take(keep)
        return batch, reasons

    def _price(self, values: NDArray[Any]) -> F64:
        """Prices of the file as prices. A factor such as 0.0001 divides by 10,000, which rounds correctly."""
        scale = self._layout.price_scale
        prices = np.asarray(values, np.float64)
        if scale == 1.0:
            return prices
        divisor = round(1.0 / scale)
        if divisor > 1 and abs(1.0 / scale - divisor) <= 1e-9 * divisor:
            return prices / divisor
        return prices * scale

    def _code(self, name: str) -> int:
        """The code of a symbol; -1 when it cannot be one, with the reason in ``_reasons``."""
        code = self._codes.get(name)
        if code is None:
            try:
                series = canonical_series(
                    self._layout.provider, name.strip().upper(), self._layout.kind, self._layout.interval
                )
            except PoisonRecord as error:
                self._reasons[name] = str(error)
                code = -1
            else:
                if series not in self._series:
                    self._series = (*self._series, series)
                code = self._series.index(series)
            self._codes[name] = code
        return code

    def _times(self, values: NDArray[Any]) -> tuple[I64, Mask]:
        """UTC nanoseconds, and which are no acceptable time (and 0)."""
        layout = self._layout
        if values.dtype.kind == "M":
            return self._stamps(values, np.True_)
        if values.dtype.kind not in "if":
            return self._written(values)
        unit = UNIT_NS[layout.time_unit]
        base = layout.base or 0
        low, high = local_time.FIRST - base, local_time.LAST - base
        if layout.one_day:
            low, high = 0, DAY - 1
        good = (values >= -(-low // unit)) & (values <= high // unit)
        values = np.where(good, values, max(low, 0) // unit)
        if values.dtype.kind == "f":
            # Fractions are kept to the microsecond, beyond which a float64 of the epoch has no digits.
            fine = min(unit, 1000)
            wall = np.rint(values * (unit / fine)).astype(np.int64) * fine + base
        else:
            wall = values * unit + base
        zone = "UTC" if layout.base is None else layout.time_zone
        return np.where(good, local_time.wall_to_utc(wall, zone), 0), ~good

    def _written(self, values: NDArray[Any]) -> tuple[I64, Mask]:
        """Times in ISO 8601: those with a zone as they are, those without on the wall of the time zone."""
        texts = pd.Series(values, dtype=object)
        if len(texts) and max(texts) > ":":  # pandas would take a word such as "now" for a time
            texts = texts.where(texts.str.match(r"\d", na=False), "")
        zone = self._layout.time_zone
        if zone != "UTC":
            try:
                times = pd.to_datetime(texts, format="ISO8601", errors="coerce")
                if times.dt.tz is None:
                    return self._stamps(times.to_numpy(), np.True_)
            except ValueError:  # of several zones, or some without one
                pass
        times = pd.to_datetime(texts, format="ISO8601", utc=True, errors="coerce")
        naive = np.False_ if zone == "UTC" else ~texts.str.contains(_AWARE, na=False).to_numpy(np.bool_)
        return self._stamps(times.dt.tz_localize(None).to_numpy(), naive)

    def _stamps(self, stamps: NDArray[Any], naive: NDArray[np.bool_] | np.bool_) -> tuple[I64, Mask]:
        """UTC nanoseconds of ``stamps``, which are wall times where ``naive``."""
        coarse = stamps.astype("M8[s]").astype(np.int64)
        good = ~np.isnat(stamps) & (coarse >= local_time.FIRST // 10**9) & (coarse < local_time.LAST // 10**9)
        at = np.where(good, stamps, np.datetime64(0, "s")).astype("M8[ns]").astype(np.int64)
        at = np.where(naive, local_time.wall_to_utc(at, self._layout.time_zone), at)
        return np.where(good, at, 0), ~good

    def _time_reason(self, value: object) -> str:
        if self._layout.one_day:
            return f"time {value} is not within the day"
        unit = self._layout.time_unit
        said = str(value)[:64]
        return f"time {said!r} is not a time in a year from 1678 to 2261" + (
            "" if unit == "iso" else f", in {unit}"
        )


def _in_words(reason: str, tick: bool) -> str:
    """A fault of an event in the words of a file: ``c`` of a tick is its price."""
    field, _, rest = reason.partition(" ")
    names = {"v": "volume", "o": "price", "c": "price"} if tick else {"v": "volume"}
    return f"{names.get(field, field)} {rest}"
