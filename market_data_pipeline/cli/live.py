"""The live terminal view of ``mdp demo`` and ``mdp stream run``."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from market_data_core.ending import end
from market_data_core.errors import MdpError
from market_data_pipeline.cli import picture

if TYPE_CHECKING:
    from market_data_core.events import Bar, Signal
    from market_data_pipeline.consumers.signal_stats import SignalStats
    from market_data_pipeline.consumers.stats import RunStats
    from market_data_pipeline.streaming.bus import Bus

_MOST_ROWS = 12
_MOST_SIGNALS = 8
_RATE_SECONDS = 5.0


@contextmanager
def starting(what: str, *, on_terminal: bool) -> Iterator[Callable[[], None]]:
    """Say what is waited for, until the block ends or calls what it was given."""
    if not on_terminal:
        yield lambda: None
        return
    status = Console(file=sys.stderr).status(f"[dim]{what}[/]", spinner_style="cyan")
    with status:
        yield status.stop


class LiveView:
    """Draws what :class:`RunStats` and :class:`SignalStats` know and what was published, four times a second; lag is
    asked of the bus.

    ``stages``: what the events go through, for the head line. ``interval``: of the bars that are made. ``duration``:
    seconds of the run, None without an end.
    """

    def __init__(
        self,
        stats: RunStats,
        signals: SignalStats,
        published: Callable[[], int],
        bus: Bus,
        topic: str,
        group: str,
        *,
        stages: Sequence[str],
        interval: str,
        duration: float | None,
    ) -> None:
        self._stats = stats
        self._signals = signals
        self._published = published
        self._bus = bus
        self._topic = topic
        self._group = group
        self._stages = stages
        self._interval = interval
        self._duration = duration
        self._lag: int | None = None
        self._started = time.monotonic()
        self._history: deque[tuple[float, int]] = deque([(self._started, 0)])
        self._drawn: dict[str, int] = {}
        self._closes: dict[str, deque[float]] = {}
        self._said: dict[tuple[str, str], Signal] = {}

    @asynccontextmanager
    async def shown(self, *, on_terminal: bool) -> AsyncIterator[None]:
        """Draw while the block runs; without a terminal there is nothing to draw on."""
        if not on_terminal:
            yield
            return
        console = Console(file=sys.stderr)
        live = Live(self.render(console.width), console=console, auto_refresh=False, transient=True)
        task = asyncio.create_task(self._refresh(live))
        try:
            with live:
                yield
        finally:
            await end(task)
            if not task.cancelled():
                task.result()

    async def _refresh(self, live: Live) -> None:
        while True:
            try:
                topics = await self._bus.status([self._topic])
                groups = [g for t in topics for g in t.groups if g.group == self._group]
                self._lag = sum(p.lag for g in groups for p in g.partitions)
            except MdpError:
                self._lag = None
            live.update(self.render(live.console.width), refresh=True)
            await asyncio.sleep(0.25)

    def _rate(self) -> float:
        now = time.monotonic()
        self._history.append((now, self._published()))
        while now - self._history[0][0] > _RATE_SECONDS and len(self._history) > 2:
            self._history.popleft()
        at, count = self._history[0]
        return (self._published() - count) / max(now - at, 1e-9)

    def _note(self, newest: Sequence[Bar]) -> None:
        """Keep the closes of the series that are drawn; a bar that was amended changes its own."""
        for bar in newest:
            series = picture.series_of(bar)
            closes = self._closes.setdefault(series, deque(maxlen=picture.CLOSES))
            if self._drawn.get(series) == bar.ts:
                closes.pop()
            self._drawn[series] = bar.ts
            closes.append(bar.close)

    def _figures(self) -> list[tuple[str, str, str]]:
        s = self._stats
        behind = s.watermark_delay_ms(time.time_ns())
        return [
            ("events", f"{self._published():,}", ""),
            ("events/s", f"{self._rate():,.0f}", ""),
            ("bars", f"{s.stored:,}", "green"),
            ("amended", f"{s.amended:,}", "yellow" if s.amended else ""),
            ("signals", f"{self._signals.stored:,}", "green"),
            ("behind", "-" if behind is None else f"{behind:,.0f} ms", ""),
            ("lag", "-" if self._lag is None else f"{self._lag:,}", ""),
            ("late", f"{s.counts.late:,}", "yellow" if s.counts.late else ""),
            ("duplicates", f"{s.counts.duplicate:,}", "yellow" if s.counts.duplicate else ""),
            ("dead letters", f"{s.dead_lettered:,}", "red" if s.dead_lettered else ""),
        ]

    def _newest_of_each(self) -> list[Signal]:
        """The newest signal of each symbol and name, newest first: one that is made with every bar hides no other."""
        for signal in self._signals.newest:
            self._said[signal.symbol, signal.name] = signal
        return sorted(self._said.values(), key=lambda s: (-s.ts, s.symbol, s.name))[:_MOST_SIGNALS]

    def render(self, width: int) -> Group:
        """The whole picture now, for a terminal of ``width`` characters."""
        s = self._stats
        passed = time.monotonic() - self._started
        newest = sorted(s.last_bars.values(), key=lambda b: (b.symbol, b.provider, b.interval))[:_MOST_ROWS]
        self._note(newest)
        more = len(s.last_bars) - len(newest)
        parts: list[RenderableType] = [
            picture.head(self._stages, passed, self._duration),
            Text(""),
            picture.figures(self._figures(), width),
            Text(""),
            picture.title(f"newest bars of {self._interval}"),
            picture.bars(newest, self._closes, self._interval, more, width),
        ]
        if said := self._newest_of_each():
            parts += [Text(""), picture.title("newest signals of each kind"), picture.signals(said)]
        # At the end partitions are given back, and nothing is waited for.
        if not s.partitions and (self._duration is None or passed < self._duration):
            parts.append(picture.warning("waiting for a partition of the topic"))
        if s.last_error:
            parts.append(picture.warning(f"trying again: {s.last_error}"))
        return Group(*parts)
