"""quix-streams: a tumbling window of its aggregations, ``final``, into its own ``PostgreSQLSink``.

Set for speed: JSON by its own deserializer; no log; a table that is there already, so ``schema_auto_update`` is off; a
``count`` of bars to make, after which it commits at once and does not wait for ``commit_interval``. The state store and
its changelog topic are as by default, since they are how it survives a crash.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import quixstreams.dataframe.windows.aggregations as agg
from psycopg2.extensions import parse_dsn
from quixstreams import Application
from quixstreams.sinks.community.postgresql import PostgreSQLSink

from benchmarks.peers.given import TABLE, FirstRecord, given

first_record = FirstRecord()


def event_time(tick: Any, headers: Any, timestamp: float, kind: Any) -> int:
    """Milliseconds since 1970."""
    first_record()
    return int(datetime.fromisoformat(tick["src_ts"]).timestamp() * 1000)


def row(bar: dict[str, Any], symbol: str, timestamp: int, headers: Any) -> dict[str, Any]:
    return {
        "symbol": symbol,
        "ts": datetime.fromtimestamp(bar["start"] / 1000, UTC),
        "open": bar["open"],
        "high": bar["high"],
        "low": bar["low"],
        "close": bar["close"],
        "volume": bar["volume"],
        "n_events": bar["n_events"],
    }


def main() -> None:
    told = given()
    app = Application(
        broker_address=told.kafka,
        consumer_group=told.group,
        auto_offset_reset="earliest",
        loglevel="WARNING",
        state_dir="state",
    )
    topic = app.topic(
        told.topic, key_deserializer="str", value_deserializer="json", timestamp_extractor=event_time
    )
    where = parse_dsn(told.database)
    sink = PostgreSQLSink(
        host=where.pop("host"),
        port=int(where.pop("port")),
        dbname=where.pop("dbname"),
        user=where.pop("user"),
        password=where.pop("password"),
        table_name=TABLE,
        schema_auto_update=False,
        include_metadata=False,
        **where,
    )
    bars = (
        app.dataframe(topic)
        .tumbling_window(told.window_ms, grace_ms=told.late_ms)
        .agg(
            open=agg.Earliest("c"),
            high=agg.Max("h"),
            low=agg.Min("l"),
            close=agg.Latest("c"),
            volume=agg.Sum("v"),
            n_events=agg.Count(),
        )
        # Closed by the time of the whole partition: cheaper than by that of each symbol.
        .final(closing_strategy="partition")
    )
    bars.apply(row, metadata=True).sink(sink)
    app.run(count=told.bars)


if __name__ == "__main__":
    main()
