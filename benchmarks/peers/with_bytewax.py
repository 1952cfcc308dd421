"""bytewax: ``KafkaSource``, ``fold_window`` on event time, and a sink that inserts what each batch closed. For
``python -m bytewax.run``.

Set for speed: five times the default batch; decoding in ``flat_map_batch``, one call for a batch, with orjson;
``ordered=False``, since the fold looks at the time of each tick itself, which spares sorting; no recovery store, which
is bytewax's default, so a crash of this program loses its open windows.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import bytewax.operators as op
import orjson
import psycopg
from bytewax.connectors.kafka import KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow
from bytewax.operators import windowing as win
from bytewax.outputs import DynamicSink, StatelessSinkPartition

from benchmarks.peers.given import TABLE, FirstRecord, given

INSERT = f"INSERT INTO {TABLE} VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Tick = tuple[datetime, int, float, float]
"""Time, sequence number, price, size."""

told = given()
NOW = datetime.now(UTC)
LENGTH = timedelta(milliseconds=told.window_ms)
first_record = FirstRecord()


def decode(messages: list[KafkaSourceMessage]) -> list[tuple[str, Tick]]:
    first_record()
    parse, loads = datetime.fromisoformat, orjson.loads
    out = []
    for message in messages:
        tick = loads(message.value)
        out.append((tick["symbol"], (parse(tick["src_ts"]), tick["seq"], tick["c"], tick["v"])))
    return out


def fold(bar: list[Any], tick: Tick) -> list[Any]:
    """``bar``: first tick's (time, number), open, high, low, close, last tick's (time, number), volume, count."""
    ts, seq, price, size = tick
    at = (ts, seq)
    if not bar:
        return [at, price, price, price, price, at, size, 1]
    if at < bar[0]:
        bar[0], bar[1] = at, price
    # Not max and min, which are calls.
    bar[2] = price if price > bar[2] else bar[2]
    bar[3] = price if price < bar[3] else bar[3]
    if at > bar[5]:
        bar[5], bar[4] = at, price
    bar[6] += size
    bar[7] += 1
    return bar


def merge(one: list[Any], other: list[Any]) -> list[Any]:
    raise NotImplementedError("tumbling windows are never merged")


class Partition(StatelessSinkPartition[Any]):
    """Inserts each batch in one transaction, pipelined by psycopg's ``executemany``."""

    def __init__(self) -> None:
        self._connection = psycopg.connect(told.database)

    def write_batch(self, items: list[Any]) -> None:
        rows = [
            (symbol, EPOCH + number * LENGTH, bar[1], bar[2], bar[3], bar[4], bar[6], bar[7])
            for symbol, (number, bar) in items
        ]
        with self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.executemany(INSERT, rows)

    def close(self) -> None:
        self._connection.close()


class PostgresSink(DynamicSink[Any]):
    """One connection a worker."""

    def build(self, step_id: str, worker_index: int, worker_count: int) -> Partition:
        return Partition()


flow = Dataflow("bars")
source = KafkaSource([told.kafka], [told.topic], tail=False, batch_size=5000)
ticks = op.flat_map_batch("decode", op.input("ticks", flow, source), decode)
# The clock stands still: bytewax moves event time on with it, so that ticks of a backlog would be late, and lost,
# whenever the machine is busy for longer than ``late_ms``.
clock = win.EventClock(lambda tick: tick[0], timedelta(milliseconds=told.late_ms), now_getter=lambda: NOW)
windower = win.TumblingWindower(length=LENGTH, align_to=EPOCH)
bars = win.fold_window("bars", ticks, clock, windower, list, fold, merge, ordered=False)
op.output("postgres", bars.down, PostgresSink())
