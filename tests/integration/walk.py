"""Prices that wander enough for the seed's rules to fire, and a recount of bars and signals made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from market_data_core.clock import ManualClock
from market_data_core.events import StreamEvent
from market_data_store import StoreClient
from tests.integration.pipeline import SECOND, SETTINGS, assert_equal, stored, tick
from tests.integration.signals_pipeline import Decides
from tests.integration.signals_recount import seed_signals
from tests.oracle import recount

RULES: Final = Path(__file__).resolve().parents[2] / "configs" / "rules.yaml"
WINDOW: Final = SETTINGS.windows.window_ns
_KEY: Final = ["symbol", "at", "name"]


def walk(count: int, symbols: int = 6, every_ms: int = 100) -> list[StreamEvent]:
    """``count`` ticks, one each ``every_ms``, of ``symbols`` in turn."""
    rng = np.random.default_rng(7)
    prices = np.exp(np.cumsum(rng.normal(0, 0.004, (count // symbols + 1, symbols)), axis=0)) * 100
    return [
        tick(f"S{i % symbols}", i * every_ms, float(prices[i // symbols, i % symbols]), 1 + i % 5, i)
        for i in range(count)
    ]


def seed_rules() -> Decides:
    """The rules of the seed, on a clock that stands."""
    return Decides(RULES, ManualClock())


async def assert_recounted(store: StoreClient, events: Sequence[StreamEvent]) -> int:
    """Bars and signals in the store are those of ``events``, row by row; return how many signals that is."""
    want = recount(events, WINDOW)
    assert_equal(await stored(store), want)
    bars = pd.DataFrame(
        [{"symbol": s, "ts": ts // SECOND, "close": b.close} for (_, s, ts), b in want.items()]
    )
    fired, unsure = seed_signals(bars.sort_values(["symbol", "ts"]), WINDOW // SECOND)
    rows = [
        (s.symbol, s.ts // SECOND, s.name, s.value, s.score, s.meta["price"])
        for s in await store.signals()
        if "withdrawn" not in s.meta
    ]
    got = pd.DataFrame(rows, columns=fired.columns)
    border = set(unsure[_KEY].itertuples(index=False, name=None))
    pd.testing.assert_frame_equal(_sure(got, border), _sure(fired, border), check_dtype=False)
    return len(got)


def _sure(signals: pd.DataFrame, border: set[tuple[object, ...]]) -> pd.DataFrame:
    known = [key not in border for key in signals[_KEY].itertuples(index=False, name=None)]
    return signals[known].sort_values(_KEY).reset_index(drop=True)
