"""Measured processes that write bars: a raw COPY, and the store's commit of new, unchanged, replaced and late rows."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Measured, Stopwatch
from market_data_core.batch import BarBatch, EventBatch
from market_data_core.events import BarSeries, Series

ROWS: Final = 10_000
"""Rows of one transaction, as a flush of ten thousand symbols has."""
SYMBOLS: Final = 1000
WINDOW_NS: Final = 2_000_000_000
START: Final = 1_761_314_520 * 10**9
_POSTGRES_EPOCH_US: Final = 946_684_800 * 10**6
_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER: Final = b"\xff\xff"


def bars(flush: int) -> BarBatch:
    """The closed bars of flush number ``flush``, in order of time as windows close."""
    random = np.random.default_rng(flush)
    row = np.arange(ROWS)
    code, ts = (row % SYMBOLS).astype(np.int32), START + (flush * ROWS + row) // SYMBOLS * WINDOW_NS
    low = random.integers(9_000, 10_000, ROWS) / 100.0
    volume = random.integers(100, 10_000, ROWS).astype(np.float64)
    count = np.full(ROWS, 40, np.int64)
    zero, one = np.zeros(ROWS), np.ones(ROWS, np.int32)
    return BarBatch(
        series=tuple(BarSeries("bench", f"SYM{i:05d}", "2s") for i in range(SYMBOLS)),
        code=code,
        ts=ts,
        open=low + 0.25,
        high=low + 1.0,
        low=low,
        close=low + 0.5,
        volume=volume,
        volume_lo=zero,
        notional=(low + 0.5) * volume,
        notional_lo=zero,
        n_events=count,
        first_ts=ts + 1000,
        first_seq=row,
        last_ts=ts + 1_900_000_000,
        last_seq=row + 40,
        revision=one,
    )


def copy_data(batch: BarBatch) -> bytes:
    """The rows in the binary form of COPY, all columns of the table but those with defaults. Every name has one
    length, so the rows are made as one array."""
    fields: list[tuple[str, Any]] = [("fields", ">i2")]
    values: dict[str, NDArray[Any]] = {}

    def column(name: str, kind: str, data: NDArray[Any]) -> None:
        fields.append((f"{name} size", ">i4"))
        fields.append((name, kind))
        values[name] = data

    def text(name: str, table: list[str]) -> None:
        raw = np.array([word.encode() for word in table])
        column(name, raw.dtype.str, raw[batch.code])

    text("interval", [s.interval for s in batch.series])
    text("symbol", [s.symbol for s in batch.series])
    column("ts", ">i8", batch.ts // 1000 - _POSTGRES_EPOCH_US)
    text("provider", [s.provider for s in batch.series])
    for name in ("open", "high", "low", "close", "volume", "volume_lo", "notional", "notional_lo", "vwap"):
        column(name, ">f8", getattr(batch, name))
    for name in ("n_events", "first_ts", "first_seq", "last_ts", "last_seq"):
        column(name, ">i8", getattr(batch, name))
    column("revision", ">i4", batch.revision)
    column("writer", "S11", np.full(ROWS, b"bench/bench"))
    column("updated_at", ">i8", np.full(ROWS, START // 1000 - _POSTGRES_EPOCH_US))
    rows = np.zeros(ROWS, np.dtype(fields))
    rows["fields"] = len(values)
    for name, data in values.items():
        rows[f"{name} size"] = rows.dtype[name].itemsize
        rows[name] = data
    return _HEADER + rows.tobytes() + _TRAILER


async def raw_copy(given: dict[str, Any]) -> Measured:
    """COPY of rows encoded before, into an equal table (its key and checks too), ROWS a transaction."""
    import psycopg

    from market_data_store.connection import libpq_url

    watch = Stopwatch(given["pids"])
    flushes = given["flushes"]
    async with await psycopg.AsyncConnection.connect(libpq_url(given["database"])) as connection:
        await connection.execute("DROP TABLE IF EXISTS bench_copy")
        await connection.execute("CREATE TABLE bench_copy (LIKE bars_ohlcv INCLUDING ALL)")
        await connection.commit()
        data = [copy_data(bars(flush)) for flush in range(flushes)]
        watch.start()
        for chunk in data:
            async with connection.cursor().copy("COPY bench_copy FROM STDIN (FORMAT BINARY)") as copy:
                await copy.write(chunk)
            await connection.commit()
        watch.lap()
        row = await (await connection.execute("SELECT count(*), sum(n_events) FROM bench_copy")).fetchone()
        await connection.execute("DROP TABLE bench_copy")
    if row is None or row[0] != flushes * ROWS or row[1] != flushes * ROWS * 40:
        raise RuntimeError(f"COPY wrote {row}, not {flushes * ROWS} rows")
    return watch.result(flushes * ROWS)


async def commits(given: dict[str, Any]) -> Measured:
    """:meth:`StoreClient.commit` of closed bars, outbox and position included: new ones, or as ``given["kind"]`` says:
    ``unchanged`` (all are stored already), ``replaced`` (stored ones have fewer events), ``late`` (one late event of
    each stored bar)."""
    from market_data_core.protocols import Claim, Flush, LaneFlush, Position
    from market_data_store import StoreClient

    watch = Stopwatch(given["pids"])
    flushes, kind = given["flushes"], given["kind"]
    new = [bars(flush) for flush in range(flushes)]
    position = Position("live/bench", START, "1-0", "", "")

    async with await StoreClient.connect(given["database"]) as store:

        async def run(claim: Claim, batches: list[BarBatch], late: bool) -> list[int]:
            changed, published = [], list[int]()
            for number, batch in enumerate(batches, 1):
                closed, events = (batch.take(slice(0)), _late(batch)) if late else (batch, EventBatch.empty())
                lane = LaneFlush("live/bench", closed, events, WINDOW_NS)
                done = await store.commit(Flush(claim, [lane], [position], number, published=published))
                published = [record.id for record in done.outbox]
                changed.append(len(done.bars))
            return changed

        async def claim() -> Claim:
            return await store.claim("bench.store", "bench", 0, "bench")

        if kind != "new":
            await run(await claim(), new, late=False)
        batches = [_grown(batch) for batch in new] if kind == "replaced" else new
        claimed = await claim()
        watch.start()
        changed = await run(claimed, batches, late=kind == "late")
        watch.lap()
        stored = await store.bars(interval="2s")
    _check(kind, changed, stored, new)
    return watch.result(flushes * ROWS)


def _check(kind: str, changed: list[int], stored: BarBatch, new: list[BarBatch]) -> None:
    wanted = 0 if kind == "unchanged" else ROWS
    expected = BarBatch.concat(new)
    volume = expected.volume.sum() + (len(expected) if kind in ("replaced", "late") else 0)
    right = set(changed) == {wanted} and len(stored) == len(expected) and stored.volume.sum() == volume
    revision = 2 if kind in ("replaced", "late") else 1
    if not (right and (stored.revision == revision).all()):
        raise RuntimeError(
            f"{kind}: {len(stored)} rows, {set(changed)} changed a flush: not what was written"
        )


def _grown(batch: BarBatch) -> BarBatch:
    """The same bars made of one event more, which replace those stored."""
    names = ("ts", "open", "high", "low", "close", "volume_lo", "notional", "notional_lo")
    rest = {
        n: getattr(batch, n) for n in (*names, "first_ts", "first_seq", "last_ts", "last_seq", "revision")
    }
    return BarBatch(
        series=batch.series, code=batch.code, volume=batch.volume + 1.0, n_events=batch.n_events + 1, **rest
    )


def _late(batch: BarBatch) -> EventBatch:
    """One event of size 1 for each bar."""
    one = np.ones(len(batch))
    at = batch.ts + 1_000_000_000
    return EventBatch(
        series=tuple(Series(s.provider, s.symbol, "tick", "1s") for s in batch.series),
        code=batch.code,
        src_ts=at,
        ingest_ts=at,
        o=batch.close,
        h=batch.close,
        l=batch.close,
        c=batch.close,
        v=one,
        seq=batch.first_seq,
    )
