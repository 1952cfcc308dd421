"""What every adapter promises. A suite of an adapter derives from :class:`AdapterSuite` and makes it."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from market_data_core.batch import I64
from market_data_core.config import Settings
from market_data_core.events import BarSeries
from market_data_pipeline.features.definitions import definitions
from market_data_pipeline.features.table import FeatureTable
from market_data_pipeline.inference.adapter import Decisions, InferenceAdapter
from market_data_pipeline.inference.checking import checked

INTERVAL_NS = 2 * 10**9
T0 = 1_700_000_000 * 10**9
SYMBOLS = ("SPY", "IBM", "BRK.A")
ROWS = 120

Known = dict[tuple[str, int, str], tuple[float, float, int, bytes]]


class AdapterSuite(ABC):
    """The behaviour that the engine and the consumer rely on."""

    decides_on_missing: ClassVar[bool] = False
    """Whether it signals rows of which every feature is missing."""
    decides_on_all: ClassVar[bool] = False
    """Whether it signals every row that has its features."""

    @abstractmethod
    def make(self) -> InferenceAdapter:
        """A new adapter, made as the others were."""

    def settings(self) -> Settings:
        """The configuration in which its features are defined."""
        return Settings()

    @pytest.fixture
    def adapter(self) -> InferenceAdapter:
        return self.make()

    @pytest.fixture
    def table(self, adapter: InferenceAdapter) -> FeatureTable:
        """Bars of three symbols in turn, with nothing but the features that the adapter declares."""
        rng = np.random.default_rng(5)
        columns = {name: rng.normal(size=ROWS) for name in adapter.features}
        row = np.arange(ROWS)
        ts = T0 + row // len(SYMBOLS) * INTERVAL_NS
        return FeatureTable(
            series=tuple(BarSeries("sim", symbol, "2s") for symbol in SYMBOLS),
            code=(row % len(SYMBOLS)).astype(np.int32),
            ts=ts,
            at=ts + INTERVAL_NS,
            columns=columns,
            previous=np.maximum(row - len(SYMBOLS), -1),
        )

    @pytest.fixture
    def known(self, adapter: InferenceAdapter, table: FeatureTable) -> Known:
        """What it decides on the whole table."""
        known = decided(adapter, table, np.arange(ROWS))
        rows = len({key[:2] for key in known})
        assert rows == ROWS if self.decides_on_all else 0 < rows < ROWS, (
            "the suite needs signals, and rows without"
        )
        return known

    def test_it_says_what_it_is(self, adapter: InferenceAdapter) -> None:
        assert adapter.name
        assert adapter.name.isprintable()
        assert len(adapter.features) == len(set(adapter.features)) > 0
        assert all(isinstance(name, str) for name in adapter.features)
        assert {type(adapter.needs_previous), type(adapter.blocking)} == {bool}

    def test_its_features_exist(self, adapter: InferenceAdapter) -> None:
        found = definitions(self.settings().features, INTERVAL_NS, adapter.features)
        assert [feature.name for feature in found] == list(adapter.features)

    def test_it_decides_the_same_each_time(
        self, adapter: InferenceAdapter, table: FeatureTable, known: Known
    ) -> None:
        assert decided(adapter, table, np.arange(ROWS)) == known
        assert decided(self.make(), table, np.arange(ROWS)) == known

    @pytest.mark.parametrize("pieces", [2, 7, ROWS])
    def test_it_decides_the_same_in_any_split(
        self, adapter: InferenceAdapter, table: FeatureTable, known: Known, pieces: int
    ) -> None:
        order = np.random.default_rng(pieces).permutation(ROWS)
        found: Known = {}
        for wanted in np.array_split(order, pieces):
            found |= decided(adapter, table, wanted)
        assert found == known

    def test_it_decides_the_same_in_a_table_of_another_order(
        self, adapter: InferenceAdapter, table: FeatureTable, known: Known
    ) -> None:
        shuffled = table.take(np.random.default_rng(1).permutation(ROWS))
        assert decided(adapter, shuffled, np.arange(ROWS)) == known

    def test_it_looks_at_nothing_but_what_it_may(
        self, adapter: InferenceAdapter, table: FeatureTable, known: Known
    ) -> None:
        """All rows that are neither wanted nor, if it needs them, before those are something else."""
        wanted = np.flatnonzero(np.random.default_rng(2).random(ROWS) < 0.2)
        seen = np.zeros(ROWS, np.bool_)
        seen[wanted] = True
        before = table.previous[wanted]
        if adapter.needs_previous:
            seen[before[before >= 0]] = True
        for other in (np.nan, 1e9, -1e9):
            columns = {name: np.where(seen, column, other) for name, column in table.columns.items()}
            found = decided(adapter, _with(table, columns), wanted)
            assert found == _of_rows(known, table, wanted)

    def test_it_needs_no_row_but_what_it_may(
        self, adapter: InferenceAdapter, table: FeatureTable, known: Known
    ) -> None:
        wanted = np.arange(40, 60)
        before = np.setdiff1d(table.previous[wanted], wanted) if adapter.needs_previous else wanted[:0]
        alone = table.take(np.concatenate([wanted, before]))
        assert decided(adapter, alone, np.arange(len(wanted))) == _of_rows(known, table, wanted)

    def test_it_changes_nothing_in_the_table(self, adapter: InferenceAdapter, table: FeatureTable) -> None:
        arrays: list[NDArray[Any]] = [table.code, table.ts, table.at, table.previous, *table.columns.values()]
        copies, wanted = [array.copy() for array in arrays], np.arange(ROWS)
        for array in (*arrays, wanted):
            array.flags.writeable = False
        names = list(table.columns)
        adapter.decide(table, wanted)
        assert list(table.columns) == names
        for array, copy in zip(arrays, copies, strict=True):
            np.testing.assert_array_equal(array, copy)

    def test_rows_without_features(self, adapter: InferenceAdapter, table: FeatureTable) -> None:
        missing = _with(table, {name: np.full(ROWS, np.nan) for name in table.columns})
        found = decided(adapter, missing, np.arange(ROWS))
        assert bool(found) == self.decides_on_missing

    def test_nothing_is_wanted(self, adapter: InferenceAdapter, table: FeatureTable) -> None:
        assert decided(adapter, table, np.empty(0, np.int64)) == {}
        assert decided(adapter, table.take(np.empty(0, np.int64)), np.empty(0, np.int64)) == {}

    def test_it_decides_the_same_in_another_thread(
        self, adapter: InferenceAdapter, table: FeatureTable, known: Known
    ) -> None:
        found: list[Known] = []
        threads = [
            threading.Thread(target=lambda: found.append(decided(adapter, table, np.arange(ROWS))))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [known, known]

    def test_it_closes_twice(self, adapter: InferenceAdapter, table: FeatureTable) -> None:
        adapter.decide(table, np.arange(5))
        adapter.close()
        adapter.close()


def decided(adapter: InferenceAdapter, table: FeatureTable, wanted: I64) -> Known:
    """Checked decisions by (symbol, time, name): value, score, cooldown and meta as JSON."""
    found: Decisions = checked(adapter.decide(table, wanted), table, wanted)
    cooldown: Sequence[Any] = [0] * len(found) if found.cooldown_ns is None else found.cooldown_ns.tolist()
    columns = (
        found.row.tolist(),
        found.name,
        found.value.tolist(),
        found.score.tolist(),
        cooldown,
        found.meta,
    )
    return {
        (table.series[table.code[row]].symbol, int(table.ts[row]), name): (
            value,
            score,
            quiet,
            msgspec.json.encode(meta, order="deterministic"),
        )
        for row, name, value, score, quiet, meta in zip(*columns, strict=True)
    }


def _with(table: FeatureTable, columns: dict[str, Any]) -> FeatureTable:
    return FeatureTable(table.series, table.code, table.ts, table.at, columns, table.previous)


def _of_rows(known: Known, table: FeatureTable, rows: I64) -> Known:
    places = {(table.series[table.code[row]].symbol, int(table.ts[row])) for row in rows.tolist()}
    return {key: value for key, value in known.items() if key[:2] in places}
