"""Whether what a provider gives are events, by the rules of the codecs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from market_data_core.batch import EventBatch
from market_data_core.codecs import canonical_series, encode_events, faults
from market_data_core.errors import PoisonRecord
from market_data_core.events import Series
from market_data_pipeline.producers.provider import BadRow


class EventCheck:
    """Finds the rows that no reader would take; names are checked once a table of series."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._series: tuple[Series, ...] = ()
        self._unusable: dict[int, str] = {}

    def __call__(self, batch: EventBatch) -> tuple[EventBatch, list[BadRow]]:
        """The rows that are events, and those that are none, as JSON, with the reason."""
        if batch.series is not self._series:
            self._series, self._unusable = batch.series, _unusable(batch.series)
        bad = faults(batch)
        if self._unusable:
            for row in np.flatnonzero(np.isin(batch.code, list(self._unusable))).tolist():
                bad[row] = self._unusable[int(batch.code[row])]
        if not bad:
            return batch, []
        rows = np.array(sorted(bad), np.intp)
        values = encode_events(batch.take(rows))
        aside = [
            BadRow(self._place, bad[row], value, batch.series[int(batch.code[row])].symbol)
            for row, value in zip(rows.tolist(), values, strict=True)
        ]
        return batch.take(np.setdiff1d(np.arange(len(batch)), rows)), aside


def _unusable(series: Sequence[Series]) -> dict[int, str]:
    """The codes of series whose names no reader would take, with the reason."""
    out: dict[int, str] = {}
    for code, each in enumerate(series):
        try:
            canonical_series(*each)
        except PoisonRecord as error:
            out[code] = str(error)
    return out
