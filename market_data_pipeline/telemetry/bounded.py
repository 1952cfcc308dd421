"""Label values within a bound: first come, first kept; the rest share ``other``.

A label that takes any value a feed sends is a time series each in Prometheus, and one bad feed could fill its memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from market_data_core.batch import extends

OTHER: Final = "other"


class HasSymbol(Protocol):
    """A row of a table of series."""

    @property
    def symbol(self) -> str: ...


class Bounded:
    """At most ``limit`` values of a label, and ``other``. Values are kept for the life of the process, so that no
    counter goes back."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._slots: dict[str, int] = {}
        self.names = [OTHER]
        """Names by slot; slot 0 is ``other``."""

    def slot(self, value: str) -> int:
        """The place of ``value`` in :attr:`names`."""
        slot = self._slots.get(value)
        if slot is not None:
            return slot
        if len(self._slots) >= self._limit or value == OTHER:
            return 0
        self.names.append(value)
        self._slots[value] = len(self._slots) + 1
        return self._slots[value]

    def name(self, value: str) -> str:
        """``value``, or ``other`` when there is no more room."""
        return self.names[self.slot(value)]


class SymbolSlots:
    """The slots of a table of series, worked out once for each series of a table that grows."""

    def __init__(self, symbols: Bounded) -> None:
        self._symbols = symbols
        self._series: tuple[HasSymbol, ...] = ()
        self._slots: NDArray[np.intp] = np.empty(0, np.intp)

    def of(self, series: Sequence[HasSymbol]) -> NDArray[np.intp]:
        """Slots, in the order of ``series``."""
        if series is self._series:
            return self._slots
        table = tuple(series)
        if not extends(table, self._series):
            self._series, self._slots = (), self._slots[:0]
        new = [self._symbols.slot(s.symbol) for s in table[len(self._series) :]]
        self._slots = np.concatenate((self._slots, np.array(new, np.intp)))
        self._series = table
        return self._slots
