"""One soak on servers that run: the phases one after another, and the recount of all that they left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.report import machine
from tests.chaos import oracle, signals_audit, signals_oracle
from tests.chaos.audit import dead_letters
from tests.chaos.servers import Servers
from tests.soak import load
from tests.soak.delays import delays
from tests.soak.findings import Count, Findings
from tests.soak.load import Produced
from tests.soak.plan import TOPICS, Plan
from tests.soak.sampler import Sampler
from tests.soak.stand import Span, Stand
from tests.soak.tap import Tap
from tests.soak.trouble import Harm, Trouble

_TABLE = """
    SELECT symbol, (extract(epoch FROM ts) * 1000000)::int8 * 1000 AS ts, open, high, low, close, volume, vwap, n_events
    FROM bars_ohlcv WHERE provider = %s AND "interval" = '2s'
"""


async def run(
    servers: Servers, plan: Plan, folder: Path, say: Callable[[str], None] = lambda line: None
) -> Findings:
    """All phases of ``plan``, with logs in ``folder``.

    Raises:
        AssertionError: somebody ended who was not ended, or something was not done in time.
    """
    about = machine(await _versions(servers))
    harm = Harm()
    async with (
        Stand(servers, plan, folder, say) as stand,
        Tap(servers.open_bus) as tap,
        Sampler(servers.open_bus, stand.processes) as sampler,
    ):
        for phase in plan.phases:
            span = await stand.begin(phase)
            if phase.seconds is None:
                harm = await Trouble(stand, produced(plan, stand.spans[0], tap)).run()
            await stand.finish(span)
            await tap.caught_up()
            span.began = tap.lanes[phase.name].first / 1e9
            span.ended = span.began + span.produced["seconds"]
        for crew in stand.crews:
            await crew.dismiss()
        windows = await delays(servers.postgres_url, tap, plan)
        found = Findings(
            plan, stand.spans, harm, stand.marks, windows, sampler.usage(), sampler.backlog(), [], about
        )
        say("recounting")
        for span in stand.spans:
            await _recount(servers, produced(plan, span, tap), tap, span, found)
        async with servers.open_bus() as bus:
            for topic in TOPICS[:2]:
                if letters := await dead_letters(bus, topic):
                    found.failures.append(f"{letters} dead letters of {topic}, and every record was good")
    return found


def produced(plan: Plan, span: Span, tap: Tap) -> Produced:
    """The events of a phase that is over."""
    return Produced(plan, span.phase, tap.lanes[span.phase.name].first, span.produced["taken"])


async def _recount(servers: Servers, events: Produced, tap: Tap, span: Span, found: Findings) -> None:
    name, done = span.phase.name, span.produced
    if done["published"] != done["taken"] or done["dropped"] or done["unpublished"] or done["spool_events"]:
        found.failures.append(f"the producer of {name} kept events: {done}")
    of_seed = await asyncio.to_thread(events.tally)
    if of_seed != tap.lanes[name].tally:
        found.failures.append(f"{name}: the bus had {tap.lanes[name].tally}, and its seed gives {of_seed}")
    want = await asyncio.to_thread(events.bars)
    table = await _stored(servers.postgres_url, name)
    bars = oracle.compare(want, table)
    total = int(want["n_events"].sum())
    found.counts.append(
        Count("events in bars", name, total, bars.lost, bars.duplicated, bars.wrong, bars.rows)
    )
    wanted = await asyncio.to_thread(load.signals, table)
    have = await signals_audit.stored(servers.postgres_url, name)
    of = signals_oracle.compare(wanted, have)
    found.counts.append(
        Count("signals", name, len(have), of.lost, of.doubled, of.wrong + of.unwanted, of.rows)
    )
    for count in found.counts[-2:]:
        if count.rows:
            found.failures.append(f"{count.what} of {name}:\n{count.rows}")


async def _stored(url: str, provider: str) -> Any:
    import polars as pl

    floats = ("open", "high", "low", "close", "volume", "vwap")
    schema = {"symbol": pl.String, "ts": pl.Int64, **dict.fromkeys(floats, pl.Float64), "n_events": pl.Int64}
    async with await psycopg.AsyncConnection.connect(url) as connection:
        rows = await (await connection.execute(_TABLE, (provider,))).fetchall()
    return pl.DataFrame(rows, schema=schema, orient="row").sort("symbol", "ts")


async def _versions(servers: Servers) -> dict[str, str]:
    async with servers.open_bus() as bus:
        facts = await bus.ping()
    async with await psycopg.AsyncConnection.connect(servers.postgres_url) as connection:
        row = await (await connection.execute("SHOW server_version")).fetchone()
    return {"redis": facts["server"].removeprefix("Redis "), "postgres": str(row and row[0])}
