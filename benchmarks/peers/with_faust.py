"""faust: an agent that takes batches, a table of the open bars, and inserts of what event time has closed.

faust's own windowed tables close by the wall clock, so they cannot make bars of ticks of another day: the agent keeps
its windows in a plain table, and closes them itself. Set for speed: ``take`` of 5,000, so that the table and with it
the changelog topic is written once a bar and batch, and not once a tick; raw JSON by orjson instead of records;
the table in memory, which its changelog restores.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import faust
import psycopg

from benchmarks.peers.given import TABLE, FirstRecord, given

INSERT = f"INSERT INTO {TABLE} VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
told = given()
app = faust.App(
    told.group,
    broker=f"kafka://{told.kafka}",
    store="memory://",
    topic_partitions=1,
    topic_disable_leader=True,
    consumer_auto_offset_reset="earliest",
    broker_max_poll_records=5000,
    stream_buffer_maxsize=20_000,
    web_enabled=False,
)
topic = app.topic(told.topic, value_serializer="json")
# The partitioner chooses where a change is logged: within ``take`` there is no current event that would.
table = app.Table("open_bars", partitions=1, use_partitioner=True)
"""``SYMBOL|start in ms``: first tick's (time, number), open, high, low, close, last tick's (time, number), volume,
count."""


@app.agent(topic)
async def bars(stream: Any) -> None:
    newest, first_record = 0.0, FirstRecord()
    closes: dict[str, int] = {}
    async with await psycopg.AsyncConnection.connect(told.database) as connection:
        async for batch in stream.take(5000, within=0.2):
            first_record()
            changed: dict[str, list[Any]] = {}
            for tick in batch:
                ts = datetime.fromisoformat(tick["src_ts"]).timestamp()
                newest = max(newest, ts)
                start = int(ts * 1000) // told.window_ms * told.window_ms
                key = f"{tick['symbol']}|{start}"
                if key not in changed:
                    changed[key] = list(table.get(key) or ())
                    closes[key] = start + told.window_ms + told.late_ms
                add(changed[key], [ts, tick["seq"]], tick["c"], tick["v"])
            watermark = int(newest * 1000)
            done = [key for key, at in closes.items() if at <= watermark]
            rows = []
            for key in done:
                symbol, _, start_ms = key.rpartition("|")
                bar = changed.pop(key, None) or table[key]
                at = datetime.fromtimestamp(int(start_ms) / 1000, UTC)
                rows.append((symbol, at, bar[1], bar[2], bar[3], bar[4], bar[6], bar[7]))
            async with connection.transaction(), connection.cursor() as cursor:
                await cursor.executemany(INSERT, rows)
            for key in done:
                del closes[key]
                if key in table:
                    del table[key]
            for key, bar in changed.items():
                table[key] = bar


def add(bar: list[Any], at: list[float], price: float, size: float) -> None:
    if not bar:
        bar[:] = [at, price, price, price, price, at, size, 1]
        return
    if at < bar[0]:
        bar[0], bar[1] = at, price
    bar[2], bar[3] = max(bar[2], price), min(bar[3], price)
    if at > bar[5]:
        bar[5], bar[4] = at, price
    bar[6] += size
    bar[7] += 1


if __name__ == "__main__":
    app.main()
