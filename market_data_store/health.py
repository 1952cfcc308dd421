"""What a database says about itself, for an operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import psycopg

from market_data_core.clock import Clock, SystemClock
from market_data_store.connection import libpq_url, translated

OLDEST: Final = 15
"""The oldest major version of PostgreSQL that mdp is tested on."""


@dataclass(frozen=True, slots=True)
class Health:
    """``clock_ns`` is how far the server's clock is ahead of this machine's, to within half of ``round_trip_ns``.

    ``at_risk`` names the settings by which a committed transaction can be lost when the power goes.
    """

    version: str
    major: int
    clock_ns: int
    round_trip_ns: int
    connections: int
    max_connections: int
    at_risk: tuple[str, ...]


def health(url: str, clock: Clock | None = None) -> Health:
    """Ask the server; ``clock`` is what its own is compared with.

    Raises:
        StoreUnavailable, StoreError: it cannot be reached, or refuses.
    """
    durable = ("fsync", "full_page_writes", "synchronous_commit")
    with (
        translated(url),
        psycopg.connect(libpq_url(url), connect_timeout=5, application_name="mdp-health") as wire,
    ):
        row = wire.execute(
            "SELECT current_setting('server_version'), current_setting('server_version_num')::int / 10000,"
            " (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),"
            " current_setting('max_connections')::int"
        ).fetchone()
        rows = wire.execute(
            "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [list(durable)]
        ).fetchall()
        best = min((_clock(wire, clock or SystemClock()) for _ in range(3)), key=lambda sample: sample[1])
    assert row is not None  # noqa: S101 - a select without a table gives a row
    risky = tuple(f"{name} = {value}" for name, value in sorted(rows) if value == "off")
    return Health(str(row[0]), int(row[1]), best[0], best[1], int(row[2]), int(row[3]), risky)


def _clock(wire: psycopg.Connection, clock: Clock) -> tuple[int, int]:
    """``(offset, round trip)`` in ns, as NTP estimates it: the answer was made half way."""
    begin, wall = clock.monotonic(), clock.now()
    row = wire.execute("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").fetchone()
    trip = clock.monotonic() - begin
    assert row is not None  # noqa: S101
    return int(row[0]) * 1000 - (wall + trip // 2), trip
