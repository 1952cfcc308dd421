"""PostgreSQL: version, schema, TimescaleDB, durability, connections and clock."""

from __future__ import annotations

from collections.abc import Iterator

from market_data_core.clock import Clock
from market_data_pipeline.doctor.finding import Finding, skew
from market_data_store import schema, timescale
from market_data_store.health import OLDEST, Health, health


def database(
    url: str, where: str, *, embedded: bool, pool_size: int, clock: Clock | None = None
) -> Iterator[Finding]:
    """Everything about the database at ``url``; ``where`` is how it is named, without secrets.

    Raises:
        StoreUnavailable, StoreError: it cannot be reached, or refuses.
    """
    report = health(url, clock)
    old = report.major < OLDEST
    fix = f"update to PostgreSQL {OLDEST} or later" if old else ""
    yield Finding("postgres", "fail" if old else "ok", f"{report.version}, {where}", fix)
    current = schema.current(url)
    yield _schema(url, current)
    yield _timescale(current.timescale, embedded=embedded)
    yield _durability(report)
    if report.connections + pool_size > report.max_connections:
        found = f"{report.connections} of {report.max_connections} connections are taken"
        fix = "raise max_connections, or lower store.pool_size"
        yield Finding("postgres connections", "fail", found, fix)
    yield skew("postgres clock", report.clock_ns, report.round_trip_ns)


def _schema(url: str, current: schema.Current) -> Finding:
    if not current.up_to_date:
        at = f"at {current.revision}" if current.revision else "not there yet"
        ahead = current.revision is not None and current.revision > current.head
        found = f"{at}, {'newer than' if ahead else 'and'} this mdp{'' if ahead else ' needs'} {current.head}"
        return Finding("schema", "fail", found, "update mdp here" if ahead else "mdp store upgrade")
    drift = schema.check(url)
    if drift:
        return Finding("schema", "fail", "; ".join(drift), "mdp store check")
    return Finding("schema", "ok", f"at {current.revision}")


def _timescale(extension: timescale.Extension, *, embedded: bool) -> Finding:
    if extension.missing is None:
        return Finding("timescaledb", "ok", str(extension.version))
    found = f"{extension.missing}: plain tables are used, without compression or rollups"
    install = "install TimescaleDB on the server, then mdp store upgrade"
    fix = "set DATABASE_URL to a server that has it" if embedded else install
    return Finding("timescaledb", "warn", found, fix)


def _durability(report: Health) -> Finding:
    if report.at_risk:
        fix = "switch them on in postgresql.conf"
        return Finding("postgres durability", "fail", ", ".join(report.at_risk), fix)
    return Finding("postgres durability", "ok", "a commit is on the disk")
