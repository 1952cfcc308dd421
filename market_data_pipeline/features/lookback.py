"""LookBack: what a history holds behind each of some bars, as matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from market_data_core.batch import F64, I32, I64
from market_data_pipeline.features.history import BarHistory


class LookBack:
    """The newest windows behind each of ``K`` bars, the bar's own the last, as matrices ``[n, K]``.

    Bars of one window (``window`` is a number) are slices of the grid, of all series when ``code`` is a slice: views,
    as long as the ring does not close within them. Bars of one series (``code`` is a number) in windows that follow
    each other are copied as runs. Others are gathered cell by cell.
    """

    def __init__(
        self, history: BarHistory, depth: Mapping[str, int], code: I32 | slice | int, window: int | I64
    ) -> None:
        """``depth``: how many windows of which column can be asked for."""
        self._history = history
        self._depth = depth
        self._code = code
        self._window = window
        self._matrices: dict[str, NDArray[Any]] = {}
        self._cells: I64 = np.empty((0, 0), np.int64)
        if isinstance(window, np.ndarray) and isinstance(code, np.ndarray):
            back = np.arange(1 - max(depth.values()), 1)[:, None]
            stride = history.column("present").shape[1]
            self._cells = ((window + back) & (history.width - 1)) * stride + code

    def last(self, name: str, n: int) -> NDArray[Any]:
        """The newest ``n`` windows of a column, ``[n, K]``; not to be written."""
        matrix = self._matrices.get(name)
        if matrix is None:
            matrix = self._matrices[name] = self._gather(self._history.column(name), self._depth[name])
        return matrix[len(matrix) - n :]

    def _gather(self, column: NDArray[Any], n: int) -> NDArray[Any]:
        if isinstance(self._code, int):
            return self._run(column[:, self._code], n)
        if not isinstance(self._window, int):
            return column.reshape(-1).take(self._cells[len(self._cells) - n :])
        end = (self._window & (self._history.width - 1)) + 1
        parts = [column[end - n : end]] if end >= n else [column[end - n :], column[:end]]
        if isinstance(self._code, slice):
            parts = [part[:, self._code] for part in parts]
        else:
            parts = [part.take(self._code, axis=1) for part in parts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run(self, ring: NDArray[Any], n: int) -> NDArray[Any]:
        first, count = np.min(self._window), np.size(self._window)
        line = ring[np.arange(first - n + 1, first + count) & (self._history.width - 1)]
        # A copy, in which numpy adds up rows one after the other; see total().
        return np.ascontiguousarray(sliding_window_view(line, count))


def total(matrix: NDArray[Any]) -> F64:
    """The sum of each column, ``[n, K]`` to ``[K]``, added from the first row to the last.

    The order is what makes a bar's features the same to the last bit whatever bars are computed beside it. numpy adds
    a matrix row by row, but a single column, which is contiguous, in pairs of halves.
    """
    if matrix.shape[1] == 1 and len(matrix):
        return np.asarray(np.add.accumulate(matrix[:, 0])[-1:])
    return np.asarray(np.add.reduce(matrix, axis=0))
