"""Records of JSON that differ in their values only, read a column at a time.

A producer writes every event by the same lines of program, so its records are one text around other values. A template
is that text, taken from a record that a parser of JSON has read. A record fits when it has the same bytes in the same
order around values of the plainest form: a symbol that is known, times in UTC, numbers of digits and a point, and an
``event_id`` of exactly these. The text names each field once and nothing else; a value of that form has no quote, no
backslash and no comma in it, so it ends where it seems to; so a record that fits is an event to any parser of JSON,
and the same one. What does not fit is left to such a parser: a template neither refuses nor guesses.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from market_data_core.batch import F64, I32, I64, Mask
from market_data_core.single_event import WireEvent
from market_data_core.symbol_table import LONGEST_SYMBOL, SymbolTable
from market_data_core.text_columns import LONGEST_FLOAT, LONGEST_INT, TextColumns
from market_data_core.times import read_utc, utc_length

LONGEST: Final = 1024
"""Bytes of a record that a template is made of, at most."""
_FIELD: Final = re.compile(rb'\s*[{,]\s*"([a-z_]+)"\s*:\s*(?:"([^"\\]*)"|([0-9.]+))(?=\s*[,}])')
_NUMBERS: Final = {
    "o": LONGEST_FLOAT,
    "h": LONGEST_FLOAT,
    "l": LONGEST_FLOAT,
    "c": LONGEST_FLOAT,
    "v": LONGEST_FLOAT,
}
_WIDEST: Final = {"symbol": LONGEST_SYMBOL, "seq": LONGEST_INT, **_NUMBERS}
"""Values of any width up to this one. The other values are part of the text, or times, which have one width."""
_TIMES: Final = ("src_ts", "ingest_ts")
_AGAIN: Final = "again:"
"""Before the name of a value that the event's id repeats."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The events of the records number ``rows``; the other columns are those of an EventBatch."""

    rows: NDArray[np.intp]
    code: I32
    src_ts: I64
    ingest_ts: I64
    o: F64
    h: F64
    l: F64
    c: F64
    v: F64
    seq: I64


@dataclass(frozen=True, slots=True)
class _Stretch:
    """What lies between two values of any width: text, and times at fixed places in it.

    ``words``: number, text and mask of each eight bytes that are text, or partly. ``times``: names, where they begin
    and how long they are. ``value``: what follows, up to a byte that is ``ending``; empty at the end of the record.
    """

    width: int
    words: tuple[tuple[int, np.uint64, np.uint64], ...]
    times: tuple[tuple[str, int, int], ...]
    value: str
    ending: int


class JsonTemplate:
    """One text, and the symbols seen in it."""

    def __init__(self, stretches: list[_Stretch], symbols: SymbolTable) -> None:
        self._stretches = stretches
        self._symbols = symbols

    @classmethod
    def of(cls, record: bytes, event: WireEvent, code: Callable[[str], int]) -> JsonTemplate | None:
        """The text of ``record``, which a parser read as ``event``; None if it is not of the plain form.

        ``code``: of a symbol with the provider, kind and interval of ``event``; raises PoisonRecord for what is none.
        """
        values = _values(record, event)
        return None if values is None else cls(_stretches(record, values), SymbolTable(code))

    def read(self, records: TextColumns, rows: NDArray[np.intp]) -> Columns | None:
        """The events of those of ``rows`` that fit; None when there is none. ``records`` can be read for twice LONGEST
        behind their ends."""
        walk = _Walk(records, rows)
        for stretch in self._stretches:
            if not walk.pass_over(stretch):
                return None
        return walk.columns(self._symbols)


