"""The kinds of features, computed for a block of bars."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from market_data_core.batch import F64, I64, Mask
from market_data_pipeline.features.definitions import RSI_MEMORY, Feature
from market_data_pipeline.features.history import log_ratio
from market_data_pipeline.features.lookback import LookBack, total

_EPSILON: Final = float(np.finfo(np.float64).eps)
_LAST: Final = {"price": "close", "close": "close", "n_events": "n_events"}


def depths(features: tuple[Feature, ...]) -> dict[str, int]:
    """How many windows of which columns of the history the features need."""
    found = {"present": 1, "close": 1}

    def need(windows: int, *names: str) -> None:
        for name in names:
            found[name] = max(found.get(name, 0), windows)

    for f in features:
        need(f.windows if f.min_bars > 1 else 1, "present")
        if f.kind == "vwap":
            need(f.windows, "notional", "volume")
        elif f.kind in ("ret", "logret"):
            need(f.reach + 1, "close", "present")
        elif f.kind in ("vol", "skew", "kurt"):
            need(f.windows, "log_return", "distance", "present")
        elif f.kind == "rsi":
            need(f.reach + 1, "change", "present")
        elif f.kind in ("close", "n_events"):
            need(1, f.kind)
        elif f.kind in ("high", "low", "volume"):
            need(f.windows, f.kind)
        else:
            need(f.windows, "open" if f.kind == "open" else "close", "present")
    return found


@dataclass(frozen=True, slots=True)
class _Moments:
    """Of ``count`` returns: their mean, and the sums of powers of their distances from it."""

    count: F64
    mean: F64
    deviations: F64
    shift: F64
    second: F64

    def central(self) -> tuple[F64, Mask]:
        """The second central moment, and where it is zero but for rounding (as scipy.stats judges it)."""
        moment = self.second / self.count - self.shift**2
        return moment, moment <= (_EPSILON * self.mean) ** 2


class Block:
    """Features of the ``K`` bars of a :class:`LookBack`, with what they share computed once."""

    def __init__(self, look: LookBack) -> None:
        self._look = look
        self._counts: dict[int, F64] = {}
        self._oldest: dict[int, I64] = {}
        self._moments: dict[int, _Moments] = {}

    def compute(self, feature: Feature) -> F64:
        """The feature of each bar, NaN where it is missing."""
        with np.errstate(all="ignore"):
            values = _KINDS[feature.kind](self, feature)
            if feature.min_bars > 1:
                values = np.where(self.count(feature.windows) < feature.min_bars, np.nan, values)
        return values

    def count(self, n: int) -> F64:
        """How many of the newest ``n`` windows have a bar."""
        if n not in self._counts:
            present = self._look.last("present", n)
            self._counts[n] = np.add.reduce(present, axis=0, dtype=np.int16).astype(np.float64)
        return self._counts[n]

    def vwap(self, f: Feature) -> F64:
        volume = total(self._look.last("volume", f.windows))
        return np.where(volume > 0, total(self._look.last("notional", f.windows)) / volume, np.nan)

    def open(self, f: Feature) -> F64:
        return self._at(self._look.last("open", f.windows), self._oldest_of(f.windows))

    def high(self, f: Feature) -> F64:
        return np.asarray(np.maximum.reduce(self._look.last("high", f.windows), axis=0))

    def low(self, f: Feature) -> F64:
        return np.asarray(np.minimum.reduce(self._look.last("low", f.windows), axis=0))

    def close(self, f: Feature) -> F64:
        return np.array(self._look.last("close", 1)[0])

    def volume(self, f: Feature) -> F64:
        return total(self._look.last("volume", f.windows))

    def n_events(self, f: Feature) -> F64:
        return np.array(self._look.last("n_events", 1)[0])

    def mom(self, f: Feature) -> F64:
        oldest = self._oldest_of(f.windows)
        then = self._at(self._look.last("close", f.windows), oldest)
        return np.where(oldest < f.windows - 1, _ratio(self._look.last("close", 1)[0], then), np.nan)

    def ret(self, f: Feature) -> F64:
        return _ratio(self._look.last("close", 1)[0], self._base(f))

    def logret(self, f: Feature) -> F64:
        return log_ratio(self._look.last("close", 1)[0], self._base(f))

    def vol(self, f: Feature) -> F64:
        of = self._moments_of(f.windows)
        moment, zero = of.central()
        free = of.count - 1 if f.sample else of.count
        deviation = np.sqrt(np.where(zero, 0.0, moment * (of.count / free))) * f.scale
        return np.where(free >= 1, deviation, np.nan)

    def skew(self, f: Feature) -> F64:
        of = self._moments_of(f.windows)
        n, (moment, zero) = of.count, of.central()
        third = total(of.deviations**2 * of.deviations) / n
        third = third - 3 * of.shift * of.second / n + 2 * of.shift**2 * of.shift
        g1 = third / (moment * np.sqrt(moment))
        value = np.sqrt(n * (n - 1)) / (n - 2) * g1 if f.sample else g1
        return np.where((n >= (3 if f.sample else 2)) & ~zero, value, np.nan)

    def kurt(self, f: Feature) -> F64:
        of = self._moments_of(f.windows)
        n, (moment, zero) = of.count, of.central()
        squares = of.deviations**2
        fourth = total(squares * squares) / n - 4 * of.shift * total(squares * of.deviations) / n
        fourth = fourth + 6 * of.shift**2 * of.second / n - 3 * (of.shift**2) ** 2
        g2 = fourth / moment**2 - 3
        value = (n - 1) / ((n - 2) * (n - 3)) * ((n + 1) * g2 + 6) if f.sample else g2
        return np.where((n >= (4 if f.sample else 2)) & ~zero, value, np.nan)

    def rsi(self, f: Feature) -> F64:
        period, n = f.windows, f.windows * RSI_MEMORY
        changes, count, weights = self._look.last("change", n), self.count(n), _wilder(period)
        if (count == n).all():
            weighted = changes[1:] * weights[np.minimum(np.arange(n - 2, -1, -1), n - 1 - period)][:, None]
        else:
            # The change after which r others follow weighs weights[r]; the first of them, the seed, all the same.
            place = np.cumsum(self._look.last("present", n), axis=0, dtype=np.int16)
            after = count.astype(np.int16) - np.maximum(place, np.int16(period + 1), out=place)
            weighted = changes * weights.take(after, mode="clip")
            # The oldest bar's change is from one outside. An empty cell has none.
            weighted[self._oldest_of(n), np.arange(len(count))] = 0.0
        # gain / (gain + loss) is (1 + net / gross) / 2.
        net, gross = total(weighted), total(np.abs(weighted))
        index = np.where(gross > 0, 50.0 + 50.0 * (net / gross), 50.0)
        return np.where(count - 1 >= period, index, np.nan)

    def _oldest_of(self, n: int) -> I64:
        """Which of the newest ``n`` windows is the first with a bar."""
        if n not in self._oldest:
            present = self._look.last("present", n)
            found = np.zeros(present.shape[1], np.int64)
            gaps = np.flatnonzero(present[0] == 0)
            if len(gaps):
                found[gaps] = present[:, gaps].argmax(axis=0)
            self._oldest[n] = found
        return self._oldest[n]

    def _base(self, f: Feature) -> F64:
        """The newest close between ``lag`` and ``reach`` windows ago; NaN where there is none."""
        rows = f.reach + 1 - f.lag
        closes = self._look.last("close", f.reach + 1)[:rows]
        base: F64 = closes[-1].copy()
        gaps = np.flatnonzero(np.isnan(base))
        if len(gaps):
            present = self._look.last("present", f.reach + 1)[:rows][::-1, gaps]
            base[gaps] = closes[::-1, gaps][present.argmax(axis=0), np.arange(len(gaps))]
        return base

    def _inside(self, n: int) -> Mask:
        """``[n, K]``: where there is a bar and the one before it is in the newest ``n`` windows too."""
        return np.asarray(self._look.last("distance", n) <= np.arange(n, dtype=np.int16)[:, None])

    def _moments_of(self, n: int) -> _Moments:
        if n not in self._moments:
            returns, count = self._look.last("log_return", n), self.count(n) - 1
            if (count == n - 1).all():
                returns = returns[1:]
                mean = total(returns) / count
                deviations = returns - mean
            else:
                inside = self._inside(n)
                mean = total(np.where(inside, returns, 0.0)) / count
                deviations = np.where(inside, returns - mean, 0.0)
            # The mean is off by some units in its last place. What that does to the powers is taken back.
            shift = total(deviations) / count
            self._moments[n] = _Moments(count, mean, deviations, shift, total(deviations**2))
        return self._moments[n]

    @staticmethod
    def _at(matrix: F64, row: I64) -> F64:
        picked: F64 = matrix[row, np.arange(len(row))]
        return picked


_KINDS: Final = {
    **{"vwap": Block.vwap, "open": Block.open, "high": Block.high, "low": Block.low, "close": Block.close},
    **{"volume": Block.volume, "n_events": Block.n_events, "mom": Block.mom, "ret": Block.ret},
    **{"logret": Block.logret, "vol": Block.vol, "skew": Block.skew, "kurt": Block.kurt, "rsi": Block.rsi},
}


def _ratio(now: F64, then: F64) -> F64:
    """``now / then - 1``, which this way loses no digits where the two are close."""
    return np.where(then != 0, (now - then) / then, np.nan)


@lru_cache(maxsize=32)
def _wilder(period: int) -> F64:
    """What the change ``r`` changes ago weighs in Wilder's average, for each ``r``."""
    return (1 - 1 / period) ** np.arange(RSI_MEMORY * period) / period
