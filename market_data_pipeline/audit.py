"""An independent recount: what was published against what is stored.

It shares no code with the windows. Published events are kept as columns, counted anew by pandas, and compared with
the stored bars row by row. ``mdp demo`` and ``mdp stream run`` end with its verdict.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import pandas as pd

from market_data_core.batch import BarBatch, EventBatch

_KEY = ["provider", "symbol", "ts"]
_RELATIVE = 1e-9


@dataclass(frozen=True, slots=True)
class Verdict:
    """``lost`` and ``duplicated`` in events, ``different`` in bars whose values are not the recount's."""

    events: int
    bars: int
    lost: int
    duplicated: int
    different: int

    @property
    def clean(self) -> bool:
        return not (self.lost or self.duplicated or self.different)


class Audit:
    """Remembers the newest ``max_events`` published events."""

    def __init__(self, max_events: int = 2_000_000) -> None:
        self._batches: deque[EventBatch] = deque()
        self._max = max_events
        self._kept = 0
        self._gone = 0
        self._since: int | None = None

    def observe(self, batch: EventBatch) -> None:
        """Take note of events that are to be published, in order."""
        if len(batch) == 0:
            return
        if self._since is None:
            self._since = int(batch.src_ts.min())
        self._batches.append(batch)
        self._kept += len(batch)
        while self._kept > self._max and len(self._batches) > 1:
            gone = self._batches.popleft()
            self._kept -= len(gone)
            self._gone += len(gone)
            self._since = max(self._since, int(gone.src_ts.max()) + 1)

    def only_first(self, events: int) -> None:
        """Only so many of all events noted were published in the end; the others never left."""
        excess = self._gone + self._kept - events
        while excess > 0 and self._batches:
            last = self._batches.pop()
            rest = len(last) - excess
            if rest > 0:
                self._batches.append(last.take(slice(0, rest)))
            self._kept -= min(excess, len(last))
            excess -= len(last)

    def span(self, window_ns: int, until: int | None = None) -> tuple[int, int] | None:
        """[start, end) in ns of the windows that can be audited: those of which every event is known, and that
        ended at or before ``until``. None when there is none."""
        if self._since is None or not self._batches:
            return None
        last = max(int(b.src_ts.max()) for b in self._batches)
        start = -(-self._since // window_ns) * window_ns
        end = (last // window_ns + 1) * window_ns
        if until is not None:
            end = min(end, until // window_ns * window_ns)
        return (start, end) if start < end else None

    def recount(self, window_ns: int, start: int, end: int) -> pd.DataFrame:
        """One row a (provider, symbol, ts) with open high low close volume notional n."""
        frame = pd.concat([_frame(b) for b in self._batches], ignore_index=True)
        frame = frame[(frame["src_ts"] >= start) & (frame["src_ts"] < end)]
        frame = frame.drop_duplicates(["provider", "symbol", "src_ts", "seq"])
        frame = frame.sort_values(["src_ts", "seq"], kind="stable")
        frame["ts"] = frame["src_ts"] // window_ns * window_ns
        frame["notional"] = frame["c"] * frame["v"]
        grouped = frame.groupby(_KEY, observed=True)
        return grouped.agg(
            open=("o", "first"),
            high=("h", "max"),
            low=("l", "min"),
            close=("c", "last"),
            volume=("v", "sum"),
            notional=("notional", "sum"),
            n=("c", "size"),
        )

    def compare(self, stored: BarBatch, window_ns: int, start: int, end: int) -> Verdict:
        """The verdict on ``stored``, the bars of [start, end) in the store."""
        want = self.recount(window_ns, start, end)
        have = _stored(stored)
        both = want.join(have, how="outer", lsuffix="_want", rsuffix="_have")
        n_want, n_have = both["n_want"].fillna(0), both["n_have"].fillna(0)
        difference = n_have - n_want
        same = both[n_want == n_have]
        off = np.zeros(len(same), np.bool_)
        for name in ("open", "high", "low", "close", "volume", "notional"):
            a, b = same[f"{name}_want"].to_numpy(float), same[f"{name}_have"].to_numpy(float)
            off |= ~np.isclose(a, b, rtol=_RELATIVE, atol=0.0)
        return Verdict(
            events=int(want["n"].sum()),
            bars=len(want),
            lost=int(-difference[difference < 0].sum()),
            duplicated=int(difference[difference > 0].sum()),
            different=int(off.sum()),
        )


def _frame(batch: EventBatch) -> pd.DataFrame:
    providers = np.array([s.provider for s in batch.series], object)
    symbols = np.array([s.symbol for s in batch.series], object)
    columns = {name: getattr(batch, name) for name in ("src_ts", "seq", "o", "h", "l", "c", "v")}
    return pd.DataFrame({"provider": providers[batch.code], "symbol": symbols[batch.code], **columns})


def _stored(bars: BarBatch) -> pd.DataFrame:
    providers = np.array([s.provider for s in bars.series], object)
    symbols = np.array([s.symbol for s in bars.series], object)
    columns = {
        name: getattr(bars, name) for name in ("ts", "open", "high", "low", "close", "volume", "notional")
    }
    names = {"provider": providers[bars.code], "symbol": symbols[bars.code]}
    return pd.DataFrame({**names, **columns, "n": bars.n_events}).set_index(_KEY)
