"""The statements of ``bars_ohlcv``. Literals only: every value is a parameter."""

from __future__ import annotations

from typing import Final, LiteralString

VALUES: Final = (
    "open",
    "high",
    "low",
    "close",
    "volume",
    "volume_lo",
    "notional",
    "notional_lo",
    "n_events",
    "first_ts",
    "first_seq",
    "last_ts",
    "last_seq",
)
"""What a bar says, in the order of the statements below; a bar is unchanged when all of it is."""

_INPUT: Final[LiteralString] = """
    FROM unnest(%s::text[], %s::text[], %s::text[], %s::timestamptz[],
                %s::float8[], %s::float8[], %s::float8[], %s::float8[], %s::float8[], %s::float8[],
                %s::float8[], %s::float8[], %s::int8[], %s::int8[], %s::int8[], %s::int8[], %s::int8[], %s::int4[])
      AS i(provider, symbol, "interval", ts, open, high, low, close, volume, volume_lo, notional,
           notional_lo, n_events, first_ts, first_seq, last_ts, last_seq, revision)
"""

_INSERT: Final[LiteralString] = (
    """
    INSERT INTO bars_ohlcv AS b (
        provider, symbol, "interval", ts, open, high, low, close, volume, volume_lo, notional, notional_lo,
        n_events, first_ts, first_seq, last_ts, last_seq, vwap, revision, writer, updated_at)
    SELECT provider, symbol, "interval", ts, open, high, low, close, volume, volume_lo,
           NULLIF(notional, 'NaN'), notional_lo, n_events, first_ts, first_seq, last_ts, last_seq,
           NULLIF(notional, 'NaN') / NULLIF(volume, 0), revision, %s::text, now()
"""
    + _INPUT
    + """
    ON CONFLICT ("interval", symbol, ts, provider)
"""
)

_REPLACE: Final[LiteralString] = """
    DO UPDATE SET
        open = EXCLUDED.open, high = EXCLUDED.high, low = EXCLUDED.low, close = EXCLUDED.close,
        volume = EXCLUDED.volume, volume_lo = EXCLUDED.volume_lo, notional = EXCLUDED.notional,
        notional_lo = EXCLUDED.notional_lo, vwap = EXCLUDED.vwap, n_events = EXCLUDED.n_events,
        first_ts = EXCLUDED.first_ts, first_seq = EXCLUDED.first_seq, last_ts = EXCLUDED.last_ts,
        last_seq = EXCLUDED.last_seq, writer = EXCLUDED.writer, updated_at = EXCLUDED.updated_at,
"""
_UNLESS_BETTER: Final[LiteralString] = """
        revision = b.revision + 1
    WHERE (%s::bool OR EXCLUDED.n_events >= b.n_events)
      AND (b.open, b.high, b.low, b.close, b.volume, b.volume_lo, b.notional, b.notional_lo, b.n_events,
           b.first_ts, b.first_seq, b.last_ts, b.last_seq)
          IS DISTINCT FROM
          (EXCLUDED.open, EXCLUDED.high, EXCLUDED.low, EXCLUDED.close, EXCLUDED.volume, EXCLUDED.volume_lo,
           EXCLUDED.notional, EXCLUDED.notional_lo, EXCLUDED.n_events, EXCLUDED.first_ts,
           EXCLUDED.first_seq, EXCLUDED.last_ts, EXCLUDED.last_seq)
"""
_IF_AS_FOUND: Final[LiteralString] = """
        revision = EXCLUDED.revision
    WHERE b.writer = EXCLUDED.writer AND b.revision = EXCLUDED.revision - 1
"""

# Keys come back only where they tell more than the count does: not when every row was new.
_WRITTEN: Final[LiteralString] = """
    SELECT n, highest, CASE WHEN partly THEN providers END, CASE WHEN partly THEN symbols END,
           CASE WHEN partly THEN intervals END, CASE WHEN partly THEN starts END,
           CASE WHEN partly THEN revisions END
    FROM (SELECT count(*) AS n, coalesce(max(revision), 0) AS highest,
                 count(*) <> %s::int8 OR max(revision) > 1 AS partly, array_agg(provider) AS providers,
                 array_agg(symbol) AS symbols, array_agg("interval") AS intervals, array_agg(ts) AS starts,
                 array_agg(revision) AS revisions FROM written) w
"""
_RETURNING: Final[LiteralString] = ' RETURNING provider, symbol, "interval", ts, revision) '
UPSERT: Final[LiteralString] = (
    "WITH written AS (" + _INSERT + _REPLACE + _UNLESS_BETTER + _RETURNING + _WRITTEN
)
AMEND: Final[LiteralString] = "WITH written AS (" + _INSERT + _REPLACE + _IF_AS_FOUND + _RETURNING + _WRITTEN
INSERT_NEW: Final[LiteralString] = "WITH written AS (" + _INSERT + "DO NOTHING" + _RETURNING + _WRITTEN

REFUSED: Final[LiteralString] = """
    SELECT count(*) FROM unnest(%s::text[], %s::text[], %s::text[], %s::timestamptz[], %s::int8[])
                      AS i(provider, symbol, "interval", ts, n_events)
    JOIN bars_ohlcv b USING (provider, symbol, "interval", ts) WHERE b.n_events > i.n_events
"""

COLUMNS: Final[LiteralString] = """
    array_agg(ts), array_agg(open), array_agg(high), array_agg(low), array_agg(close), array_agg(volume),
    array_agg(volume_lo), array_agg(notional), array_agg(notional_lo), array_agg(n_events),
    array_agg(first_ts), array_agg(first_seq), array_agg(last_ts), array_agg(last_seq), array_agg(revision)
"""
ROW: Final[LiteralString] = """
    ts, open, high, low, close, volume, volume_lo, coalesce(notional, 'NaN') AS notional, notional_lo, n_events,
    first_ts, first_seq, last_ts, last_seq, revision
"""

FIND: Final[LiteralString] = (
    # Literals only, as the type says.
    """
    WITH found AS MATERIALIZED (
        SELECT k.row, b.writer, b.ts, b.open, b.high, b.low, b.close, b.volume, b.volume_lo,
               coalesce(b.notional, 'NaN') AS notional, b.notional_lo, b.n_events, b.first_ts, b.first_seq,
               b.last_ts, b.last_seq, b.revision
        FROM unnest(%s::text[], %s::text[], %s::text[], %s::timestamptz[], %s::int8[])
          AS k(provider, symbol, "interval", ts, row)
        JOIN bars_ohlcv b USING (provider, symbol, "interval", ts) ORDER BY k.row)
    SELECT array_agg(row), array_agg(writer),
"""  # noqa: S608
    + COLUMNS
    + " FROM found"
)
