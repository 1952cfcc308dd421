"""``mdp doctor``: what is wrong with the services and this machine, and how to put it right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import typer

from market_data_core.errors import MdpError
from market_data_pipeline.cli import context

if TYPE_CHECKING:
    from market_data_core.config import Settings
    from market_data_pipeline.doctor import Finding
    from market_data_pipeline.streaming.bus import Bus

app = typer.Typer()

_GRACE_MS: Final = 30_000
"""How much longer than its settings say a worker may take with what it was handed."""


@app.command()
def doctor(ctx: typer.Context) -> None:
    """Check the services and this machine, with a fix for each finding. Exit code 1 when something fails.

    Looked at: the configuration, versions, Redis or Kafka, consumer groups, PostgreSQL and its schema, TimescaleDB,
    clocks, the metrics port and the disks. The embedded services are started, as any other command would.
    """
    from market_data_pipeline.doctor import Finding, machine
    from market_data_pipeline.doctor.finding import failure

    findings: list[Finding] = []
    settings: Settings | None = None
    try:
        settings = context.settings(ctx)
        where = str(settings.file) if settings.file else "no file: defaults and environment"
        findings.append(Finding("configuration", "ok", where))
    except MdpError as error:
        findings.append(failure("configuration", error, "correct it, then run mdp doctor again"))
    findings += machine.versions()
    if settings is not None:
        for name, check in _CHECKS.items():
            try:
                for finding in check(settings):
                    findings.append(finding)
            except MdpError as error:
                findings.append(failure(settings.bus.type if name == "bus" else name, error))
    _print(ctx, findings)
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)


def _print(ctx: typer.Context, findings: list[Finding]) -> None:
    if context.options(ctx).json:
        for finding in findings:
            context.emit(finding)
        return
    rows = [(f.check, f.state, f.found + (f"\nfix: {f.fix}" if f.fix else "")) for f in findings]
    context.table(None, ("check", "", "found"), rows)


def _bus(settings: Settings) -> Iterator[Finding]:
    """The servers, and when they answer, the groups."""
    import asyncio

    from market_data_core.redact import redact
    from market_data_pipeline.doctor import Finding

    if settings.bus.type == "redis":
        from market_data_pipeline.doctor.redis_servers import overcommit, redis_servers

        embedded = not settings.bus.redis.uri
        url = context.bus_url(settings)
        found = asyncio.run(redis_servers(url, "embedded" if embedded else redact(url)))
        yield from found
        if embedded:
            yield from overcommit()
        if any(f.state == "fail" and f.check in ("redis", "redis cluster") for f in found):
            return
    elif settings.bus.type != "kafka":
        yield Finding("bus", "warn", f"{settings.bus.type}: nothing of it is checked here")
        return
    yield from asyncio.run(_asked(settings))


async def _asked(settings: Settings) -> list[Finding]:
    from market_data_pipeline.doctor.groups import groups

    batch, lease_ms = settings.micro_batch, settings.bus.redis.lease_ms
    patience_ms = batch.window_ms + batch.allow_late_ms + batch.flush_timeout_ms + 3 * lease_ms + _GRACE_MS
    async with await context.open_bus(settings) as bus:
        found = await _brokers(bus) if settings.bus.type == "kafka" else []
        topics = sorted(await bus.status(), key=lambda topic: topic.topic)
    return [*found, *groups(topics, lease_ms=lease_ms, patience_ms=patience_ms)]


async def _brokers(bus: Bus) -> list[Finding]:
    from market_data_pipeline.doctor import Finding

    facts = await bus.ping()
    lossy = ": " in facts["durability"]
    fix = "add brokers, or set bus.kafka.replication_factor, before the topics are made" if lossy else ""
    return [
        Finding("kafka", "ok", f"{facts['server']}, {facts['where']}"),
        Finding("kafka durability", "warn" if lossy else "ok", facts["durability"], fix),
    ]


def _store(settings: Settings) -> Iterator[Finding]:
    from market_data_core.redact import redact
    from market_data_pipeline.doctor.database import database
    from market_data_store import schema

    embedded = not settings.store.url
    url = context.store_url(settings)
    if embedded and not schema.current(url).up_to_date:
        schema.upgrade(url)
    where = "embedded" if embedded else redact(url)
    yield from database(url, where, embedded=embedded, pool_size=settings.store.pool_size)


def _machine(settings: Settings) -> Iterator[Finding]:
    from market_data_pipeline import embedded
    from market_data_pipeline.cli.produce import spool_folder
    from market_data_pipeline.doctor import machine

    yield machine.metrics_port(settings.telemetry.metrics_host, settings.telemetry.metrics_port)
    own = bool(settings.store.url) and (settings.bus.type != "redis" or bool(settings.bus.redis.uri))
    home = None if own else embedded.home()
    yield from machine.disks(home, spool_folder(settings), settings.producers.spool.max_bytes)


_CHECKS: Final[dict[str, Callable[[Settings], Iterator[Finding]]]] = {
    "bus": _bus,
    "postgres": _store,
    "machine": _machine,
}
