"""The scenarios: what is done to the deployment.

Every random choice comes from one generator, seeded by the run's seed and the scenario's name, and every blow is
logged with its time, so that a failing seed can be run again. What the operating system does between two blows
cannot be repeated, of course.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

from tests.chaos.blows import Blows
from tests.chaos.brokers import brokers
from tests.chaos.deployment import HORIZON_MS
from tests.chaos.servers import Wires
from tests.chaos.waiting import until
from tests.servers.wire import Bundle, Wire


async def kills(blows: Blows) -> None:
    """``kill -9`` of micro-batchers at random moments, sometimes of several at once; a supervisor starts each again."""
    while blows.counts["kills"] < blows.scale.kills:
        await blows.kill(blows.deployment.batchers, "kills")
    await blows.deployment.batchers.recovered()


async def stops(blows: Blows) -> None:
    """SIGSTOP of an owner until others have its partitions, then SIGCONT: a zombie that believes it still owns."""
    moments = list(blows.scale.stops)
    blows.rng.shuffle(moments)
    for moment in moments:
        await blows.stop(blows.deployment.batchers, moment, "stops")
    await blows.refused(blows.deployment.batchers, "stops")
    await blows.deployment.progress()


async def crashes(blows: Blows) -> None:
    """``kill -9`` of a server, which comes back on its data after a while; nobody else is started again."""
    for how in blows.scale.crashes:
        await blows.crash(how)


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
        await blows.progress(time.monotonic())
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


def _chosen(wires: Wires, what: str) -> list[Wire | Bundle]:
    alone: dict[str, list[Wire | Bundle]] = {"bus": [wires.bus], "postgres": [wires.postgres]}
    return alone.get(what, [wires.bus, wires.postgres])


async def joins(blows: Blows) -> None:
    """Every few seconds a worker joins or one leaves in order."""
    for _ in range(blows.scale.changes):
        await blows.pause(0.5, 3.0)
        await blows.change(blows.deployment.batchers, 6, "")
    await blows.deployment.progress()


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
            await blows.kill(d.inferrers, "infer kills")
        elif turn == "stop":
            await d.inferrers.recovered()
            await blows.stop(d.inferrers, "before the lock", "infer stops")
        elif turn == "change":
            await blows.pause(0.2, 1.0)
            await blows.change(d.inferrers, 4, "infer ")
        elif turn == "batcher":
            await blows.kill(d.batchers, "kills")
        elif turn == "crash":
            await blows.crash("all")
    await blows.refused(d.inferrers, "infer stops")
    for crew in (d.batchers, d.inferrers):
        await crew.recovered()


Scenario = Callable[[Blows], Awaitable[None]]

SCENARIOS: Final[dict[str, Scenario]] = {
    "kills": kills,
    "stops": stops,
    "crashes": crashes,
    "cuts": cuts,
    "joins": joins,
    "signals": signals,
}
"""Of every bus."""

ON_A_CLUSTER: Final[dict[str, Scenario]] = SCENARIOS | {"brokers": brokers}
"""Of a bus of several servers."""

STARTS_WORKERS: Final = frozenset({"kills", "joins", "signals"})
"""Scenarios after which the micro-batchers may be others than before."""
