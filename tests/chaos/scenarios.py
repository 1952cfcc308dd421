"""The five scenarios: what is done to the deployment, and the one run that all of them share.

Every random choice comes from one generator, seeded by the run's seed and the scenario's name, and every blow is
logged with its time, so that a failing seed can be run again. What the operating system does between two blows
cannot be repeated, of course.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import psutil
import psycopg

from tests.chaos import audit, oracle
from tests.chaos.deployment import HORIZON_MS, PARTITIONS, WINDOW_NS, WORKERS, Deployment, Plan
from tests.chaos.processes import Process
from tests.chaos.report import Report
from tests.chaos.servers import PostgresDeath, Servers, Wires
from tests.chaos.waiting import until

Moment = Literal["any", "before the lock", "holding the lock"]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything."""

    rate: int
    kills: int
    stops: tuple[Moment, ...]
    crashes: tuple[PostgresDeath, ...]
    cut_s: float
    turns: int
    changes: int


FULL: Final = Scale(
    rate=25_000,
    kills=100,
    stops=("any",) * 8 + ("before the lock",) * 8 + ("holding the lock",) * 3,
    crashes=("all", "postmaster", "backend", "all", "postmaster", "all"),
    cut_s=10.0,
    turns=8,
    changes=30,
)
SHORT: Final = Scale(
    rate=20_000,
    kills=5,
    stops=("any", "before the lock"),
    crashes=("all",),
    cut_s=2.5,
    turns=3,
    changes=4,
)
MEDLEY: Final = "medley"
"""All scenarios one after another on one deployment, with one recount at the end: what the tests run, shortened."""


class Blows:
    """What hits the deployment: the random generator, the counts and the log of one run."""

    def __init__(
        self, deployment: Deployment, scale: Scale, rng: random.Random, say: Callable[[str], None]
    ) -> None:
        self.deployment, self.scale, self.rng = deployment, scale, rng
        self.counts: Counter[str] = Counter()
        self.log: list[str] = []
        self._say = say
        self._began = time.monotonic()

    def note(self, text: str) -> None:
        """One line for whoever wants to know what happened before a failure."""
        line = f"{time.monotonic() - self._began:8.3f}  {text}"
        self.log.append(line)
        self._say(line)

    async def pause(self, least: float, most: float) -> None:
        await self.deployment.pause(self.rng.uniform(least, most))


# --- (1) ---------------------------------------------------------------------------------------------------------


async def kills(blows: Blows) -> None:
    """``kill -9`` of workers at random moments, sometimes of several at once; a supervisor starts each again."""
    d, rng = blows.deployment, blows.rng
    while blows.counts["kills"] < blows.scale.kills:
        if rng.random() < 0.7:  # the others strike into the recovery from the one before
            await until("what lost its owner commits", 120, lambda: not d.watch.unrecovered)
        await blows.pause(0.1, 1.5)
        victims = [rng.choice(d.workers)]
        chance = rng.random()
        if chance < 0.1:
            victims = rng.sample(d.workers, rng.randint(2, WORKERS))
        elif chance < 0.8:  # the others may be starting, or wait for a partition
            await until("somebody owns a partition", 60, lambda: bool(d.owners()))
            victims = [rng.choice(d.owners())]
        for worker in victims:
            blows.note(f"kill -9 {worker.name}, which holds {d.watch.of(worker.pid)}")
            d.kill(worker)
            blows.counts["kills"] += 1
        for _ in victims:
            await d.join()
    await until("what lost its owner commits", 120, lambda: not d.watch.unrecovered)


# --- (2) ---------------------------------------------------------------------------------------------------------


async def stops(blows: Blows) -> None:
    """SIGSTOP of an owner until others have its partitions, then SIGCONT: a zombie that believes it still owns."""
    d, rng = blows.deployment, blows.rng
    moments = list(blows.scale.stops)
    rng.shuffle(moments)
    for moment in moments:
        await blows.pause(0.5, 2.0)
        victim = await _stopped(blows, moment)
        before = {p: d.watch.held[p].epoch for p in d.watch.of(victim.pid)}
        blows.note(f"stopped {victim.name} {moment}, which holds {sorted(before)}")
        blows.counts["stops"] += 1
        # Nobody may wait for a stopped owner for longer than its lease and the limit of an idle transaction.
        waited = await until(
            "others take over from a stopped owner",
            30,
            lambda before=before: all(d.watch.held[p].epoch > epoch for p, epoch in before.items()),  # type: ignore[misc]
        )
        await blows.pause(0.0, d.plan.lease_ms / 1000)
        victim.go_on()
        blows.note(f"{victim.name} goes on; others had its partitions after {waited:.2f} s")
    await d.progress()


