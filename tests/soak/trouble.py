"""What goes wrong in the middle of a soak: all are stopped and killed, the store goes away, history is replayed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg

from market_data_core.times import format_time
from tests.chaos.crew import Crew
from tests.chaos.waiting import until
from tests.soak.load import Produced
from tests.soak.plan import WINDOW_NS
from tests.soak.stand import Stand

_ROWS: Final = (
    "SELECT md5(string_agg(b::text || b.xmin::text, '' ORDER BY {key})) FROM {table} b WHERE provider = %s"
)
_TABLES: Final = {"bars_ohlcv": "interval, symbol, ts", "signals": "symbol, ts, name"}


@dataclass(slots=True)
class Harm:
    """What was done. ``own``: the micro-batcher's summary of its whole life, which ended with the calm phase.
    ``rewritten``: tables of which a replay wrote or added a row."""

    blows: dict[str, int] = field(default_factory=dict)
    recoveries_s: dict[str, list[float]] = field(default_factory=dict)
    replayed: list[int] = field(default_factory=list)
    rewritten: list[str] = field(default_factory=list)
    own: dict[str, Any] = field(default_factory=dict)


class Trouble:
    """Does the harm to ``stand``. ``calm``: the events of the phase before, of which a range is replayed."""

    def __init__(self, stand: Stand, calm: Produced) -> None:
        self.harm = Harm()
        self._stand = stand
        self._calm = calm
        self._rng = random.Random(f"{stand.plan.seed}/trouble")

    async def run(self) -> Harm:
        """All of it, ``rounds`` times, in random order; each blow when everybody commits again after the one before."""
        stand = self._stand
        blows: dict[str, Callable[[], Awaitable[None]]] = {
            "SIGTERM micro-batch": lambda: self._restart(stand.batchers, kill=False),
            "SIGTERM infer": lambda: self._restart(stand.inferrers, kill=False),
            "kill -9 micro-batch": lambda: self._restart(stand.batchers, kill=True),
            "kill -9 infer": lambda: self._restart(stand.inferrers, kill=True),
            "PostgreSQL away": self._outage,
            "replay": self._replay,
        }
        async with stand.batchers.watch, stand.inferrers.watch:
            for number in range(stand.plan.rounds):
                order = self._rng.sample(stand.plan.blows, len(stand.plan.blows))
                if number == 0:
                    # First, so that its summary is of the calm phase.
                    order.sort(key=lambda what: what != "SIGTERM micro-batch")
                for what in order:
                    await self._pause()
                    stand.note(what)
                    self.harm.blows[what] = self.harm.blows.get(what, 0) + 1
                    await blows[what]()
                    for crew in stand.crews:
                        await crew.progress(stand.check)
            for crew in stand.crews:
                await crew.recovered()
                self.harm.recoveries_s[crew.role] = [round(s, 2) for s in crew.watch.recoveries]
        return self.harm

    async def _pause(self) -> None:
        await asyncio.sleep(self._rng.uniform(*self._stand.plan.pause_s))
        self._stand.check()

    async def _restart(self, crew: Crew, *, kill: bool) -> None:
        """End the worker and start another one at once, as an init system would."""
        (worker,) = crew.workers
        if kill:
            crew.kill(worker)
        else:
            await crew.leave(worker)
            if not self.harm.own and crew is self._stand.batchers:
                self.harm.own = worker.result()
        epochs = {p: held.epoch for p, held in crew.watch.held.items()}
        await crew.join()
        await until(
            f"the new {crew.role} owns every partition",
            120,
            lambda: all(crew.watch.held[p].epoch > epoch for p, epoch in epochs.items()),
        )

    async def _outage(self) -> None:
        servers = self._stand.servers
        await servers.kill_postgres("all")
        await asyncio.sleep(self._stand.plan.outage_s)
        await servers.revive()
        self._stand.look_for_servers()
        self._stand.note("PostgreSQL back")

    async def _replay(self) -> None:
        """A range of whole windows of the calm phase, once more: nothing may be written."""
        stand, name = self._stand, self._calm.phase.name
        length = int(stand.plan.replayed_s) * 10**9 // WINDOW_NS * WINDOW_NS
        start = (self._calm.start // WINDOW_NS + 2) * WINDOW_NS
        file = stand.folder / "replayed.csv"
        written = await asyncio.to_thread(self._calm.write_range, start, start + length, file)
        before = await self._rows(name)
        done = await stand.replay(format_time(start), format_time(start + length))
        assert done["published"] == written, f"{done['published']} of {written} events were replayed"
        for crew in stand.crews:
            await crew.progress(stand.check)
        after = await self._rows(name)
        self.harm.replayed.append(written)
        self.harm.rewritten += [table for table in _TABLES if before[table] != after[table]]

    async def _rows(self, provider: str) -> dict[str, str | None]:
        """A digest of every row of ``provider`` with the transaction that wrote it, by table."""
        found: dict[str, str | None] = {}
        async with await psycopg.AsyncConnection.connect(self._stand.servers.postgres_url) as connection:
            for table, key in _TABLES.items():
                query = _ROWS.format(table=table, key=key)
                row = await (await connection.execute(query, (provider,))).fetchone()
                found[table] = row[0] if row else None
        return found
