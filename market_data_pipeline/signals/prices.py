"""PricesAt: the last price known at each of many times, from bars that come page by page."""

from __future__ import annotations

from typing import Final

import numpy as np

from market_data_core.batch import F64, I64

NEVER: Final = np.iinfo(np.int64).min
"""When the bar ended, where there was none."""


class PricesAt:
    """For each of ``times`` the close of the newest bar of one series that had ended by then.

    ``close`` is NaN and ``ended`` is :data:`NEVER` where no bar had, and, until :meth:`finish`, at the times that the
    bars have not reached: newer ones may still come. Memory does not grow with the bars fed.
    """

    def __init__(self, times: I64) -> None:
        """``times``: ns UTC, ascending."""
        self.close: F64 = np.full(len(times), np.nan)
        self.ended: I64 = np.full(len(times), NEVER, np.int64)
        self._times = times
        self._reached = 0
        self._last_end: np.int64 = np.int64(NEVER)
        self._last_close: np.float64 = np.float64(np.nan)

    @property
    def complete(self) -> bool:
        """Whether bars beyond those fed can change nothing."""
        return self._reached == len(self._times)

    def feed(self, ended: I64, close: F64) -> None:
        """The next bars: when each ended (ns UTC, ascending, after those fed before), and its close."""
        if len(ended) == 0:
            return
        upto = int(np.searchsorted(self._times, ended[-1], "right"))
        self._answer(np.append(self._last_end, ended), np.append(self._last_close, close), upto)
        self._reached = upto
        self._last_end, self._last_close = ended[-1], close[-1]

    def finish(self) -> None:
        """No bar is left: the times not reached get the last one fed."""
        self._answer(np.array([self._last_end]), np.array([self._last_close]), len(self._times))

    def _answer(self, ended: I64, close: F64, upto: int) -> None:
        """Fill the rows from the last one reached up to ``upto``; the first bar is from before them."""
        rows = slice(self._reached, upto)
        at = np.searchsorted(ended, self._times[rows], "right") - 1
        self.close[rows], self.ended[rows] = close[at], ended[at]
