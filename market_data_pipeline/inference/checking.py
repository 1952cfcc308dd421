"""Whether what an adapter returned are decisions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec
import numpy as np

from market_data_core.batch import I64
from market_data_pipeline.features.table import FeatureTable
from market_data_pipeline.inference.adapter import Decisions
from market_data_pipeline.inference.observer import Failed

MAX_NAME: Final = 64
"""Longest name of a signal, in characters."""
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def checked(decisions: object, table: FeatureTable, wanted: I64) -> Decisions:
    """``decisions``, with int64 rows and float64 numbers, when they can be signals of the ``wanted`` rows.

    Raises:
        Failed: ``result``, with what is wrong.
    """
    if not isinstance(decisions, Decisions):
        raise _wrong(f"it returned {type(decisions).__name__} and not Decisions")
    n = np.size(decisions.row)
    row = _numbers("row", decisions.row, n, "iu").astype(np.int64, copy=False)
    value = _numbers("value", decisions.value, n, "iuf").astype(np.float64, copy=False)
    score = _numbers("score", decisions.score, n, "iuf").astype(np.float64, copy=False)
    cooldown = decisions.cooldown_ns
    if cooldown is not None:
        cooldown = _numbers("cooldown_ns", cooldown, n, "iu").astype(np.int64, copy=False)
        if (cooldown < 0).any():
            raise _wrong("cooldown_ns is negative")
    _among(row, len(table), wanted)
    for name, column in (("value", value), ("score", score)):
        if not np.isfinite(column).all():
            raise _wrong(f"{name} is {column[~np.isfinite(column)][0]}, which is not finite")
    names = _names(decisions.name, n)
    if len(set(zip(row.tolist(), names, strict=True))) < n:
        raise _wrong("it decided twice on one row under one name")
    return Decisions(row, names, value, score, _meta(decisions.meta, n), cooldown)


def _numbers(what: str, column: object, n: int, kinds: str) -> np.ndarray[Any, Any]:
    if not isinstance(column, np.ndarray) or column.dtype.kind not in kinds or column.ndim != 1:
        raise _wrong(f"{what} is not a one-dimensional array of {'whole ' * (kinds == 'iu')}numbers")
    if len(column) != n:
        raise _wrong(f"{what} has the length {len(column)}, and row {n}")
    return column


def _among(row: I64, n: int, wanted: I64) -> None:
    asked = np.zeros(n, np.bool_)
    asked[wanted] = True
    outside = (row < 0) | (row >= n)
    outside[~outside] = ~asked[row[~outside]]
    if outside.any():
        raise _wrong(f"it decided on row {row[outside][0]}, which was not wanted")


def _names(names: object, n: int) -> list[str]:
    found = _listed("name", names, n)
    for name in {id(name): name for name in found}.values():
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME or not name.isprintable():
            raise _wrong(f"the name {name!r} is not a text of 1 to {MAX_NAME} printable characters")
    return found


def _meta(meta: object, n: int) -> list[dict[str, Any]]:
    found = _listed("meta", meta, n)
    for one in found:
        if not isinstance(one, dict):
            raise _wrong(f"meta is {type(one).__name__} and not a dict")
    try:
        # This writes NaN as null, which is what a reader of JSON can take.
        text = msgspec.json.encode(found)
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise _wrong(f"meta is nothing that JSON can hold: {error}") from None
    if _NUL.search(text):
        raise _wrong("meta holds the character U+0000, which PostgreSQL does not take")
    return found


def _listed(what: str, items: object, n: int) -> list[Any]:
    if isinstance(items, str) or not isinstance(items, Iterable):
        raise _wrong(f"{what} is {type(items).__name__} and not a sequence")
    found = list(items)
    if len(found) != n:
        raise _wrong(f"{what} has the length {len(found)}, and row {n}")
    return found


def _wrong(message: str) -> Failed:
    return Failed("result", message)
