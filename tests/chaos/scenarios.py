"""The scenarios: what is done to the deployment, and the one run that all of them share.

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

import polars as pl
import psutil
import psycopg

from tests.chaos import audit, oracle, signals_audit, signals_oracle
from tests.chaos.crew import Crew
from tests.chaos.deployment import HORIZON_MS, PARTITIONS, WINDOW_NS, Deployment, Plan
from tests.chaos.processes import Process
from tests.chaos.report import Report, SignalsReport
from tests.chaos.servers import PostgresDeath, Servers, Wires
from tests.chaos.waiting import until

Moment = Literal["any", "before the lock", "holding the lock"]


@dataclass(frozen=True, slots=True)
class SignalsScale:
    """How much of everything in the scenario signals; ``batchers``: how often micro-batchers are killed."""

    kills: int
    stops: int
    changes: int
    batchers: int
    crashes: int


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
    signals: SignalsScale


FULL: Final = Scale(
    rate=25_000,
    kills=100,
    stops=("any",) * 8 + ("before the lock",) * 8 + ("holding the lock",) * 3,
    crashes=("all", "postmaster", "backend", "all", "postmaster", "all"),
    cut_s=10.0,
    turns=8,
    changes=30,
    signals=SignalsScale(kills=50, stops=5, changes=8, batchers=5, crashes=1),
)
SHORT: Final = Scale(
    rate=20_000,
    kills=5,
    stops=("any", "before the lock"),
    crashes=("all",),
    cut_s=2.5,
    turns=3,
    changes=4,
    signals=SignalsScale(kills=4, stops=1, changes=2, batchers=1, crashes=0),
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
    """``kill -9`` of micro-batchers at random moments, sometimes of several at once; a supervisor starts each again."""
    while blows.counts["kills"] < blows.scale.kills:
        await _kill(blows, blows.deployment.batchers, "kills")
    await blows.deployment.batchers.recovered()


async def _kill(blows: Blows, crew: Crew, counted: str) -> None:
    """Kill one or more of ``crew``, and start as many."""
    rng = blows.rng
    if rng.random() < 0.7:  # the others strike into the recovery from the one before
        await crew.recovered()
    await blows.pause(0.1, 1.5)
    victims = [rng.choice(crew.workers)]
    chance = rng.random()
    if chance < 0.1:
        victims = rng.sample(crew.workers, rng.randint(2, len(crew.workers)))
    elif chance < 0.8:  # the others may be starting, or wait for a partition
        await until("somebody owns a partition", 60, lambda: bool(crew.owners()))
        victims = [rng.choice(crew.owners())]
    for worker in victims:
        blows.note(f"kill -9 {worker.name}, which holds {crew.watch.of(worker.pid)}")
        crew.kill(worker)
        blows.counts[counted] += 1
    for _ in victims:
        await crew.join()


# --- (2) ---------------------------------------------------------------------------------------------------------


async def stops(blows: Blows) -> None:
    """SIGSTOP of an owner until others have its partitions, then SIGCONT: a zombie that believes it still owns."""
    d, rng = blows.deployment, blows.rng
    moments = list(blows.scale.stops)
    rng.shuffle(moments)
    for moment in moments:
        await _stop(blows, d.batchers, moment, "stops")
    await d.progress()


async def _stop(blows: Blows, crew: Crew, moment: Moment, counted: str) -> None:
    """Stop an owner of ``crew`` for longer than its lease."""
    d = blows.deployment
    await blows.pause(0.5, 2.0)
    victim = await _stopped(blows, crew, moment)
    before = {p: crew.watch.held[p].epoch for p in crew.watch.of(victim.pid)}
    blows.note(f"stopped {victim.name} {moment}, which holds {sorted(before)}")
    blows.counts[counted] += 1
    # Nobody may wait for a stopped owner for longer than its lease and the limit of an idle transaction.
    waited = await until(
        "others take over from a stopped owner",
        30,
        lambda: all(crew.watch.held[p].epoch > epoch for p, epoch in before.items()),
    )
    await blows.pause(0.0, d.plan.lease_ms / 1000)
    victim.go_on()
    blows.note(f"{victim.name} goes on; others had its partitions after {waited:.2f} s")


async def _stopped(blows: Blows, crew: Crew, moment: Moment) -> Process:
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
            await until("somebody owns a partition", 60, lambda: bool(crew.owners()))
            victim = rng.choice(crew.owners())
            await victim.pause()
            mine = d.wires[victim.name].postgres.ports if d.plan.wired else _ports(victim.pid, port)
            caught = moment == "any" or moment in await _moments(connection, mine)
            if caught and crew.watch.of(victim.pid):
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
    deadline = time.monotonic() + 1
    while any(state == "active" for state, _ in found):
        if time.monotonic() > deadline:
            return set()  # it waits to be rid of a long answer, and who is stopped takes none
        found = await (await connection.execute(ask, (mine,))).fetchall()
    out: set[Moment] = set()
    for _, query in found:
        if query == "BEGIN":
            out.add("before the lock")
        elif "stream_" in query or "bars_ohlcv" in query or "signals" in query:
            out.add("holding the lock")
    return out


# --- (3) ---------------------------------------------------------------------------------------------------------


async def crashes(blows: Blows) -> None:
    """``kill -9`` of a server, which comes back on its data after a while; nobody else is started again."""
    for how in blows.scale.crashes:
        await _crash(blows, how)


async def _crash(blows: Blows, how: PostgresDeath) -> None:
    """Kill Redis and PostgreSQL, one after the other, when nobody is just starting: who cannot reach a server then is
    right to say so and to end."""
    d = blows.deployment

    def settled() -> bool:
        return all(len(c.owners()) >= min(len(c.workers), PARTITIONS) for c in (d.batchers, d.inferrers))

    await until("every worker has a partition", 120, settled)
    for what in blows.rng.sample(("bus", "postgres"), 2):
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
    everybody = [d.wires[p.name] for p in (*d.batchers.workers, d.producer) if p is not None]
    turns: list[tuple[str, str, list[Wires]]] = [
        (how, what, everybody) for how in ("cut", "frozen") for what in ("bus", "postgres")
    ]
    turns.append((rng.choice(("cut", "frozen")), "both", everybody))
    turns += [
        ("frozen", what, [d.wires[rng.choice(d.batchers.workers).name]]) for what in ("bus", "postgres")
    ]
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
    for _ in range(blows.scale.changes):
        await blows.pause(0.5, 3.0)
        await _change(blows, blows.deployment.batchers, 6, "")
    await blows.deployment.progress()


async def _change(blows: Blows, crew: Crew, most: int, whose: str) -> None:
    """One joins ``crew``, or one of more than two leaves in order."""
    rng = blows.rng
    if len(crew.workers) <= 2 or (len(crew.workers) < most and rng.random() < 0.5):
        worker = await crew.join()
        blows.note(f"{worker.name} joins")
        blows.counts[f"{whose}joins"] += 1
    else:
        worker = rng.choice(crew.workers)
        blows.note(f"{worker.name} leaves, which holds {crew.watch.of(worker.pid)}")
        await crew.leave(worker)
        blows.counts[f"{whose}leaves"] += 1


# --- (6) ---------------------------------------------------------------------------------------------------------


async def signals(blows: Blows) -> None:
    """Those who make signals of the bars are killed, stopped beyond their lease, join and leave; now and then a
    micro-batcher is killed, and each server once."""
    d, rng, scale = blows.deployment, blows.rng, blows.scale.signals
    await d.infer()
    turns = ["kill"] * scale.kills + ["stop"] * scale.stops + ["change"] * scale.changes
    turns += ["batcher"] * scale.batchers + ["crash"] * scale.crashes
    rng.shuffle(turns)
    for turn in turns:
        if turn == "kill" and blows.counts["infer kills"] < scale.kills:
            await _kill(blows, d.inferrers, "infer kills")
        elif turn == "stop":
            await d.inferrers.recovered()
            await _stop(blows, d.inferrers, "before the lock", "infer stops")
        elif turn == "change":
            await blows.pause(0.2, 1.0)
            await _change(blows, d.inferrers, 4, "infer ")
        elif turn == "batcher":
            await _kill(blows, d.batchers, "kills")
        elif turn == "crash":
            await _crash(blows, "all")
    for crew in (d.batchers, d.inferrers):
        await crew.recovered()


SCENARIOS: Final[dict[str, Callable[[Blows], Awaitable[None]]]] = {
    "kills": kills,
    "stops": stops,
    "crashes": crashes,
    "cuts": cuts,
    "joins": joins,
    "signals": signals,
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
            started = [p.pid for p in d.batchers.workers]
            await SCENARIOS[each](blows)
            if each not in ("kills", "joins", "signals"):
                assert [p.pid for p in d.batchers.workers] == started, "a worker was started again"
        report.seconds = round(await d.finish_load(), 1)
        report.drain_seconds = round(await d.drained(120), 1)
        assert d.producer is not None
        produced = d.producer.result()
        batched, inferred = await d.batchers.dismiss(), await d.inferrers.dismiss()
        report.blows = dict(blows.counts)
        report.flushes = d.batchers.watch.flushes
        report.recovery_s = d.batchers.watch.recoveries
        report.spooled = produced["spooled"]
        report.events_per_second = round(produced["rate"])
        report.fenced = d.batchers.fenced()
        report.retries = sum(r["retries"] for r in batched + inferred)
        if produced["unpublished"] or produced["dropped"] or produced["spool_events"]:
            report.failures.append(f"the producer kept events: {produced}")
        if "stops" in chosen and not report.fenced:
            report.failures.append("no write of a stopped owner was refused")
        table = await _recount(d, report)
        if "signals" in chosen:
            report.signals = await _recount_signals(d, table, report.failures)
    say(f"{name}: {'; '.join(report.failures) or 'right'}")
    return report


async def _recount(d: Deployment, report: Report) -> pl.DataFrame:
    """Compare the table and the topic with the oracle; the bars of the table."""
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
    return table


async def _recount_signals(d: Deployment, bars: pl.DataFrame, failures: list[str]) -> SignalsReport:
    """Compare the signals in the table and on the topic with the recount from ``bars``, the stored ones."""
    want = signals_oracle.wanted(bars, d.plan.events)
    table = await signals_audit.stored(d.servers.postgres_url, d.plan.name)
    async with d.servers.open_bus() as bus:
        topic = await signals_audit.published(bus, d.signals_topic, PARTITIONS, d.plan.name)
        letters = await audit.dead_letters(bus, d.bars_topic)
    difference = signals_oracle.compare(want, table)
    found = SignalsReport(
        fenced=d.inferrers.fenced(),
        flushes=d.inferrers.watch.flushes,
        signals=len(table),
        by_name=dict(sorted(table["name"].value_counts().rows())),
        withdrawn=int(table["withdrawn"].sum()),
        records=topic.records,
        unsure=len(want.unsure),
        lost=difference.lost,
        doubled=difference.doubled,
        unwanted=difference.unwanted,
        wrong=difference.wrong,
        recovery_s=d.inferrers.watch.recoveries,
    )
    if not difference.none:
        failures.append(
            f"{difference.lost} signals lost, {difference.doubled} doubled, {difference.unwanted} that the rules do "
            f"not give, {difference.wrong} with other values:\n{difference.rows}"
        )
    missing = table.join(topic.newest, on=table.columns, how="anti", nulls_equal=True)
    extra = topic.newest.join(table, on=table.columns, how="anti", nulls_equal=True)
    found.wrong_published = max(len(missing), len(extra))
    if found.wrong_published:
        failures.append(
            f"{len(missing)} signals of the table are not the newest on the topic, {len(extra)} on the topic are not "
            f"in the table:\n{missing.head(6)}\n{extra.head(6)}"
        )
    if not found.fenced:
        failures.append("no write of a stopped owner of bars was refused")
    if not found.withdrawn or len(found.by_name) < signals_oracle.NAMES:
        failures.append(f"the load is too tame: {found.withdrawn} withdrawn, {found.by_name}")
    if letters:
        failures.append(f"{letters} dead letters of bars, and every bar was good")
    return found
