"""Where the parts of an event are in a file's rows: as configured, or by the name of a LEAN file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Final

import numpy as np

from market_data_core.config import Dataset
from market_data_core.errors import DatasetError
from market_data_pipeline.producers import local_time

PRICES: Final = ("open", "high", "low", "close")
LEAN_SCALE: Final = 0.0001
LEAN_ZONE: Final = "America/New_York"
DAY: Final = 86_400 * 10**9
_LEAN_NAME: Final = re.compile(
    r"(?P<day>\d{8})_(?P<symbol>[^_/]+)_(?:(?P<tick>trade_tick|tick_trade)|(?P<bar>second|minute)_trade)\.csv\Z",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of an event are in a row.

    ``columns``: by field (symbol time price open high low close volume seq), a name or a position from 0.
    ``base``: the wall time at which numbers of ``time_unit`` begin; None for the Unix epoch. ``one_day``: times
    must lie within the day of ``base``. ``key``: what to correct in the configuration, for messages.
    """

    provider: str
    kind: str
    interval: str
    columns: Mapping[str, str | int]
    symbol: str | None = None
    time_unit: str = "iso"
    base: int | None = None
    time_zone: str = "UTC"
    one_day: bool = False
    price_scale: float = 1.0
    header: bool = True
    delimiter: str = ","
    key: str = "the dataset"

    @property
    def earliest(self) -> int | None:
        """No event is before this time (UTC ns), as far as the layout alone tells."""
        if not self.one_day or self.base is None:
            return None
        return int(local_time.wall_to_utc(np.array([self.base]), self.time_zone)[0])

    @property
    def end(self) -> int | None:
        """Every event is before this time (UTC ns), as far as the layout alone tells."""
        if not self.one_day or self.base is None:
            return None
        return int(local_time.wall_to_utc(np.array([self.base + DAY]), self.time_zone)[0])


def layout_of(dataset: Dataset, provider: str, key: str) -> Layout:
    """The layout that a configured dataset without a preset describes."""
    base = None
    if dataset.base_date is not None:
        base = local_time.midnight(date.fromisoformat(dataset.base_date))
    return Layout(
        provider=provider,
        kind=dataset.kind,
        interval=dataset.interval,
        columns={k: v for k, v in dataset.columns.model_dump().items() if v is not None},
        symbol=dataset.symbol,
        time_unit=dataset.time_unit,
        base=base,
        time_zone=dataset.time_zone,
        price_scale=dataset.price_scale,
        header=dataset.header,
        delimiter=dataset.delimiter,
        key=key,
    )


def lean_layout(name: str, dataset: Dataset, provider: str, key: str) -> Layout:
    """The layout of a QuantConnect LEAN trade file, from its name: ``20131007_spy_Trade_Tick.csv``.

    Raises:
        DatasetError: the name is not that of a tick, second or minute trade file.
    """
    match = _LEAN_NAME.match(name.rpartition("/")[2])
    if match is None:
        raise DatasetError(
            f"{name} is no LEAN trade file: its name must be like 20131007_spy_Trade_Tick.csv or "
            "20131007_spy_minute_trade.csv; describe other files under datasets in the configuration"
        )
    try:
        day = date.fromisoformat(match["day"])
    except ValueError:
        raise DatasetError(f"{name} names no day: {match['day']} does not exist; correct the name") from None
    given = dataset.model_fields_set
    bar = match["bar"]
    prices = (
        {"price": 1, "volume": 2} if bar is None else {n: i for i, n in enumerate((*PRICES, "volume"), 1)}
    )
    return Layout(
        provider=provider,
        kind="tick" if bar is None else "bar",
        interval="1m" if bar is not None and bar.lower() == "minute" else "1s",
        columns={"time": 0, **prices},
        symbol=dataset.symbol or match["symbol"],
        time_unit="ms",
        base=local_time.midnight(day),
        time_zone=dataset.time_zone if "time_zone" in given else LEAN_ZONE,
        one_day=True,
        price_scale=dataset.price_scale if "price_scale" in given else LEAN_SCALE,
        header=False,
        key=key,
    )
