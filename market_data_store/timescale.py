"""What TimescaleDB adds where it is there: hypertables, compression, retention, continuous aggregates.

:func:`apply` lays the physical side of the schema and may run any number of times: on plain PostgreSQL the
rollups ``bars_5m`` and ``bars_1h`` are ordinary views, with TimescaleDB they are continuous aggregates of the
same names and columns, and a database that gains TimescaleDB later is converted by the next ``mdp store
upgrade``. A migration that changes ``bars_ohlcv`` calls :func:`drop_rollups` first; ``apply`` lays them anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection, text

CHUNK: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Policies:
    """How long chunks stay as they are. ``retention``: None leaves a policy that is there, zero removes it."""

    compress_after: timedelta = timedelta(days=7)
    retention: timedelta | None = None

    def __post_init__(self) -> None:
        if self.compress_after < timedelta(hours=1):
            raise ValueError("compress_after must be at least 1h")
        if self.retention and self.retention < self.compress_after:
            raise ValueError("retention must not be shorter than compress_after")


@dataclass(frozen=True, slots=True)
class Rollup:
    """A coarser view of the bars of ``source``."""

    name: str
    source: str
    interval: str
    width: timedelta
    condition: str = "true"


@dataclass(frozen=True, slots=True)
class Extension:
    """What the server says of TimescaleDB; ``missing`` is the reason why it is not used, or None."""

    version: str | None
    missing: str | None


ROLLUPS: Final = (
    Rollup("bars_5m", "bars_ohlcv", "5m", timedelta(minutes=5), "\"interval\" = '1m'"),
    Rollup("bars_1h", "bars_5m", "1h", timedelta(hours=1)),
)

_HYPERTABLES: Final = {
    "bars_ohlcv": ('provider, symbol, "interval"', "ts"),
    "signals": ("provider, symbol", "ts, name"),
}

_ROLLUP = """
    SELECT provider, symbol, '{interval}'::text AS "interval", {bucket} AS ts,
           {first} AS open, max(high) AS high, min(low) AS low, {last} AS close, sum(volume) AS volume,
           CASE WHEN bool_and(notional IS NOT NULL) THEN sum(notional) / NULLIF(sum(volume), 0) END AS vwap,
           CASE WHEN bool_and(notional IS NOT NULL) THEN sum(notional) END AS notional,
           sum(n_events)::bigint AS n_events
    FROM {source} WHERE {condition} GROUP BY provider, symbol, {bucket}
