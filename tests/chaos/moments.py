"""Catches an owner at a moment of its life: anywhere, or inside of a transaction."""

from __future__ import annotations

import random
import time
from typing import Any

import psutil
import psycopg

from tests.chaos.crew import Crew
from tests.chaos.deployment import Deployment
from tests.chaos.processes import Process
from tests.chaos.scale import Moment
from tests.chaos.waiting import until


async def stopped(d: Deployment, crew: Crew, moment: Moment, rng: random.Random) -> Process:
    """An owner, stopped: at a random moment, or at random moments again and again until one is inside of a
    transaction, before it has locked the claim or after."""
    url = d.servers.postgres_url
    port = int(str(psycopg.conninfo.conninfo_to_dict(url)["port"]))
    deadline = time.monotonic() + 120
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        while True:
            assert time.monotonic() < deadline, f"no owner was ever caught {moment}"
            await d.pause(rng.uniform(0.0, 0.01))
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
