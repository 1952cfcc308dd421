"""The codes of symbols by their text in the records, a column at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from market_data_core.batch import I32, I64, Mask
from market_data_core.errors import PoisonRecord
from market_data_core.text_columns import U64, TextColumns

LONGEST_SYMBOL: Final = 32
"""Bytes of a symbol that can be looked up."""
_ODD: Final = tuple(
    np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


class SymbolTable:
    """Learns symbols as they come. ``code`` gives the code of a new one, and raises PoisonRecord for what is none."""

    def __init__(self, code: Callable[[str], int]) -> None:
        self._code_of = code
        self._known: dict[bytes, int] = {}
        self._codes: I32 = np.empty(0, np.int32)
        self._hashes: U64 = np.empty(0, np.uint64)
        self._keys: list[U64] = []
        self._widths: I64 = np.empty(0, np.int64)

    def codes(self, records: TextColumns, at: I64, width: I64, learn: Mask) -> tuple[I32, Mask]:
        """The code of the text at ``at`` of each row, and which rows have one. New texts of the rows to ``learn`` from
        are taken into the table."""
        key = records.key(at, width, LONGEST_SYMBOL)
        code, known = self._find(key, width)
        new = np.flatnonzero(learn & ~known)
        if len(new):
            begins, ends = at[new].tolist(), (at + width)[new].tolist()
            texts = {records.buffer[begin:end] for begin, end in zip(begins, ends, strict=True)}
            if self._learn(texts - self._known.keys()):
                code, known = self._find(key, width)
        return code, known

    def _find(self, key: list[U64], width: I64) -> tuple[I32, Mask]:
        if not self._known or not key:
            return np.zeros(len(width), np.int32), np.zeros(len(width), np.bool_)
        place = np.minimum(np.searchsorted(self._hashes, _hash(key)), len(self._hashes) - 1)
        # In a key, what is behind the text is as a character zero, which a text may have too.
        same: Mask = self._widths[place] == width
        for i in range(max(len(key), len(self._keys))):
            mine = key[i] if i < len(key) else np.uint64(0)
            same &= mine == (self._keys[i][place] if i < len(self._keys) else np.uint64(0))
        return self._codes[place], same

    def _learn(self, texts: set[bytes]) -> bool:
        """Whether any of the ``texts`` is a symbol that was not known."""
        before = len(self._known)
        for text in texts:
            # An escape stands for another character than itself.
            if 0 < len(text) <= LONGEST_SYMBOL and b"\\" not in text:
                try:
                    self._known[text] = self._code_of(text.decode())
                except (PoisonRecord, UnicodeDecodeError):
                    continue
        if len(self._known) == before:
            return False
        all_of_them = TextColumns(list(self._known))
        widths = all_of_them.end - all_of_them.start
        key = all_of_them.key(all_of_them.start, widths, LONGEST_SYMBOL)
        hashes = _hash(key)
        order = np.argsort(hashes)
        self._hashes = hashes[order]
        self._keys = [word[order] for word in key]
        self._widths = widths[order]
        self._codes = np.fromiter(self._known.values(), np.int32, len(self._known))[order]
        return True


def _hash(key: list[U64]) -> U64:
    """One number a text, whatever the longest of its column is."""
    total = key[0] * _ODD[0]
    for word, odd in zip(key[1:], _ODD[1:], strict=False):
        total += word * odd
    return total