"""


def extension(connection: Connection) -> Extension:
    """Whether this database has TimescaleDB, or could have it, and if not, what is missing."""
    row = connection.execute(
        text(
            "SELECT installed_version, current_setting('shared_preload_libraries')"
            " FROM pg_available_extensions WHERE name = 'timescaledb'"
        )
    ).one_or_none()
    if row is None:
        return Extension(None, "the server has no TimescaleDB package")
    installed, preloaded = row
    if installed is None and "timescaledb" not in preloaded:
        return Extension(None, "timescaledb is not in the server's shared_preload_libraries")
    return Extension(installed, None if installed else "the extension is not created in this database")


def apply(connection: Connection, policies: Policies | None = None) -> Extension:
    """Create or convert hypertables, policies and rollups; ``connection`` is in no transaction.

    Tables must be those of the newest migration. What is there already is left as it is.
    """
    with connection.begin():
        found = extension(connection)
        if found.version is None and found.missing and "not created" in found.missing:
            found = _create_extension(connection, found)
        if found.version is not None:
            for table, (segment, order) in _HYPERTABLES.items():
                _hypertable(connection, table, segment, order)
                _table_policies(connection, table, policies or Policies())
        for rollup in ROLLUPS:
            _rollup(connection, rollup, continuous=found.version is not None)
        if found.version is not None:
            retention = _policy_config(connection, "policy_retention", "bars_ohlcv", "drop_after")
            for rollup in ROLLUPS:
                _refresh_policy(connection, rollup, retention)
    return found


def drop_rollups(connection: Connection) -> None:
    """Remove ``bars_5m`` and ``bars_1h``, views or continuous aggregates."""
    for rollup in reversed(ROLLUPS):
        kind = _rollup_kind(connection, rollup.name)
        if kind is not None:
            word = "MATERIALIZED VIEW" if kind == "continuous" else "VIEW"
            connection.execute(text(f"DROP {word} {rollup.name}"))


def missing_parts(connection: Connection) -> list[str]:
    """What :func:`apply` would still have to do, as sentences; empty when all is laid."""
    found = extension(connection)
    problems = []
    if found.version is not None:
        problems = [f"table {t} is no hypertable" for t in _HYPERTABLES if not _is_hypertable(connection, t)]
    elif found.missing and "not created" in found.missing:
        problems.append("TimescaleDB is there, but not used by this database")
    wanted = "view" if found.version is None else "continuous"
    for rollup in ROLLUPS:
        kind = _rollup_kind(connection, rollup.name)
        if kind is None:
            problems.append(f"view {rollup.name} is missing")
        elif kind != wanted:
            problems.append(f"view {rollup.name} is no continuous aggregate")
    return problems


def _create_extension(connection: Connection, found: Extension) -> Extension:
    """Create it where the user may. A user who may not works without, as on plain PostgreSQL."""
    allowed = connection.execute(
        text(
            "SELECT rolsuper OR (has_database_privilege(current_database(), 'CREATE') AND EXISTS (SELECT FROM"
            " pg_available_extension_versions WHERE name = 'timescaledb' AND trusted))"
            " FROM pg_roles WHERE rolname = current_user"
        )
    ).scalar_one()
    if not allowed:
        return Extension(None, "the user may not create the extension timescaledb: ask a superuser to")
    connection.execute(text("CREATE EXTENSION IF NOT EXISTS timescaledb"))
    return extension(connection)


def _is_hypertable(connection: Connection, table: str) -> bool:
    query = (
        "SELECT count(*) FROM timescaledb_information.hypertables"
        " WHERE hypertable_schema = current_schema() AND hypertable_name = :table"
    )
    return bool(connection.execute(text(query), {"table": table}).scalar_one())


def _hypertable(connection: Connection, table: str, segment: str, order: str) -> None:
    if not _is_hypertable(connection, table):
        # No default index: it would be one more to write, and a difference to the declared schema.
        connection.execute(
            text(
                "SELECT create_hypertable(CAST(:table AS regclass), by_range('ts', CAST(:chunk AS interval)),"
                " create_default_indexes => false, migrate_data => true)"
            ),
            {"table": table, "chunk": CHUNK},
        )
    enabled = connection.execute(
        text(
            "SELECT compression_enabled FROM timescaledb_information.hypertables"
            " WHERE hypertable_schema = current_schema() AND hypertable_name = :table"
        ),
        {"table": table},
    ).scalar_one()
    if not enabled:
        quoted = segment.replace("'", "''")
        connection.execute(
            text(
                f"ALTER TABLE {table} SET (timescaledb.compress, timescaledb.compress_segmentby = '{quoted}',"
                f" timescaledb.compress_orderby = '{order}')"
            )
        )


def _policy_config(connection: Connection, procedure: str, table: str, key: str) -> timedelta | None:
    """One interval of a policy's configuration; None when there is no such policy."""
    row = connection.execute(
        text(
            "SELECT CAST(config ->> :key AS interval) FROM timescaledb_information.jobs"
            " WHERE proc_name = :procedure AND hypertable_name = :table AND hypertable_schema = current_schema()"
        ),
        {"key": key, "procedure": procedure, "table": table},
    ).one_or_none()
    return None if row is None else row[0]


