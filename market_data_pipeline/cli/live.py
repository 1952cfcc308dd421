"""The live terminal view of ``mdp demo`` and ``mdp stream run``."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from market_data_core.codecs import format_time
from market_data_core.errors import MdpError

if TYPE_CHECKING:
    from market_data_pipeline.consumers.signal_stats import SignalStats
    from market_data_pipeline.consumers.stats import RunStats
    from market_data_pipeline.streaming.bus import Bus

_MOST_ROWS = 12
_RATE_SECONDS = 5.0


class LiveView:
    """Draws what :class:`RunStats` and :class:`SignalStats` know and what was published, four times a second; lag is
    asked of the bus."""

    def __init__(
        self,
        stats: RunStats,
        signals: SignalStats,
        published: Callable[[], int],
        bus: Bus,
        topic: str,
        group: str,
    ) -> None:
        self._stats = stats
        self._signals = signals
        self._published = published
        self._bus = bus
        self._topic = topic
        self._group = group
        self._lag: int | None = None
        self._started = time.monotonic()
        self._history: deque[tuple[float, int]] = deque([(self._started, 0)])

    @asynccontextmanager
    async def shown(self, *, on_terminal: bool) -> AsyncIterator[None]:
        """Draw while the block runs; without a terminal only ask for the lag, so that nothing is printed."""
        console = Console(file=sys.stderr)
        live = (
            Live(self.render(), console=console, auto_refresh=False, transient=True) if on_terminal else None
        )
        task = asyncio.create_task(self._refresh(live))
        try:
            with live or contextlib.nullcontext():
                yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _refresh(self, live: Live | None) -> None:
        while True:
            try:
                topics = await self._bus.status([self._topic])
                groups = [g for t in topics for g in t.groups if g.group == self._group]
                self._lag = sum(p.lag for g in groups for p in g.partitions)
            except MdpError:
                self._lag = None
            if live is not None:
                live.update(self.render(), refresh=True)
            await asyncio.sleep(0.25)

    def _rate(self) -> float:
        now = time.monotonic()
        self._history.append((now, self._published()))
        while now - self._history[0][0] > _RATE_SECONDS and len(self._history) > 2:
            self._history.popleft()
        at, count = self._history[0]
        return (self._published() - count) / max(now - at, 1e-9)

    def _newest_signals(self) -> Table:
        signals = Table(box=None, header_style="bold", pad_edge=False)
        for name in ("symbol", "at", "signal", "value", "score", "price"):
            signals.add_column(name, justify="left" if name in ("symbol", "at", "signal") else "right")
        for s in reversed(self._signals.newest):
            price = s.meta.get("price")
            signals.add_row(
                s.symbol,
                format_time(s.ts)[11:19],
                s.name,
                f"{s.value:+g}",
                f"{s.score:.2f}",
                f"{price:,.2f}" if isinstance(price, float) else "",
            )
        return signals

    def render(self) -> Group:
        """The whole picture now."""
        s = self._stats
        bars = Table(box=None, header_style="bold", pad_edge=False)
        for name in (
            "symbol",
            "interval",
            "window",
            "open",
            "high",
            "low",
            "close",
            "volume",
            "vwap",
            "events",
        ):
            bars.add_column(name, justify="left" if name in ("symbol", "interval", "window") else "right")
        newest = sorted(s.last_bars.values(), key=lambda b: (b.symbol, b.provider, b.interval))[:_MOST_ROWS]
        for bar in newest:
            prices = (f"{p:,.2f}" for p in (bar.open, bar.high, bar.low, bar.close))
            vwap = "" if bar.vwap is None else f"{bar.vwap:,.4f}"
            at = format_time(bar.ts)[11:19]
            bars.add_row(
                bar.symbol, bar.interval, at, *prices, f"{bar.volume:,.0f}", vwap, f"{bar.n_events:,}"
            )
        if len(s.last_bars) > _MOST_ROWS:
            bars.add_row(f"… and {len(s.last_bars) - _MOST_ROWS} more")
        behind = s.watermark_delay_ms(time.time_ns())
        figures = (
            ("events", f"{self._published():,}"),
            ("events/s", f"{self._rate():,.0f}"),
            ("bars", f"{s.stored:,}"),
            ("signals", f"{self._signals.stored:,}"),
            ("watermark delay", "-" if behind is None else f"{behind:,.0f} ms"),
            ("lag", "-" if self._lag is None else f"{self._lag:,}"),
            ("late", f"{s.counts.late:,}"),
            ("duplicates", f"{s.counts.duplicate:,}"),
            ("dead letters", f"{s.dead_lettered:,}"),
        )
        line = Text("  ").join(Text.assemble((f"{name} ", "dim"), (value, "bold")) for name, value in figures)
        parts: list[Table | Text] = [line, Text(""), bars]
        if self._signals.newest:
            parts += [Text(""), self._newest_signals()]
        if not s.partitions:
            parts.append(Text("waiting for a partition of the topic", style="yellow"))
        if s.last_error:
            parts.append(Text(f"trying again: {s.last_error}", style="yellow"))
        return Group(*parts)
