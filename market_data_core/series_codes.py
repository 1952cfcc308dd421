"""The codes of series in one consumer: names as they are written, canonical or not, to rows of one table."""

from __future__ import annotations

from typing import Final

import numpy as np

from market_data_core import frames
from market_data_core.batch import I32
from market_data_core.errors import PoisonRecord
from market_data_core.events import Series
from market_data_core.validation import canonical_series

Names = tuple[str, str, str, str]
"""Provider, symbol, kind and interval as written."""

_TABLES: Final = 64


class SeriesCodes:
    """A table of series that only grows, and what each name in it is called by."""

    def __init__(self) -> None:
        self.by_names: dict[Names, int] = {}
        self._by_symbol: dict[tuple[str, str, str], dict[str, int]] = {}
        self._tables: dict[tuple[Names, ...], tuple[I32, str]] = {}
        self._last_table: list[Names] = []
        self._last_codes: tuple[I32, str] = (np.empty(0, np.int32), "")
        self._canonical: dict[Series, int] = {}
        self._table: list[Series] = []
        self._series: tuple[Series, ...] = ()

    def __len__(self) -> int:
        return len(self._table)

    def series(self) -> tuple[Series, ...]:
        """All series so far; the same tuple until one is added."""
        if len(self._series) != len(self._table):
            self._series = tuple(self._table)
        return self._series

    def code(self, names: Names) -> int:
        """The code of a series, which is added when it is new.

        Raises:
            PoisonRecord: a name is not acceptable.
        """
        code = self.by_names.get(names)
        if code is None:
            series = canonical_series(*names)
            code = self._canonical.setdefault(series, len(self._canonical))
            if code == len(self._table):
                self._table.append(series)
            self.by_names[names] = code
            self._by_symbol.setdefault((names[0], *names[2:]), {})[names[1]] = code
        return code

    def of_frame(self, frame: frames._Events) -> tuple[I32, str]:
        """The code of each series of a frame, -1 for a name that cannot be used, and why the first such cannot.

        A table sent whole may hold one, as long as no row refers to it.
        """
        # Mostly the table of the frame before, which is sooner compared than hashed.
        if frame.series == self._last_table:
            return self._last_codes
        key = tuple(frame.series)
        found = self._tables.get(key)
        if found is None:
            codes: list[int] = []
            unusable = ""
            for provider, kind, interval, symbols in frames.symbols_of(frame):
                try:
                    known = self._by_symbol[provider, kind, interval]
                    codes += [known[symbol] for symbol in symbols]
                except KeyError:
                    for symbol in symbols:
                        try:
                            codes.append(self.code((provider, symbol, kind, interval)))
                        except PoisonRecord as error:
                            codes.append(-1)
                            unusable = unusable or str(error)
            if len(self._tables) >= _TABLES:
                self._tables.clear()
            found = self._tables[key] = np.array(codes, np.int32), unusable
        self._last_table, self._last_codes = frame.series, found
        return found