def _table_policies(connection: Connection, table: str, policies: Policies) -> None:
    compress = _policy_config(connection, "policy_compression", table, "compress_after")
    if compress != policies.compress_after:
        _replace_policy(connection, "compression", table, compress, policies.compress_after)
    retention = _policy_config(connection, "policy_retention", table, "drop_after")
    if policies.retention is not None and retention != (policies.retention or None):
        _replace_policy(connection, "retention", table, retention, policies.retention)


def _replace_policy(
    connection: Connection, kind: str, table: str, old: timedelta | None, new: timedelta
) -> None:
    if old is not None:
        connection.execute(text(f"SELECT remove_{kind}_policy('{table}')"))
    if new:
        statement = f"SELECT add_{kind}_policy('{table}', CAST(:after AS interval))"
        connection.execute(text(statement), {"after": new})


def _rollup_kind(connection: Connection, name: str) -> str | None:
    """``view``, ``continuous``, or None when it is not there."""
    query = "SELECT count(*) FROM pg_views WHERE schemaname = current_schema() AND viewname = :name"
    if not connection.execute(text(query), {"name": name}).scalar_one():
        return None
    if extension(connection).version is None:
        return "view"
    query = (
        "SELECT count(*) FROM timescaledb_information.continuous_aggregates"
        " WHERE view_schema = current_schema() AND view_name = :name"
    )
    return "continuous" if connection.execute(text(query), {"name": name}).scalar_one() else "view"


def _rollup(connection: Connection, rollup: Rollup, *, continuous: bool) -> None:
    kind = _rollup_kind(connection, rollup.name)
    if kind == ("continuous" if continuous else "view"):
        return
    if kind is not None:
        drop_rollups(connection)
    seconds = int(rollup.width.total_seconds())
    parts: dict[str, Any] = {
        "interval": rollup.interval,
        "source": rollup.source,
        "condition": rollup.condition,
    }
    if continuous:
        parts |= {"first": "first(open, ts)", "last": "last(close, ts)"}
        parts["bucket"] = f"time_bucket(INTERVAL '{seconds} seconds', ts)"
        # Not materialised only: a query also sees what is newer than the last refresh.
        head = f"CREATE MATERIALIZED VIEW {rollup.name} WITH"
        head += " (timescaledb.continuous, timescaledb.materialized_only = false) AS"
        tail = "WITH NO DATA"
    else:
        parts |= {
            "first": "(array_agg(open ORDER BY ts))[1]",
            "last": "(array_agg(close ORDER BY ts DESC))[1]",
        }
        parts["bucket"] = f"date_bin(INTERVAL '{seconds} seconds', ts, TIMESTAMPTZ '2000-01-01 00:00:00+00')"
        head, tail = f"CREATE VIEW {rollup.name} AS", ""
    connection.execute(text(f"{head} {_ROLLUP.format(**parts)} {tail}".replace("::", "\\:\\:")))


def _refresh_policy(connection: Connection, rollup: Rollup, retention: timedelta | None) -> None:
    """Refresh the whole past, which costs only where something changed; but never what retention has dropped
    from the bars, since a refresh would drop it from the rollup too."""
    start = None if not retention else max(retention - CHUNK, retention / 2)
    row = connection.execute(
        text(
            "SELECT CAST(j.config ->> 'start_offset' AS interval)"
            " FROM timescaledb_information.jobs j JOIN timescaledb_information.continuous_aggregates c"
            " ON j.hypertable_name IN (c.view_name, c.materialization_hypertable_name)"
            " WHERE j.proc_name = 'policy_refresh_continuous_aggregate' AND c.view_name = :name"
        ),
        {"name": rollup.name},
    ).one_or_none()
    if row is not None and row[0] == start:
        return
    if row is not None:
        connection.execute(text(f"SELECT remove_continuous_aggregate_policy('{rollup.name}')"))
    connection.execute(
        text(
            f"SELECT add_continuous_aggregate_policy('{rollup.name}', start_offset => CAST(:start AS interval),"
            " end_offset => CAST(:width AS interval), schedule_interval => CAST(:width AS interval))"
        ),
        {"start": start, "width": rollup.width},
    )