async def _stopped(blows: Blows, moment: Moment) -> Process:
    """An owner, stopped: at a random moment, or at random moments again and again until one is inside of a
    transaction, before it has locked the claim or after."""
    d, rng = blows.deployment, blows.rng
    url = d.servers.postgres_url
    port = int(str(psycopg.conninfo.conninfo_to_dict(url)["port"]))
    deadline = time.monotonic() + 120
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        while True:
            assert time.monotonic() < deadline, f"no owner was ever caught {moment}"
            await blows.pause(0.0, 0.01)
            await until("somebody owns a partition", 60, lambda: bool(d.owners()))
            victim = rng.choice(d.owners())
            await victim.pause()
            mine = d.wires[victim.name].postgres.ports if d.plan.wired else _ports(victim.pid, port)
            caught = moment == "any" or moment in await _moments(connection, mine)
            if caught and d.watch.of(victim.pid):
                return victim
            victim.go_on()


def _ports(pid: int, port: int) -> list[int]:
    """The local ports of a process's connections to ``port``."""
    wires = psutil.Process(pid).net_connections("tcp")
    return [c.laddr.port for c in wires if c.raddr and c.raddr.port == port]


async def _moments(connection: psycopg.AsyncConnection[Any], mine: list[int]) -> set[Moment]:
    """Where the transactions of a stopped process stand, whose connections come from the ports ``mine``."""
    ask = "SELECT state, query FROM pg_stat_activity WHERE client_port = ANY(%s) AND xact_start IS NOT NULL"
    found: list[tuple[str, str]] = await (await connection.execute(ask, (mine,))).fetchall()
    while any(state == "active" for state, _ in found):
        found = await (await connection.execute(ask, (mine,))).fetchall()
    out: set[Moment] = set()
    for _, query in found:
        if query == "BEGIN":
            out.add("before the lock")
        elif "stream_" in query or "bars_ohlcv" in query:
            out.add("holding the lock")
    return out


# --- (3) ---------------------------------------------------------------------------------------------------------


async def crashes(blows: Blows) -> None:
    """``kill -9`` of a server, which comes back on its data after a while; nobody else is started again."""
    d, rng = blows.deployment, blows.rng
    for how in blows.scale.crashes:
        for what in rng.sample(("bus", "postgres"), 2):
            await blows.pause(0.5, 2.0)
            if what == "bus":
                blows.note(f"kill -9 {d.servers.bus.name}")
                await d.servers.bus.kill()
            else:
                blows.note(f"kill -9 postgres: {how}")
                await d.servers.kill_postgres(how)
            blows.counts[f"{what} kills"] += 1
            await blows.pause(0.0, 3.0)
            await d.servers.revive()
            blows.note(f"{what} is back")
            began = time.monotonic()
            await d.progress()
            blows.note(f"every partition commits again, {time.monotonic() - began:.2f} s after")


# --- (4) ---------------------------------------------------------------------------------------------------------


async def cuts(blows: Blows) -> None:
    """The wire to the bus, to PostgreSQL and to both is cut, then frozen; that of one worker alone; the producer's."""
    d, rng = blows.deployment, blows.rng
    everybody = [d.wires[p.name] for p in (*d.workers, d.producer) if p is not None]
    turns: list[tuple[str, str, list[Wires]]] = [
        (how, what, everybody) for how in ("cut", "frozen") for what in ("bus", "postgres")
    ]
    turns.append((rng.choice(("cut", "frozen")), "both", everybody))
    turns += [("frozen", what, [d.wires[rng.choice(d.workers).name]]) for what in ("bus", "postgres")]
    rng.shuffle(turns)
    for how, what, wires in turns[: blows.scale.turns - 1]:
        await blows.pause(0.5, 2.0)
        blows.note(f"{how}: {what}, {len(wires)} processes")
        blows.counts[f"{how} wires"] += 1
        chosen = [w for each in wires for w in _chosen(each, what)]
        for wire in chosen:
            if how == "cut":
                wire.cut(refuse=True)
            else:
                wire.silence()
        await d.pause(blows.scale.cut_s)
        for wire in chosen:
            wire.mend()
        began = time.monotonic()
        await d.progress()
        blows.note(f"every partition commits again, {time.monotonic() - began:.2f} s after")
    await _lose_the_producer(blows)


async def _lose_the_producer(blows: Blows) -> None:
    """The producer's wire alone, for longer than ids are remembered: what it had published without getting an answer
    comes again when the workers' clocks have gone far beyond it."""
    d = blows.deployment
    wire = d.wires["producer"].bus
    tripped = wire.tripped
    blows.note("the producer loses an answer, and its wire")
    wire.trip_at(d.servers.bus.published, "reply")
    await until("an answer is lost", 30, lambda: wire.tripped > tripped)
    wire.cut(refuse=True)
    await d.pause(1.5 * HORIZON_MS / 1000)
    wire.mend()
    blows.counts["producer outages"] += 1
    await d.progress()


