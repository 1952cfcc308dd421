"""Which features there are, and what each of them is made of.

A bar of the window ``[ts, ts + interval)`` is known at its end, ``at``. A feature with the horizon ``h`` is a function
of the bars of the same series that began in ``[at - h, at)``: the ``n = h // interval`` windows that end with this
bar's own. A window without a bar stays empty; nothing is filled in.

========== ============================================================================ ===============================
kind       value                                                                        missing with less than
========== ============================================================================ ===============================
vwap       sum(notional) / sum(volume); a vendor's bar weighs (high + low + close) / 3  any volume
open, high of the horizon as one bar; likewise low, close, volume                       1 bar
mom        close / close of the oldest bar - 1                                          2 bars
ret        close / base - 1                                                             a base
logret     ln(close / base)                                                             a base
vol        standard deviation of the log returns between bars that follow each other    2 returns (population: 1)
skew       their skewness: G1 of a sample, g1 of a population                           3 returns (population: 2)
kurt       their excess kurtosis: G2 of a sample, g2 of a population                    4 returns (population: 2)
rsi        Wilder's relative strength index over n changes of the close                 n changes
n_events   events in the bar; only under its own name                                   1 bar
========== ============================================================================ ===============================

``base`` is the close of the newest bar that had ended at or before ``at - h``, looked for as far back as
``at - 2 h``. Log returns count when both of their bars are in the horizon; where a price is not positive, what
takes its logarithm is missing. Where all returns are the same, vol is 0 and skew and kurt are missing. G1 and G2 are
those of D. N. Joanes and C. A. Gill, "Comparing measures of sample skewness and kurtosis", 1998, as pandas has them.

Wilder's averages have no end. Here they begin with the mean of the first n changes among the last ``20 n``
windows, so that they are a function of a bounded past; what is older would weigh ``(1 - 1/n) ** (19 n)``, less than
6e-9. Where windows have no bar there are fewer changes, ``k``, and what is older would weigh ``(1 - 1/n) ** (k - n)``.
Without a loss the index is 100; without any change it is 50. (J. W. Wilder, "New Concepts in Technical Trading
Systems", 1978.)

Rules may also use these names, which need no configuration. A configured feature of the same name comes first.

=============================== ==========================================
name                            feature
=============================== ==========================================
price                           close of the bar
open high low close             of the bar
volume vwap n_events            of the bar
momentum                        mom over 10 windows
returns, log_return             ret and logret over 1 window
volatility                      vol over 20 windows, annualised
rsi                             rsi over 14 windows
skewness, kurtosis              skew and kurt over 20 windows
=============================== ==========================================
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from market_data_core.config_signals import Features, FeatureWindow
from market_data_core.errors import ConfigError
from market_data_core.events import format_interval

MAX_REACH: Final = 20_000
"""Most windows that a feature may look back: what a history holds of each series."""
RSI_MEMORY: Final = 20
"""Over how many times its period an rsi is run."""

BUILT_IN: Final[dict[str, tuple[str, int]]] = {
    "price": ("close", 1),
    "open": ("open", 1),
    "high": ("high", 1),
    "low": ("low", 1),
    "close": ("close", 1),
    "volume": ("volume", 1),
    "vwap": ("vwap", 1),
    "n_events": ("n_events", 1),
    "momentum": ("mom", 10),
    "returns": ("ret", 1),
    "log_return": ("logret", 1),
    "volatility": ("vol", 20),
    "rsi": ("rsi", 14),
    "skewness": ("skew", 20),
    "kurtosis": ("kurt", 20),
}
"""Kind and windows of the names that are always there."""

SCALE_FREE: Final = frozenset({"ret", "logret", "vol", "rsi", "mom", "skew", "kurt"})
"""Kinds that say the same of a share of 10 and of one of 1000: what is learned of one symbol may hold for another."""
_BASELINE: Final = ("returns", "momentum", "volatility", "rsi")

_LEAST_BARS: Final = {"mom": (2, 2), "vol": (3, 2), "skew": (4, 3), "kurt": (5, 3)}
"""Fewest bars, of a sample and of a population."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature of bars of one interval.

    ``windows``: the horizon, in windows. ``lag``: windows back to the newest that can be the base of a return.
    ``scale``: what a volatility is multiplied with. ``min_bars``: the feature is missing with fewer bars in the
    horizon. ``reach``: how many windows before the bar's own it looks at.
    """

    name: str
    kind: str
    windows: int
    lag: int = 0
    scale: float = 1.0
    sample: bool = True
    min_bars: int = 1
    reach: int = 0


def feature_names(features: Features) -> tuple[str, ...]:
    """Every name that a rule or a model may use: the configured ones, then those that are always there."""
    return tuple(dict.fromkeys([*(window.name for window in features.windows), *BUILT_IN]))


def baseline_names(features: Features) -> tuple[str, ...]:
    """What a model is given when nobody says what: the configured features and some that are always there, but no
    prices and volumes."""
    configured = [window.name for window in features.windows if window.of_kind in SCALE_FREE]
    return tuple(dict.fromkeys([*configured, *_BASELINE]))


def definitions(features: Features, interval_ns: int, wanted: Iterable[str]) -> tuple[Feature, ...]:
    """The ``wanted`` features of bars of ``interval_ns``, each once, in that order.

    Raises:
        ConfigError: there is none of that name, or its horizon cannot be with bars of this length.
    """
    configured = {window.name: window for window in features.windows}
    found = []
    for name in dict.fromkeys(wanted):
        if name in configured:
            found.append(_configured(configured[name], interval_ns, features.year_seconds))
        elif name in BUILT_IN:
            kind, windows = BUILT_IN[name]
            scale = _annual(interval_ns, features.year_seconds) if kind == "vol" else 1.0
            found.append(_feature(name, kind, windows * interval_ns, interval_ns, scale))
        else:
            raise ConfigError(f"no feature is called {name!r}; {_meant(name, feature_names(features))}")
    return tuple(found)


def _configured(window: FeatureWindow, interval_ns: int, year_seconds: float) -> Feature:
    scale = _annual(interval_ns, year_seconds) if window.annualised else 1.0
    where = f"features.windows: {window.name} has a horizon of {window.horizon}"
    bars = f"bars of {format_interval(interval_ns)}"
    found = _feature(
        window.name, window.of_kind, window.horizon_ns, interval_ns, scale, window.sample, window.min_bars
    )
    if found.windows < 1:
        raise ConfigError(f"{where}, shorter than the {bars} it is made of; lengthen it or take shorter bars")
    least = max(found.min_bars, _LEAST_BARS.get(found.kind, (1, 1))[0 if found.sample else 1])
    if found.windows < least:
        raise ConfigError(
            f"{where}, which holds {found.windows} {bars}, and it needs {least}; lengthen it or take shorter bars"
        )
    if found.reach > MAX_REACH:
        times = f" ({RSI_MEMORY} times its period)" if found.kind == "rsi" else ""
        raise ConfigError(
            f"{where} and so looks at {found.reach + 1} {bars}{times}, more than {MAX_REACH}; "
            "shorten it or take longer bars"
        )
    return found


def _feature(
    name: str,
    kind: str,
    horizon_ns: int,
    interval_ns: int,
    scale: float,
    sample: bool = True,
    min_bars: int = 1,
) -> Feature:
    windows, lag, reach = horizon_ns // interval_ns, 0, horizon_ns // interval_ns - 1
    if kind in ("ret", "logret"):
        lag = -(-horizon_ns // interval_ns)
        # A horizon that is no whole number of windows may have none that begins and ends where a base must.
        reach = max(lag, 2 * horizon_ns // interval_ns - 1)
    elif kind == "rsi":
        reach = RSI_MEMORY * windows - 1
    return Feature(name, kind, windows, lag, scale, sample, min_bars, reach)


def _annual(interval_ns: int, year_seconds: float) -> float:
    return math.sqrt(year_seconds / (interval_ns / 1e9))


def _meant(name: str, names: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, names, n=3)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"there are {', '.join(names)}; add others to features.windows"
