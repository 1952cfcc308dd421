"""The one run that all scenarios share: a deployment, what is done to it, and the recount."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.chaos.blows import Blows
from tests.chaos.deployment import Deployment, Plan
from tests.chaos.recount import recount, recount_signals
from tests.chaos.report import Report
from tests.chaos.scale import Scale
from tests.chaos.scenarios import ON_A_CLUSTER, STARTS_WORKERS
from tests.chaos.servers import Servers


async def run(
    name: str,
    servers: Servers,
    folder: Path,
    scale: Scale,
    seed: int,
    say: Callable[[str], None] = lambda line: None,
    *,
    scenarios: Sequence[str] = (),
) -> Report:
    """One scenario on ``servers``, with logs in ``folder``; a report of what was found, right or not.

    With ``scenarios`` all of these, one after another on one deployment, with one recount at the end.

    Raises:
        AssertionError: somebody ended who was not ended, or something was not done in time.
    """
    report = Report(name, seed)
    chosen = scenarios or [name]
    plan = Plan(name, seed, scale.rate, wired="cuts" in chosen)
    say(f"scenario {name}, seed {seed}")
    async with Deployment(servers, plan, folder) as d:
        blows = Blows(d, scale, random.Random(f"{seed}/{name}"), say)
        report.log = blows.log
        for each in chosen:
            started = [p.pid for p in d.batchers.workers]
            await ON_A_CLUSTER[each](blows)
            if each not in STARTS_WORKERS:
                assert [p.pid for p in d.batchers.workers] == started, "a worker was started again"
        report.seconds = round(await d.finish_load(), 1)
        report.drain_seconds = round(await d.drained(120), 1)
        assert d.producer is not None
        produced = d.producer.result()
        batched, inferred = await d.batchers.dismiss(), await d.inferrers.dismiss()
        report.blows = dict(blows.counts)
        report.flushes = d.batchers.watch.flushes
        report.recovery_s = d.batchers.watch.recoveries
        report.outages_s = blows.outages_s
        report.spooled = produced["spooled"]
        report.events_per_second = round(produced["rate"])
        report.fenced = d.batchers.fenced()
        report.retries = sum(r["retries"] for r in batched + inferred)
        if produced["unpublished"] or produced["dropped"] or produced["spool_events"]:
            report.failures.append(f"the producer kept events: {produced}")
        if "stops" in chosen and not report.fenced:
            report.failures.append("no write of a stopped micro-batcher was refused")
        table = await recount(d, report)
        if "signals" in chosen:
            report.signals = await recount_signals(d, table, report.failures)
    say(f"{name}: {'; '.join(report.failures) or 'right'}")
    return report
