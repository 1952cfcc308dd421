"""What a database says about itself."""

from __future__ import annotations

import pytest

from market_data_core.errors import StoreUnavailable
from market_data_store.health import health
from tests.integration.conftest import Databases


def test_health_of_a_server_that_is_set_to_forget(databases: Databases) -> None:
    url = databases.postgres("18").create_database("health")
    report = health(url)
    assert report.major == 18
    assert report.version.startswith("18.")
    assert "fsync = off" in report.at_risk
    assert 1 <= report.connections <= report.max_connections
    assert 0 < report.round_trip_ns < 5_000_000_000
    assert abs(report.clock_ns) <= report.round_trip_ns, "it is the same machine's clock"


def test_health_of_a_server_that_is_away() -> None:
    with pytest.raises(StoreUnavailable, match="check that it runs"):
        health("postgresql://u@127.0.0.1:1/d")
