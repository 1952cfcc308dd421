"""``mdp doctor``: what is wrong with the services and this machine, and how to put it right."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import typer

from market_data_core.errors import MdpError
from market_data_pipeline.cli import context

if TYPE_CHECKING:
    from market_data_core.config import Settings
    from market_data_pipeline.streaming.redis_health import ClusterHealth, NodeHealth

app = typer.Typer()

State = Literal["ok", "note", "broken"]
SKEW_NS: Final = 250_000_000
"""How far a server's clock may be off before it is worth a word."""
LITTLE_BYTES: Final = 2_000_000_000
LEAST_BYTES: Final = 256_000_000
OLDEST_REDIS: Final = (6, 2)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. ``note``: it works, and could be better; ``broken``: it does not."""

    check: str
    state: State
    found: str
    fix: str = ""


@app.command()
def doctor(ctx: typer.Context) -> None:
    """Check the services and this machine, with a fix for each finding. Exit code 1 when something is broken.

    The embedded services are started, as any other command would.
    """
    findings: list[Finding] = []
    settings: Settings | None = None
    try:
        settings = context.settings(ctx)
        where = str(settings.file) if settings.file else "no file: defaults and environment"
        findings.append(Finding("configuration", "ok", where))
    except MdpError as error:
        findings.append(
            Finding("configuration", "broken", str(error), "correct it, then run mdp doctor again")
        )
    findings += _machine()
    if settings is not None:
        for check in (_bus, _store, _port, _folders):
            findings += _guarded(check, settings)
    _print(ctx, findings)
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)


def _guarded(check: Callable[[Settings], Iterator[Finding]], settings: Settings) -> Iterator[Finding]:
    """The findings of a check; an error that mdp can explain is the last of them."""
    try:
        yield from check(settings)
    except MdpError as error:
        what, _, fix = str(error).rpartition("; ")
        yield Finding(check.__name__.strip("_"), "broken", what or fix, fix if what else "see the message")


def _print(ctx: typer.Context, findings: list[Finding]) -> None:
    if context.options(ctx).json:
        for finding in findings:
            context.emit(finding)
        return
    rows = [(f.check, f.state, f.found + (f"\nfix: {f.fix}" if f.fix else "")) for f in findings]
    context.table(None, ("check", "", "found"), rows)


def _machine() -> Iterator[Finding]:
    from market_data_core import __version__

    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("mdp", "ok", f"{__version__} on Python {version}")
    missing = {"parquet": "pyarrow", "kafka": "aiokafka", "ml": "sklearn"}
    for extra, module in missing.items():
        if find_spec(module) is None:
            yield Finding(
                "extra", "note", f"{extra} is not installed", f"pip install 'mdp[{extra}]' if you need it"
            )


def _bus(settings: Settings) -> Iterator[Finding]:
    if settings.bus.type == "kafka":
        yield from _kafka(settings)
        return
    if settings.bus.type != "redis":
        yield Finding("bus", "note", f"{settings.bus.type}: nothing of it is checked here")
        return
    import asyncio

    from market_data_core.redact import redact
    from market_data_pipeline.streaming.redis_cluster import server_at
    from market_data_pipeline.streaming.redis_health import cluster_of, nodes_of

    embedded = not settings.bus.redis.uri
    url = context.bus_url(settings)
    where = "embedded" if embedded else redact(url)

    async def look() -> tuple[ClusterHealth | None, list[NodeHealth]]:
        server = server_at(url)
        try:
            cluster = await cluster_of(server)
            return cluster, await nodes_of(server, cluster.away if cluster else ())
        finally:
            await server.close()

    try:
        cluster, nodes = asyncio.run(look())
    except MdpError as error:
        fix = "start it, or correct REDIS_URI; or unset REDIS_URI to use the embedded one"
        yield Finding("redis", "broken", str(error), fix if error.retriable else "see the message")
        return
    if cluster is not None:
        yield _cluster(cluster, nodes)
    for node in nodes:
        yield from _redis(node, node.place or where)
    overcommit = Path("/proc/sys/vm/overcommit_memory")
    if embedded and overcommit.exists() and overcommit.read_text(encoding="ascii").strip() == "0":
        fix = "sysctl vm.overcommit_memory=1"
        yield Finding("redis memory", "note", "with little free memory its file may not be compacted", fix)


def _kafka(settings: Settings) -> Iterator[Finding]:
    import asyncio

    async def ping() -> Mapping[str, str]:
        async with await context.open_bus(settings) as bus:
            return await bus.ping()

    facts = asyncio.run(ping())
    yield Finding("kafka", "ok", f"{facts['server']}, {facts['where']}")
    lossy = ": " in facts["durability"]
    fix = "add brokers, or set bus.kafka.replication_factor, before the topics are made" if lossy else ""
    yield Finding("kafka durability", "note" if lossy else "ok", facts["durability"], fix)


def _cluster(cluster: ClusterHealth, nodes: list[NodeHealth]) -> Finding:
    found = f"{cluster.state}, {cluster.slots_ok} of 16384 slots served by {cluster.masters} masters"
    if cluster.away:
        found += f"; away: {', '.join(cluster.away)}"
        return Finding("redis cluster", "broken", found, "start what is away, or let its replica take over")
    if cluster.state != "ok":
        return Finding("redis cluster", "broken", found, "redis-cli --cluster check, then --cluster fix")
    alone = [node.place for node in nodes if not node.replicas]
    if alone:
        found += f"; without a replica: {', '.join(alone)}"
        return Finding(
            "redis cluster", "note", found, "add a replica, or its partitions wait for its restart"
        )
    return Finding("redis cluster", "ok", found)


def _redis(node: NodeHealth, where: str) -> Iterator[Finding]:
    """What is to be said of one server."""
    old = node.number < OLDEST_REDIS
    yield Finding(
        "redis",
        "broken" if old else "ok",
        f"{node.version}, {where}",
        "update to 6.2 or later" if old else "",
    )
    if not node.aof:
        yield Finding(
            "redis durability", "broken", "appendonly is off: a restart loses events", "set appendonly yes"
        )
    elif node.aof_failing:
        yield Finding("redis durability", "broken", "the append-only file cannot be written", "free its disk")
    elif node.fsync == "no":
        yield Finding(
            "redis durability", "note", "appendfsync is no", "set appendfsync to always or everysec"
        )
    else:
        lost = {"everysec": ", so a loss of power may take the last second", "always": ""}.get(
            node.fsync or "", ""
        )
        yield Finding("redis durability", "ok", f"append-only file, fsync {node.fsync or 'unknown'}{lost}")
    if node.eviction not in (None, "noeviction"):
        yield Finding(
            "redis memory",
            "broken",
            f"maxmemory-policy is {node.eviction}, which may remove events unread",
            "set noeviction",
        )
    yield _skew("redis clock", node.clock_ns, node.round_trip_ns)


def _store(settings: Settings) -> Iterator[Finding]:
    from market_data_core.redact import redact
    from market_data_store import schema
    from market_data_store.health import OLDEST, health

    embedded = not settings.store.url
    url = context.store_url(settings)
    if embedded and not schema.current(url).up_to_date:
        schema.upgrade(url)
    report = health(url)
    where = "embedded" if embedded else redact(url)
    old = report.major < OLDEST
    fix = f"update to PostgreSQL {OLDEST} or later" if old else ""
    yield Finding("postgres", "broken" if old else "ok", f"{report.version}, {where}", fix)
    current = schema.current(url)
    if current.up_to_date:
        drift = schema.check(url)
        yield Finding(
            "schema",
            "broken" if drift else "ok",
            "; ".join(drift) or f"at {current.revision}",
            "mdp store check" if drift else "",
        )
    else:
        found = f"at {current.revision or 'nothing'}, this mdp needs {current.head}"
        yield Finding("schema", "broken", found, "mdp store upgrade")
    extension = current.timescale
    if extension.missing is None:
        yield Finding("timescaledb", "ok", str(extension.version))
    else:
        fix = (
            "install TimescaleDB on the server, then mdp store upgrade"
            if not embedded
            else "set DATABASE_URL to a server that has it"
        )
        yield Finding(
            "timescaledb",
            "note",
            f"{extension.missing}: plain tables are used, without compression or rollups",
            fix,
        )
    if report.at_risk:
        yield Finding(
            "postgres durability", "broken", ", ".join(report.at_risk), "switch them on in postgresql.conf"
        )
    else:
        yield Finding("postgres durability", "ok", "a commit is on the disk")
    if report.connections + settings.store.pool_size > report.max_connections:
        found = f"{report.connections} of {report.max_connections} connections are taken"
        yield Finding(
            "postgres connections", "broken", found, "raise max_connections, or lower store.pool_size"
        )
    yield _skew("postgres clock", report.clock_ns, report.round_trip_ns)


def _skew(check: str, offset_ns: int, trip_ns: int) -> Finding:
    found = f"{offset_ns / 1e6:+.0f} ms, to within {trip_ns / 2e6:.0f} ms"
    if abs(offset_ns) - trip_ns // 2 > SKEW_NS:
        return Finding(
            check, "note", found, "run NTP on both machines: idle windows are closed by this machine's clock"
        )
    return Finding(check, "ok", found)


def _port(settings: Settings) -> Iterator[Finding]:
    port, host = settings.telemetry.metrics_port, settings.telemetry.metrics_host
    if port == 0:
        yield Finding("metrics port", "ok", "off")
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            fix = "stop who has it (perhaps another mdp), or set telemetry.metrics_port"
            yield Finding("metrics port", "note", f"{port} on {host}: {error.strerror}", fix)
            return
    yield Finding("metrics port", "ok", f"{port} is free")


def _folders(settings: Settings) -> Iterator[Finding]:
    from market_data_pipeline import embedded

    home = embedded.home()
    existing = next(folder for folder in (home, *home.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    found = f"{free / 1e9:.1f} GB free for {home}"
    if free < LEAST_BYTES:
        yield Finding("disk", "broken", found, "free some, or set MDP_HOME to another disk")
    elif free < LITTLE_BYTES:
        yield Finding("disk", "note", found, "free some before it fills up")
    else:
        yield Finding("disk", "ok", found)