def _chosen(wires: Wires, what: str) -> list[Any]:
    both = {"bus": [wires.bus], "postgres": [wires.postgres]}
    return both.get(what, [wires.bus, wires.postgres])


# --- (5) ---------------------------------------------------------------------------------------------------------


async def joins(blows: Blows) -> None:
    """Every few seconds a worker joins or one leaves in order."""
    d, rng = blows.deployment, blows.rng
    for _ in range(blows.scale.changes):
        await blows.pause(0.5, 3.0)
        if len(d.workers) <= 2 or (len(d.workers) < 6 and rng.random() < 0.5):
            worker = await d.join()
            blows.note(f"{worker.name} joins")
            blows.counts["joins"] += 1
        else:
            worker = rng.choice(d.workers)
            blows.note(f"{worker.name} leaves, which holds {d.watch.of(worker.pid)}")
            await d.leave(worker)
            blows.counts["leaves"] += 1
    await d.progress()


SCENARIOS: Final[dict[str, Callable[[Blows], Awaitable[None]]]] = {
    "kills": kills,
    "stops": stops,
    "crashes": crashes,
    "cuts": cuts,
    "joins": joins,
}


async def run(
    name: str,
    servers: Servers,
    folder: Path,
    scale: Scale,
    seed: int,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """One scenario on ``servers``, with logs in ``folder``; a report of what was found, right or not.

    Raises:
        AssertionError: somebody ended who was not ended, or something was not done in time.
    """
    report = Report(name, seed)
    chosen = list(SCENARIOS) if name == MEDLEY else [name]
    plan = Plan(name, seed, scale.rate, wired="cuts" in chosen)
    say(f"scenario {name}, seed {seed}")
    async with Deployment(servers, plan, folder) as d:
        blows = Blows(d, scale, random.Random(f"{seed}/{name}"), say)
        report.log = blows.log
        for each in chosen:
            started = [p.pid for p in d.workers]
            await SCENARIOS[each](blows)
            if each not in ("kills", "joins"):
                assert [p.pid for p in d.workers] == started, "a worker was started again"
        report.seconds = round(await d.finish_load(), 1)
        report.drain_seconds = round(await d.drained(120), 1)
        assert d.producer is not None
        produced = d.producer.result()
        results = await d.dismiss()
        report.blows = dict(blows.counts)
        report.flushes = d.watch.flushes
        report.recovery_s = d.watch.recoveries
        report.spooled = produced["spooled"]
        report.events_per_second = round(produced["rate"])
        report.fenced = d.fenced()
        report.retries = sum(r["retries"] for r in results)
        if produced["unpublished"] or produced["dropped"] or produced["spool_events"]:
            report.failures.append(f"the producer kept events: {produced}")
        if "stops" in chosen and not report.fenced:
            report.failures.append("no write of a stopped owner was refused")
        await _recount(d, report)
    say(f"{name}: {'; '.join(report.failures) or 'right'}")
    return report


async def _recount(d: Deployment, report: Report) -> None:
    """Compare the table and the topic with the oracle."""
    assert d.load is not None
    want = oracle.expected(d.load, d.until, WINDOW_NS)
    table = await audit.stored(d.servers.postgres_url, d.plan.name)
    async with d.servers.open_bus() as bus:
        topic = await audit.published(bus, d.bars_topic, PARTITIONS, d.plan.name)
        letters = await audit.dead_letters(bus, d.topic)
    difference = oracle.compare(want.bars, table)
    report.events, report.copies = want.events, want.copies
    report.bars, report.bar_records = len(table), topic.records
    report.amended_bars = len(table.filter(table["revision"] > 1))
    report.lost, report.duplicated = difference.lost, difference.duplicated
    report.wrong_bars = difference.wrong
    if not difference.none:
        report.failures.append(
            f"{difference.wrong} bars differ from the oracle, {difference.lost} events lost, "
            f"{difference.duplicated} duplicated:\n{difference.rows}"
        )
    missing = len(table.join(topic.newest, on=list(audit.COLUMNS), how="anti", nulls_equal=True))
    extra = len(topic.newest.join(table, on=list(audit.COLUMNS), how="anti", nulls_equal=True))
    report.wrong_published = max(missing, extra)
    if missing or extra or topic.contradictions:
        report.failures.append(
            f"{missing} bars of the table are not the newest on the topic, {extra} on the topic are not in the "
            f"table, {topic.contradictions} were published with two contents"
        )
    if letters:
        report.failures.append(f"{letters} dead letters, and every event was good")
