"""Outcomes: what followed each of many signals, and how it is found along the bars of a series."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from market_data_core.batch import F64, I32, I64, Mask
from market_data_pipeline.signals.prices import PricesAt


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """``n`` signals as columns, ordered by time, with what the price did after each.

    ``names[name[i]]`` and ``symbols[symbol[i]]`` are the name and the symbol of signal ``i``, ``ts`` is its time (ns
    UTC). ``forward`` is the return from ``ts`` to ``ts + horizon`` as a fraction, whatever the direction; NaN where it
    is not known. ``unpriced``: there was no price at ``ts``, so it never will be. ``path`` of shape (n, steps) is the
    return from ``ts`` to each of ``steps`` (ns, ascending, the last is the horizon), NaN where ``forward`` is.
    """

    names: tuple[str, ...]
    symbols: tuple[str, ...]
    name: I32
    symbol: I32
    ts: I64
    value: F64
    score: F64
    withdrawn: Mask
    forward: F64
    unpriced: Mask
    steps: I64
    path: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ts)

    @property
    def scored(self) -> Mask:
        """What can be judged: the rest is withdrawn or open."""
        return ~np.isnan(self.forward) & ~self.withdrawn

    @property
    def direction(self) -> F64:
        """1 for a value above 0, -1 below, else 0 (NaN has no direction either)."""
        return (self.value > 0).astype(np.float64) - (self.value < 0)


class Following:
    """Follows the signals of one series (provider and symbol) along its bars.

    The price at a moment is the close of the newest bar that had ended by then, so nothing is known before its time.
    """

    def __init__(self, ts: I64, steps: I64) -> None:
        """``ts``: of the signals, ns UTC, ascending. ``steps``: ns after each, ascending; the last is the horizon."""
        self._ts = ts
        self._entry = PricesAt(ts)
        self._after = [PricesAt(ts + step) for step in steps.tolist()]

    @property
    def complete(self) -> bool:
        """Whether bars beyond those fed can change nothing."""
        return self._after[-1].complete

    def feed(self, ended: I64, close: F64) -> None:
        """The next bars; see :meth:`PricesAt.feed`."""
        for prices in (self._entry, *self._after):
            if not prices.complete:
                prices.feed(ended, close)

    def forward(self) -> F64:
        """The returns to the horizon, as fractions.

        NaN where the bars do not reach the horizon, where none ended after the signal and within the horizon, and
        where there is no price above 0 to start from: a return on a price of 0 or less says nothing.
        """
        self._entry.finish()
        exit_ = self._after[-1]  # not finished: what the bars do not reach has not ended
        return self._return(exit_, (exit_.ended > self._ts) & (self._entry.close > 0))

    def unpriced(self) -> Mask:
        """Whether there was no price above 0 at the signal."""
        self._entry.finish()
        unpriced: Mask = ~(self._entry.close > 0)
        return unpriced

    def path(self) -> NDArray[np.float32]:
        """The returns to each step as fractions, shape (n, steps); NaN where :meth:`forward` is."""
        known = ~np.isnan(self.forward())
        columns = [self._return(prices, known) for prices in self._after]
        return np.stack(columns, axis=1).astype(np.float32)

    def _return(self, exit_: PricesAt, known: Mask) -> F64:
        out = np.full(len(self._ts), np.nan)
        np.divide(exit_.close, self._entry.close, out=out, where=known)
        return out - 1.0
