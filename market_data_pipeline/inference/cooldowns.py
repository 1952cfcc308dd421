"""How long a signal is silent for its symbol after it was given."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

from market_data_core.events import Signal

Of = tuple[str, str]
"""Provider and symbol."""
Past = Callable[[str, Sequence[str], int, int], Awaitable[list[Signal]]]
"""Stored signals of one provider and some symbols, of ``[start, end)`` in ns."""


class Cooldowns:
    """When each signal was last given, in event time.

    What was given before a restart is read from the store, once a symbol. The effect of a cooldown reaches as far as
    signals follow each other; when a bar is amended, only the bars that it changes are decided on again.
    """

    def __init__(self, past: Past) -> None:
        self._past = past
        self._given: dict[Of, dict[str, list[int]]] = {}
        self._reaches: dict[Of, int] = {}

    async def learn(
        self, wanted: Iterable[tuple[Of, int, int]], revised: Collection[tuple[str, str, int]]
    ) -> None:
        """Read what was given before the times of ``wanted``: (provider and symbol, ts, cooldown), in ns; but not for
        the bars that are decided on again."""
        spans: dict[Of, tuple[int, int]] = {}
        for of, ts, cooldown in wanted:
            if ts - cooldown < self._reaches.get(of, 2**63 - 1):
                first, last = spans.get(of, (ts - cooldown, ts))
                spans[of] = (min(first, ts - cooldown), max(last, ts))
        for provider in sorted({of[0] for of in spans}):
            symbols = sorted(of[1] for of in spans if of[0] == provider)
            start = min(spans[provider, s][0] for s in symbols)
            end = max(spans[provider, s][1] for s in symbols)
            for signal in await self._past(provider, symbols, start, end):
                again = (provider, signal.symbol, signal.ts) in revised
                if not again and "withdrawn" not in signal.meta:
                    self._note((provider, signal.symbol), signal.name, signal.ts)
            for symbol in symbols:
                known = self._reaches.get((provider, symbol), start)
                self._reaches[provider, symbol] = min(start, known)

    def forget(self, of: Of, ts: int) -> None:
        """The bar that ended at ``ts`` is decided on again: what was given for it no longer counts."""
        for times in self._given.get(of, {}).values():
            at = bisect_left(times, ts)
            if at < len(times) and times[at] == ts:
                del times[at]

    def allows(self, of: Of, name: str, ts: int, cooldown: int) -> bool:
        """Whether ``name`` may be given at ``ts``; it is noted if so. Call in the order of time."""
        times = self._given.setdefault(of, {}).setdefault(name, [])
        at = bisect_left(times, ts)
        if at > 0 and ts - times[at - 1] < cooldown:
            return False
        self._note(of, name, ts)
        return True

    def _note(self, of: Of, name: str, ts: int) -> None:
        times = self._given.setdefault(of, {}).setdefault(name, [])
        at = bisect_left(times, ts)
        if at == len(times) or times[at] != ts:
            insort(times, ts)
