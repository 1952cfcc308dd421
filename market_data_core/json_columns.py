"""Many records of JSON as columns, by the few texts that their producers write around the values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from market_data_core.batch import EventBatch
from market_data_core.json_template import LONGEST, Columns, JsonTemplate
from market_data_core.series_codes import SeriesCodes
from market_data_core.single_event import DECODE_ERRORS, of_json
from market_data_core.text_columns import TextColumns
from market_data_core.validation import sound

FEWEST: Final = 1000
"""Records that are worth it: there are hundreds of operations on columns, each as dear as a row or two
of a parser."""
_TEMPLATES: Final = 8
_REST: Final = 50
"""Calls to let be after one in which most records fitted no template."""

Part = tuple[EventBatch, NDArray[np.int32]]
"""Events, and the number of the record that each is."""


class JsonColumns:
    """The templates of one consumer, those of most use first."""

    def __init__(self, codes: SeriesCodes) -> None:
        self._codes = codes
        self._templates: list[JsonTemplate] = []
        self._resting = 0

    def read(self, values: Sequence[bytes]) -> tuple[list[Part], NDArray[np.intp]]:
        """The events of the records that fit a template, all of them sound; and the numbers of the other records."""
        left = np.arange(len(values))
        if self._resting or len(values) < FEWEST:
            self._resting = max(0, self._resting - 1)
            return [], left
        records = TextColumns(values, 2 * LONGEST)
        found: list[tuple[JsonTemplate, Columns]] = []
        for template in self._templates:
            left = _take(template, records, left, found)
        # The first may be one of a kind.
        for place in (0, -1):
            new = self._template_of(values[left[place]]) if len(left) >= FEWEST else None
            if new is not None:
                left = _take(new, records, left, found)
        found.sort(key=lambda f: -len(f[1].rows))
        used = [template for template, _ in found]
        self._templates = (used + [t for t in self._templates if t not in used])[:_TEMPLATES]
        if 2 * len(left) > len(values):
            self._resting = _REST
        return self._parts([columns for _, columns in found], left)

    def _template_of(self, value: bytes) -> JsonTemplate | None:
        try:
            event = of_json(value)
        except DECODE_ERRORS:
            return None
        provider, kind, interval = event.provider, event.kind, event.interval
        return JsonTemplate.of(
            value, event, lambda symbol: self._codes.code((provider, symbol, kind, interval))
        )

    def _parts(self, found: list[Columns], left: NDArray[np.intp]) -> tuple[list[Part], NDArray[np.intp]]:
        parts, unsound = [], [left]
        for f in found:
            o, h, low, c = f.o, f.h, f.l, f.c
            if (o == c).all() and (h == c).all() and (low == c).all():
                o = h = low = c
            batch = EventBatch(
                self._codes.series(), f.code, f.src_ts, f.ingest_ts, o=o, h=h, l=low, c=c, v=f.v, seq=f.seq
            )
            rows = f.rows.astype(np.int32)
            good = sound(batch)
            if not good.all():
                unsound.append(f.rows[~good])
                batch, rows = batch.take(good), rows[good]
            parts.append((batch, rows))
        return parts, np.sort(np.concatenate(unsound)) if len(unsound) > 1 else left


def _take(
    template: JsonTemplate,
    records: TextColumns,
    left: NDArray[np.intp],
    found: list[tuple[JsonTemplate, Columns]],
) -> NDArray[np.intp]:
    """Those of ``left`` that do not fit ``template``."""
    columns = template.read(records, left) if len(left) >= FEWEST else None
    if columns is None:
        return left
    found.append((template, columns))
    if len(columns.rows) == len(left):
        return left[:0]
    other = np.ones(len(left), np.bool_)
    other[np.searchsorted(left, columns.rows)] = False
    return left[other]
