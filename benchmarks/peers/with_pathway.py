"""pathway: its Kafka reader, ``windowby`` on event time, and its PostgreSQL writer.

It reads records in Rust, where a program cannot note the first: its time begins when ``run`` is called, which holds
connecting. Set for speed: a commit of what was read each 100 ms, without its dashboards. ``exactly_once_behavior``
gives each window once, when it is closed.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import pathway as pw

from benchmarks.peers.given import FIRST, TABLE, given, mark


class Tick(pw.Schema):
    """The fields that bars need."""

    symbol: str
    src_ts: str
    c: float
    h: float
    l: float
    v: float
    seq: int


def main() -> None:
    told = given()
    rdkafka = {
        "bootstrap.servers": told.kafka,
        "group.id": told.group,
        "auto.offset.reset": "earliest",
        "session.timeout.ms": "6000",
    }
    ticks = pw.io.kafka.read(
        rdkafka, told.topic, schema=Tick, format="json", mode="static", autocommit_duration_ms=100
    )
    ticks = ticks.with_columns(at=pw.this.src_ts.dt.strptime("%Y-%m-%dT%H:%M:%S.%fZ").dt.to_utc("UTC"))
    bars = ticks.windowby(
        pw.this.at,
        window=pw.temporal.tumbling(duration=pw.Duration(milliseconds=told.window_ms)),
        behavior=pw.temporal.exactly_once_behavior(shift=pw.Duration(milliseconds=told.late_ms)),
        instance=pw.this.symbol,
    ).reduce(
        symbol=pw.this._pw_instance,
        ts=pw.this._pw_window_start,
        open=pw.reducers.argmin(pw.this.at, pw.this.c),
        high=pw.reducers.max(pw.this.h),
        low=pw.reducers.min(pw.this.l),
        close=pw.reducers.argmax(pw.this.at, pw.this.c),
        volume=pw.reducers.sum(pw.this.v),
        n_events=pw.reducers.count(),
    )
    where = urlsplit(told.database)
    settings = {
        "host": where.hostname,
        "port": where.port,
        "dbname": where.path.lstrip("/"),
        "user": where.username,
        "password": where.password,
    }
    pw.io.postgres.write(
        bars, settings, TABLE, output_table_type="snapshot", primary_key=[bars.symbol, bars.ts]
    )
    mark(FIRST)
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)


if __name__ == "__main__":
    main()
