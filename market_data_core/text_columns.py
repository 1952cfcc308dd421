"""Texts that lie somewhere in each of many records, read a column at a time.

Eight characters are one number of 64 bits, the first the lowest byte, so one operation of numpy works on eight
characters of every record: D. Lemire and G. Langdale, "Parsing Gigabytes of JSON per Second", 2019, section 3, and
for numbers W. Clinger, "How to Read Floating Point Numbers Accurately", 1990: a whole number below 2**53 divided by a
power of ten up to 10**22 is the float64 that is nearest to the decimal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from market_data_core.batch import F64, I64, Mask

U64 = NDArray[np.uint64]

PAD: Final = 64
"""Bytes before the first record and after the last, which a text of a record that is not as expected may reach."""
LONGEST_INT: Final = 18
"""Digits of a whole number, which int64 holds whatever they are."""
LONGEST_FLOAT: Final = 16
_MANTISSA: Final = 1 << 53


def _all(byte: int) -> np.uint64:
    return np.uint64(int.from_bytes(bytes([byte]) * 8, "little"))


_ONES: Final = _all(0x01)
_HIGHS: Final = _all(0x80)
_ZEROS: Final = _all(ord("0"))
_POINT: Final = np.uint64(ord(".") ^ ord("0"))
_POINTS: Final = _all(ord(".") ^ ord("0"))
_TO_HIGH: Final = _all(0x80 - 10)
_PLACES: Final = np.uint64(0x0102030405060708)
_SEVEN, _EIGHT, _TOP, _ALL = np.uint64(7), np.uint64(8), np.uint64(56), np.uint64(64)
_WHOLE: Final = 10**18
"""More than any number of LONGEST_FLOAT characters."""
# By the characters from the point on, 0 for a number without one.
_CUT: Final = np.array([_WHOLE] + [10**tail for tail in range(1, LONGEST_FLOAT + 1)], np.int64)
_EXCESS: Final = np.array([0] + [9 * 10 ** (tail - 1) for tail in range(1, LONGEST_FLOAT + 1)], np.int64)
_POWER: Final = np.array([1.0] + [10.0 ** (tail - 1) for tail in range(1, LONGEST_FLOAT + 1)])


class TextColumns:
    """Records one behind the other. ``start`` and ``end``: where each lies in ``buffer``."""

    def __init__(self, records: Sequence[bytes], reach: int = 0) -> None:
        """``reach``: how far behind the end of a record it may be read, beyond PAD."""
        self.buffer = b"".join((bytes(PAD), *records, bytes(PAD + reach)))
        lengths = np.fromiter(map(len, records), np.int64, len(records))
        self.end: I64 = np.cumsum(lengths) + PAD
        self.start: I64 = self.end - lengths
        # At every byte a word, though most are not where a processor likes them.
        self._words: U64 = np.ndarray((len(self.buffer) - 7,), "<u8", self.buffer, 0, (1,))

    def words(self, at: I64) -> U64:
        """The eight bytes at ``at`` of each row."""
        return self._words[at]

    def blocks(self, at: I64, width: int) -> NDArray[np.uint8]:
        """The ``width`` bytes at ``at`` of each row, a row each."""
        # One copy a row, where an index of every byte would be one a byte.
        every: NDArray[Any] = np.ndarray((len(self.buffer) - width + 1,), f"V{width}", self.buffer, 0, (1,))
        return every[at].view(np.uint8).reshape(len(at), width)

    def widths(self, at: I64, ending: int, longest: int) -> I64:
        """How many characters there are from ``at`` to the first byte ``ending``; -1 for more than ``longest``."""
        ends = _all(ending)
        width = _first_zero(self.words(at) ^ ends) - 1
        for skip in range(8, longest + 1, 8):
            missing = width < 0
            if not missing.any():
                break
            further = _first_zero(self.words(at + skip) ^ ends)
            width = np.where(missing & (further > 0), further + (skip - 1), width)
        width[width > longest] = -1
        return width

    def same(self, at: I64, other: I64, width: I64) -> Mask:
        """Whether the ``width`` characters at ``at`` and at ``other`` are the same."""
        differs = np.zeros(len(at), np.uint64)
        for skip in range(0, int(width.max(initial=0)), 8):
            # Shifted out is what comes behind the texts; by 64 bits or more, all.
            beyond = np.clip(8 - (width - skip), 0, 8).astype(np.uint64) << np.uint64(3)
            differs |= (self.words(at + skip) ^ self.words(other + skip)) << beyond
        found: Mask = differs == 0
        return found

    def key(self, at: I64, width: I64, longest: int) -> list[U64]:
        """The texts of up to ``longest`` characters as numbers, the same for the same text."""
        out = []
        for skip in range(0, min(longest, int(width.max(initial=0))), 8):
            beyond = np.clip(8 - (width - skip), 0, 8).astype(np.uint64) << np.uint64(3)
            out.append((self.words(at + skip) << beyond) >> beyond)
        return out

    def ints(self, at: I64, width: I64) -> tuple[I64, Mask]:
        """Whole numbers as JSON has them, and which texts are such; those of LONGEST_INT characters or fewer."""
        digits = self._digits(at, width, LONGEST_INT)
        good = self._leads(at, width) & (width > 0)
        total = np.zeros(len(at), np.int64)
        for place, word in enumerate(digits):
            good &= _all_digits(word)
            total += _number(word) * 10 ** (8 * place)
        return total, good

    def floats(self, at: I64, width: I64) -> tuple[F64, Mask]:
        """Numbers of digits, with a point among them or without, and which texts are such; those of LONGEST_FLOAT
        characters or fewer that are below 2**53 without their point. Others may be good JSON too."""
        tail = np.zeros(len(at), np.int64)
        good = np.ones(len(at), np.bool_)
        total = np.zeros(len(at), np.int64)
        for place, text in enumerate(self._digits(at, width, LONGEST_FLOAT)):
            point = _lowest(_zero_bytes(text ^ _POINTS))
            word = text ^ ((point >> _SEVEN) * _POINT)
            behind = 9 - _place(point)
            found = point != 0
            # A second point further on: what is before it is no number.
            good &= _all_digits(word) & ~(found & (tail > 0))
            tail = np.where(found & (tail == 0), behind + 8 * place, tail)
            total += _number(word) * 10 ** (8 * place)
        # The point counted as a digit 0: take it out.
        total -= total // _CUT[tail] * _EXCESS[tail]
        before = width - tail
        good &= (tail != 1) & (before > 0) & (total < _MANTISSA) & self._leads(at, before)
        return total / _POWER[tail], good

    def _leads(self, at: I64, digits: I64) -> Mask:
        """Whether a number of so many digits before its point begins as one may: not with a 0 before others."""
        first = self.words(at).astype(np.uint8)
        good: Mask = (first != ord("0")) | (digits == 1)
        return good

    def _digits(self, at: I64, width: I64, longest: int) -> list[U64]:
        """The texts from their ends on, eight characters a word, a digit a byte: the last is the highest byte, what
        there is before the first is 0."""
        out = []
        end = at + width
        for skip in range(0, min(longest, int(width.max(initial=0))), 8):
            before = np.clip(8 - (width - skip), 0, 8).astype(np.uint64) << np.uint64(3)
            word = self.words(end - (skip + 8)) ^ _ZEROS
            out.append((word >> before) << before)
        return out


def _zero_bytes(words: U64) -> U64:
    """The highest bit of the lowest byte that is 0, and perhaps of some above it."""
    return (words - _ONES) & ~words & _HIGHS


def _lowest(bits: U64) -> U64:
    return bits & (~bits + np.uint64(1))


def _place(high: U64) -> I64:
    """Which byte the one bit is the highest of, counted from 1; 0 for no bit."""
    return (((high >> _SEVEN) * _PLACES) >> _TOP).view(np.int64)


def _first_zero(words: U64) -> I64:
    """The first byte that is 0, counted from 1; 0 for none."""
    return _place(_lowest(_zero_bytes(words)))


def _all_digits(words: U64) -> Mask:
    # A byte of 10 or more gets its highest bit, or has it; one that carries into the next is seen itself.
    good: Mask = (((words + _TO_HIGH) | words) & _HIGHS) == 0
    return good


def _number(digits: U64) -> I64:
    """The whole number of eight digits, the highest byte the last."""
    pairs = (digits * np.uint64(2561)) >> _EIGHT
    fours = ((pairs & np.uint64(0x00FF00FF00FF00FF)) * np.uint64(6553601)) >> np.uint64(16)
    eights = ((fours & np.uint64(0x0000FFFF0000FFFF)) * np.uint64(42949672960001)) >> np.uint64(32)
    return eights.view(np.int64)
