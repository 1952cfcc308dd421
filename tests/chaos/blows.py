"""What hits a deployment, one blow at a time: a kill, a stop, a crash of a server, a join or a leave."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable

from tests.chaos import moments
from tests.chaos.crew import Crew
from tests.chaos.deployment import PARTITIONS, Deployment
from tests.chaos.scale import Moment, Scale
from tests.chaos.servers import PostgresDeath
from tests.chaos.waiting import until


class Blows:
    """The random generator, the counts and the log of one run. ``outages_s``: of what befell a server or a wire, the
    seconds until every partition had commits again."""

    def __init__(
        self, deployment: Deployment, scale: Scale, rng: random.Random, say: Callable[[str], None]
    ) -> None:
        self.deployment, self.scale, self.rng = deployment, scale, rng
        self.counts: Counter[str] = Counter()
        self.outages_s: list[float] = []
        self.log: list[str] = []
        self._say = say
        self._began = time.monotonic()

    def note(self, text: str) -> None:
        """One line for whoever wants to know what happened before a failure."""
        line = f"{time.monotonic() - self._began:8.3f}  {text}"
        self.log.append(line)
        self._say(line)

    async def pause(self, least: float, most: float) -> None:
        """A random time between two blows."""
        await self.deployment.pause(self.rng.uniform(least, most))

    async def progress(self, since: float) -> None:
        """Wait until every partition commits again; what that took counts from monotonic ``since``."""
        await self.deployment.progress()
        self.outages_s.append(time.monotonic() - since)
        self.note(f"every partition commits again, {self.outages_s[-1]:.2f} s after")

    async def settled(self) -> None:
        """Wait until nobody is just starting: who cannot reach a server then is right to say so and to end."""
        crews = (self.deployment.batchers, self.deployment.inferrers)

        def all_own() -> bool:
            self.deployment.check()
            return all(len(c.owners()) >= min(len(c.workers), PARTITIONS) for c in crews)

        await until("every worker has a partition", 120, all_own)

    async def kill(self, crew: Crew, counted: str) -> None:
        """Kill one or more of ``crew``, and start as many."""
        rng = self.rng
        if rng.random() < 0.7:  # the others strike into the recovery from the one before
            await crew.recovered()
        await self.pause(0.1, 1.5)
        victims = [rng.choice(crew.workers)]
        chance = rng.random()
        if chance < 0.1:
            victims = rng.sample(crew.workers, rng.randint(2, len(crew.workers)))
        elif chance < 0.8:  # the others may be starting, or wait for a partition
            await until("somebody owns a partition", 60, lambda: bool(crew.owners()))
            victims = [rng.choice(crew.owners())]
        for worker in victims:
            self.note(f"kill -9 {worker.name}, which holds {crew.watch.of(worker.pid)}")
            crew.kill(worker)
            self.counts[counted] += 1
        for _ in victims:
            await crew.join()

    async def stop(self, crew: Crew, moment: Moment, counted: str) -> None:
        """Stop an owner of ``crew`` for longer than its lease."""
        d = self.deployment
        await self.pause(0.5, 2.0)
        victim = await moments.stopped(d, crew, moment, self.rng)
        before = {p: crew.watch.held[p].epoch for p in crew.watch.of(victim.pid)}
        self.note(f"stopped {victim.name} {moment}, which holds {sorted(before)}")
        self.counts[counted] += 1
        # Nobody may wait for a stopped owner for longer than its lease and the limit of an idle transaction.
        waited = await until(
            "others take over from a stopped owner",
            30,
            lambda: all(crew.watch.held[p].epoch > epoch for p, epoch in before.items()),
        )
        await self.pause(0.0, d.plan.lease_ms / 1000)
        victim.go_on()
        self.note(f"{victim.name} goes on; others had its partitions after {waited:.2f} s")

    async def refused(self, crew: Crew, counted: str) -> None:
        """Stop owners of ``crew`` until a write of one is refused, at most ten times. One in twenty that is stopped
        inside of a transaction has sent all of it by then, so that it commits, and rightly."""
        for _ in range(10):
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                if crew.fenced():
                    return
                await self.deployment.pause(0.1)
            await crew.recovered()
            await self.stop(crew, "before the lock", counted)

    async def crash(self, how: PostgresDeath) -> None:
        """Kill the bus and PostgreSQL, one after the other."""
        d = self.deployment
        await self.settled()
        for what in self.rng.sample(("bus", "postgres"), 2):
            await self.pause(0.5, 2.0)
            if what == "bus":
                self.note(f"kill -9 {d.servers.bus.name}")
                await d.servers.bus.kill()
            else:
                self.note(f"kill -9 postgres: {how}")
                await d.servers.kill_postgres(how)
            self.counts[f"{what} kills"] += 1
            await self.pause(0.0, 3.0)
            await d.servers.revive()
            self.note(f"{what} is back")
            await self.progress(time.monotonic())

    async def change(self, crew: Crew, most: int, whose: str) -> None:
        """One joins ``crew``, or one of more than two leaves in order."""
        rng = self.rng
        if len(crew.workers) <= 2 or (len(crew.workers) < most and rng.random() < 0.5):
            worker = await crew.join()
            self.note(f"{worker.name} joins")
            self.counts[f"{whose}joins"] += 1
        else:
            worker = rng.choice(crew.workers)
            self.note(f"{worker.name} leaves, which holds {crew.watch.of(worker.pid)}")
            await crew.leave(worker)
            self.counts[f"{whose}leaves"] += 1