class _Walk:
    """A place in each of some records, all of them as far in the text as the others."""

    def __init__(self, records: TextColumns, rows: NDArray[np.intp]) -> None:
        self._records = records
        self._rows = rows
        self._at = records.start[rows]
        self._values: dict[str, tuple[I64, I64]] = {}
        self._times: dict[str, I64] = {}
        self._source: tuple[NDArray[np.uint8], int] = (np.empty((0, 0), np.uint8), 0)

    def pass_over(self, stretch: _Stretch) -> bool:
        """Go on to the end of the value behind ``stretch`` in the records that fit; whether there are any."""
        records = self._records
        block = records.blocks(self._at, -(-stretch.width // 8) * 8)
        words = block.view("<u8")
        differs = np.zeros(len(block), np.uint64)
        for number, text, mask in stretch.words:
            differs |= (words[:, number] ^ text) & mask
        good = differs == 0
        for name, begin, length in stretch.times:
            if name in _TIMES:
                self._times[name], exists = read_utc(block, begin, length)
                good &= exists
                if name == "src_ts":
                    self._source = block, begin
            else:
                good &= _same_columns(block, begin, *self._source, length)
        self._at = self._at + stretch.width
        name = stretch.value
        if not name:
            good &= self._at == records.end[self._rows]
        elif name.startswith(_AGAIN):
            first, width = self._values[name.removeprefix(_AGAIN)]
            good &= records.same(self._at, first, width)
            self._at = self._at + width
        else:
            width = records.widths(self._at, stretch.ending, _WIDEST[name])
            good &= width > 0
            self._values[name] = self._at, width
            self._at = self._at + width
        if not good.all():
            self._keep(good)
        return len(self._rows) > 0

    def _keep(self, good: Mask) -> None:
        """Go on without the other records, in which there is no telling what comes next."""
        self._rows, self._at = self._rows[good], self._at[good]
        self._values = {name: (at[good], width[good]) for name, (at, width) in self._values.items()}
        self._times = {name: column[good] for name, column in self._times.items()}
        block, begin = self._source
        if len(block):
            self._source = block[good], begin

    def columns(self, symbols: SymbolTable) -> Columns | None:
        """The values of the records that have fitted to their ends, those of them that are of the plain form."""
        records, values, times, rows = self._records, self._values, self._times, self._rows
        seq, good = records.ints(*values["seq"])
        numbers: dict[str, F64] = {}
        close, as_wide = values["c"]
        for name in ("c", "o", "h", "l", "v"):
            at, width = values[name]
            if name in "ohl" and (width == as_wide).all() and records.same(at, close, width).all():
                numbers[name] = numbers["c"]
                continue
            numbers[name], plain = records.floats(at, width)
            good &= plain
        code, known = symbols.codes(records, *values["symbol"], good)
        good &= known
        found = Columns(rows, code, times["src_ts"], times["ingest_ts"], **numbers, seq=seq)
        if good.all():
            return found
        return _taken(found, good) if good.any() else None


def _same_columns(
    block: NDArray[np.uint8], begin: int, other: NDArray[np.uint8], at: int, length: int
) -> Mask:
    """Whether the ``length`` (8 or more) bytes from column ``begin`` on are those of ``other`` from ``at`` on."""
    same = np.ones(len(block), np.bool_)
    for skip in (*range(0, length - 8, 8), length - 8):
        mine: NDArray[np.uint64] = np.ndarray((len(block),), "<u8", block, begin + skip, block.strides[:1])
        same &= mine == np.ndarray((len(block),), "<u8", other, at + skip, other.strides[:1])
    return same


def _taken(columns: Columns, good: Mask) -> Columns:
    taken: dict[int, NDArray[np.generic]] = {}
    for name in Columns.__slots__:
        column = getattr(columns, name)
        taken.setdefault(id(column), column[good])
    return Columns(*(taken[id(getattr(columns, name))] for name in Columns.__slots__))  # type: ignore[arg-type]


def _values(record: bytes, event: WireEvent) -> list[tuple[int, int, str]] | None:
    """Where the values that are not part of the text begin and end, in their order."""
    if len(record) > LONGEST:
        return None
    spans: dict[str, tuple[int, int]] = {}
    at = fields = 0
    while (found := _FIELD.match(record, at)) is not None:
        spans[found[1].decode()] = found.span(2) if found[2] is not None else found.span(3)
        at = found.end()
        fields += 1
    names = WireEvent.__struct_fields__
    if not (fields == len(names) and spans.keys() == set(names) and record[at:].strip() == b"}"):
        return None  # a field that is unknown, or stands there twice
    symbol, source, seq = event.symbol.encode(), event.src_ts.encode(), str(event.seq).encode()
    head = event.provider.encode() + b"|"
    id_at, id_end = spans["event_id"]
    if record[id_at:id_end] != head + b"|".join((symbol, source, seq)):
        return None
    if not all(utc_length(spans[name][1] - spans[name][0]) for name in _TIMES):
        return None
    values = [(*spans[name], name) for name in (*_WIDEST, *_TIMES)]
    if any(begin > id_at for begin, _, name in values if name in ("symbol", "src_ts", "seq")):
        return None
    at = id_at + len(head)
    for name, text in (("symbol", symbol), ("src_ts", source), ("seq", seq)):
        values.append((at, at + len(text), _AGAIN + name))
        at += len(text) + 1
    return sorted(values)


def _stretches(record: bytes, values: list[tuple[int, int, str]]) -> list[_Stretch]:
    out = []
    begin, times = 0, list[tuple[str, int, int]]()
    for at, end, name in [*values, (len(record), len(record), "")]:
        if name.removeprefix(_AGAIN) in _TIMES:
            times.append((name, at - begin, end - at))
            continue
        text = bytearray(record[begin:at])
        mask = bytearray(b"\xff" * len(text))
        for _, first, length in times:
            mask[first : first + length] = bytes(length)
        words = tuple(
            (i // 8, np.uint64(_word(text, i)), np.uint64(_word(mask, i)))
            for i in range(0, len(text), 8)
            if _word(mask, i)
        )
        out.append(_Stretch(len(text), words, tuple(times), name, record[end] if name else 0))
        begin, times = end, []
    return out


def _word(text: bytearray, at: int) -> int:
    return int.from_bytes(text[at : at + 8], "little")
