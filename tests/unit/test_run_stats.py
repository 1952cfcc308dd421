"""The delays in a run's summary: percentiles of the newest ones, in memory that does not grow."""

from __future__ import annotations

import numpy as np
import pytest

from market_data_core.batch import BarBatch
from market_data_core.protocols import Committed
from market_data_pipeline.consumers.partition_logic import Plan
from market_data_pipeline.consumers.stats import RunStats

KEPT = 200_000
AT = 1_700_000_000_000_000_000


def commit(stats: RunStats, delays_ms: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
    """A flush of bars that could have been closed so long before."""
    plan = Plan([], [], [], 0, 0, closable_at=(AT - delays_ms * 1_000_000).tolist())
    stats.flushed(0, plan, Committed(BarBatch.empty(), []), 0.001, AT)


def test_before_the_first_bar_there_is_no_delay() -> None:
    stats = RunStats()
    commit(stats, np.empty(0, np.int64))
    assert stats.delay_ms() == {"p50": None, "p95": None, "p99": None}


@pytest.mark.parametrize(
    "sizes", [[7], [90_000, 90_000], [90_000, 90_000, 90_000, 5], [KEPT, 1], [3, KEPT + 10]]
)
def test_the_newest_delays_count(sizes: list[int]) -> None:
    stats, rng = RunStats(), np.random.default_rng(5)
    # Later ones are longer, so that one too old or too new is seen.
    chunks = [rng.integers(0, 1000, n) + 1000 * i for i, n in enumerate(sizes)]
    for chunk in chunks:
        commit(stats, chunk)
    newest = np.concatenate(chunks)[-KEPT:]
    for name, q in (("p50", 50), ("p95", 95), ("p99", 99)):
        assert stats.delay_ms()[name] == pytest.approx(np.percentile(newest, q), abs=0.001)
