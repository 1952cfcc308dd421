"""Numbers as Grafana writes them in the units that the dashboards use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

_TIME: Final = ((1e-6, 1e6, "µs"), (1e-3, 1e3, "ms"), (1.0, 1.0, "s"), (60.0, 1 / 60, "min"))
_COUNT: Final = ((1e9, "B"), (1e6, "M"), (1e3, "K"))
_BYTES: Final = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"))
_AFTER: Final = {"ops": " ops/s", "eps": " evt/s", "rowsps": " rows/s", "recps": " rec/s"}


def written(value: float, unit: str) -> str:
    """``value`` of ``unit``, one of Grafana's names.

    >>> written(0.0123, "s"), written(5321, "ops"), written(0.5, "percentunit")
    ('12.3 ms', '5.32 K ops/s', '50 %')
    """
    if not math.isfinite(value):
        return "no data"
    if unit in ("s", "ms"):
        return _time(value if unit == "s" else value / 1000)
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "bytes":
        return _scaled(value, _BYTES)
    return _scaled(value, _COUNT) + _AFTER.get(unit, "")


def _time(seconds: float) -> str:
    if seconds == 0:
        return "0 s"
    fitting = [each for each in _TIME if abs(seconds) >= each[0]] or [_TIME[0]]
    _, factor, name = fitting[-1]
    return f"{seconds * factor:.3g} {name}"


def _scaled(value: float, scales: Sequence[tuple[float, str]]) -> str:
    for least, name in scales:
        if abs(value) >= least:
            return f"{value / least:.3g} {name}"
    return f"{value:.3g}"
