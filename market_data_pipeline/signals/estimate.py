"""A mean and its 95 % interval, where values that are near in time depend on each other.

Forward returns of signals whose horizons overlap share a part of the price's way, and so do those of several symbols
at one time. The variance of the mean is that of Newey and West (1987), in time instead of in lags and over all pairs
of the group, whatever their symbols: sum over i, j of K(|t_i - t_j|) e_i e_j / n^2, with e the deviations from the mean
and K(d) = max(0, 1 - d / b), Bartlett's kernel of width b.

Bartlett's kernel is the average, over all offsets, of cutting time into blocks of length b. So the small-sample
correction is that of clusters: with G blocks that hold a signal, the variance times G / (G - 1), and Student's t with
G - 1 degrees of freedom. When no two times are within b of each other, this is the textbook's interval of Student.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from market_data_core.batch import F64, I64

WIDTH: Final = 3
"""b in horizons. The kernel counts what overlaps for less than it is; at three horizons that is a ninth of it."""

_TABLE: Final = (12.70620, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.30600, 2.26216, 2.22814)
_NORMAL: Final = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Estimate:
    """``mean`` with its 95 % interval, in the unit of the values. ``blocks``: how many pieces of time it rests on.

    ``low``, ``high`` and ``t`` (mean over standard error) are NaN where there is one block only; ``t`` also where all
    values are equal.
    """

    mean: float
    low: float
    high: float
    t: float
    blocks: int


NOTHING: Final = Estimate(math.nan, math.nan, math.nan, math.nan, 0)


def estimate(values: F64, ts: I64, horizon: int) -> Estimate:
    """The mean of ``values`` at the times ``ts`` (ns, ascending), each made within ``horizon`` ns after its time."""
    n = len(values)
    if n == 0:
        return NOTHING
    mean = float(values.mean())
    width = WIDTH * horizon
    blocks = 1 + int(np.count_nonzero(np.diff((ts - ts[0]) // width)))
    if blocks == 1:
        return Estimate(mean, math.nan, math.nan, math.nan, blocks)
    error = math.sqrt(_variance_of_mean(values - mean, ts, width) * blocks / (blocks - 1))
    half = student_975(blocks - 1) * error
    # Equal values leave an error of rounding, and a t of nothing but that.
    t = mean / error if error > 1e-12 * abs(mean) else math.nan
    return Estimate(mean, mean - half, mean + half, t, blocks)


def _variance_of_mean(deviation: F64, ts: I64, width: int) -> float:
    """By running sums, in O(n log n): the kernel is linear, so a pair's weight is that of i less that of j."""
    first = np.searchsorted(ts, ts - width, "right")
    at = (ts - ts[0]) / width
    sums = np.concatenate(([0.0], np.cumsum(deviation)))
    moments = np.concatenate(([0.0], np.cumsum(at * deviation)))
    before = (1.0 - at) * (sums[:-1] - sums[first]) + (moments[:-1] - moments[first])
    total = float(np.dot(deviation, deviation + 2.0 * before))
    # Never below 0 but for rounding: the kernel is positive definite.
    return max(total, 0.0) / len(ts) ** 2


def student_975(freedom: int) -> float:
    """The 97.5 % point of Student's t: a table up to 10, above it the expansion 26.7.5 of Abramowitz and Stegun."""
    if freedom <= len(_TABLE):
        return _TABLE[freedom - 1]
    z, v = _NORMAL, float(freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )
