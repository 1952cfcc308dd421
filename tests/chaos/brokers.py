"""The brokers of a cluster die one at a time, and nobody else is started again."""

from __future__ import annotations

import time

from tests.chaos.blows import Blows
from tests.chaos.buses import KafkaClusterBusServer
from tests.chaos.scale import BrokerDeath


async def brokers(blows: Blows) -> None:
    """One of three brokers dies or stands still and comes back: any, the one that coordinates a group, the one that
    leads a partition. All die in turn, each before the one before it has caught up or after. Two die at once.

    With two of three everything goes on while the third is away; with one it waits.
    """
    turns = list(blows.scale.brokers)
    blows.rng.shuffle(turns)
    for turn in turns:
        await blows.settled()
        await blows.pause(0.5, 2.0)
        if turn in ("rolling", "hasty"):
            await _in_turn(blows, wait=turn == "rolling")
        elif turn == "two":
            await _two(blows)
        else:
            await _one(blows, turn)
    await _cluster(blows).in_sync()


async def _one(blows: Blows, turn: BrokerDeath) -> None:
    cluster = _cluster(blows)
    await cluster.in_sync()
    node = await _chosen(blows, turn)
    began = time.monotonic()
    blows.counts["broker stops" if turn == "frozen" else "broker kills"] += 1
    if turn == "frozen":
        blows.note(f"stopped broker {node}")
        cluster.freeze_one(node)
    else:
        blows.note(f"kill -9 broker {node}: {turn}")
        await cluster.kill_one(node)
    await blows.progress(began)
    await blows.pause(0.0, 2.0)
    if turn == "frozen":
        cluster.thaw_one(node)
    else:
        await cluster.revive()
    blows.note(f"broker {node} is back")


async def _in_turn(blows: Blows, *, wait: bool) -> None:
    """One after another. Who restarts a cluster in order waits for the replicas (``wait``); power cuts do not."""
    cluster = _cluster(blows)
    nodes = cluster.nodes
    blows.rng.shuffle(nodes)
    for node in nodes:
        if wait:
            await cluster.in_sync()
        began = time.monotonic()
        blows.note(f"kill -9 broker {node}: in turn")
        await cluster.kill_one(node)
        blows.counts["broker kills"] += 1
        if wait:
            await blows.progress(began)
        await cluster.revive()
        blows.note(f"broker {node} is back")
    await blows.progress(time.monotonic())


async def _two(blows: Blows) -> None:
    """Of three, so that none that is left takes records."""
    cluster = _cluster(blows)
    for node in blows.rng.sample(cluster.nodes, 2):
        blows.note(f"kill -9 broker {node}: of two")
        await cluster.kill_one(node)
        blows.counts["broker kills"] += 1
    await blows.pause(0.0, 4.0)
    await cluster.revive()
    blows.note("both are back")
    await blows.progress(time.monotonic())


async def _chosen(blows: Blows, turn: BrokerDeath) -> int:
    cluster, d, rng = _cluster(blows), blows.deployment, blows.rng
    if turn == "coordinator":
        return await cluster.coordinator(d.plan.name)
    if turn == "leader":
        return rng.choice(await cluster.leaders(d.topic))
    return rng.choice(cluster.nodes)


def _cluster(blows: Blows) -> KafkaClusterBusServer:
    bus = blows.deployment.servers.bus
    assert isinstance(bus, KafkaClusterBusServer), f"the scenario brokers needs a cluster, not {bus.name}"
    return bus
