"""Whether something grows: a line through it, and how sure its slope is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

BLOCKS: Final = 24
"""Samples follow each other closely, and what is true of one is nearly true of the next: taken one by one they would
make any wave a trend. So the line goes through the means of so many stretches, of which each holds several windows."""
FEWEST: Final = 8
LEVEL: Final = 0.99


@dataclass(frozen=True, slots=True)
class Trend:
    """A least-squares line. ``slope``: a minute, with its 99 % confidence interval. ``level``: the mean. ``seconds``:
    how long it was looked at."""

    slope: float
    low: float
    high: float
    level: float
    seconds: float

    def grows(self, tolerance: float) -> bool:
        """Whether it certainly rises, and by more than ``tolerance`` in the time it was looked at."""
        return self.low > 0 and self.slope * self.seconds / 60 > tolerance


def trend(seconds: ArrayLike, values: ArrayLike, blocks: int = BLOCKS) -> Trend | None:
    """The trend of ``values`` at ``seconds``, ascending; None where there are too few for one.

    The interval is that of ordinary least squares, t with n - 2 degrees of freedom, over block means (Fishman,
    Principles of Discrete Event Simulation, 1978, section 5.5: batch means).
    """
    at, of = np.asarray(seconds, np.float64), np.asarray(values, np.float64)
    if len(at) < 2 * FEWEST:
        return None
    blocks = min(blocks, len(at) // 2)
    parts = np.array_split(np.arange(len(at)), blocks)
    x = np.array([at[part].mean() for part in parts]) / 60
    y = np.array([of[part].mean() for part in parts])
    line = stats.linregress(x, y)
    error = float(np.nan_to_num(line.stderr))  # of what never changes scipy says that it is not known
    half = float(stats.t.ppf(0.5 + LEVEL / 2, blocks - 2)) * error
    slope = float(line.slope)
    return Trend(slope, slope - half, slope + half, float(of.mean()), float(at[-1] - at[0]))
