"""Drivers are found by name."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from market_data_core.clock import ManualClock
from market_data_core.errors import ConfigError, MissingExtra
from market_data_core.redact import SecretUrl
from market_data_pipeline.streaming import drivers
from market_data_pipeline.streaming.memory_bus import MemoryBus
from market_data_pipeline.streaming.redis_bus import RedisBus


def entries(monkeypatch: pytest.MonkeyPatch, *found: EntryPoint) -> None:
    monkeypatch.setattr(drivers, "entry_points", lambda group: [e for e in found if e.group == group])


def test_our_own() -> None:
    assert drivers.bus_class("memory") is MemoryBus
    assert drivers.bus_class("redis") is RedisBus
    assert {"memory", "redis"} <= set(drivers.known_drivers())


def test_a_bus_is_opened_with_its_uri_and_clock() -> None:
    bus = drivers.open_bus("memory", SecretUrl("memory://test-drivers"), clock=ManualClock())
    assert isinstance(bus, MemoryBus)
    assert bus.name == "memory"


def test_an_unknown_name_is_told_with_those_known() -> None:
    with pytest.raises(
        ConfigError, match=r"bus\.type 'rabbit' is not a known driver: use one of .*memory, redis"
    ):
        drivers.bus_class("rabbit")


def test_a_driver_of_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    entries(
        monkeypatch, EntryPoint("carrier", "market_data_pipeline.streaming.memory_bus:MemoryBus", "mdp.buses")
    )
    assert drivers.bus_class("carrier") is MemoryBus
    assert "carrier" in drivers.known_drivers()


def test_an_entry_point_that_is_no_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    entries(monkeypatch, EntryPoint("odd", "json:JSONDecoder", "mdp.buses"))
    with pytest.raises(ConfigError, match=r"json:JSONDecoder, which is not a Bus"):
        drivers.bus_class("odd")


def test_a_missing_extra_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(drivers.DRIVERS, "pigeon", "no_such_package_of_pigeons.bus:Bus")
    monkeypatch.setitem(drivers.EXTRAS, "pigeon", ("no_such_package_of_pigeons", "pigeon"))
    with pytest.raises(MissingExtra, match=r"pip install 'mdp\[pigeon\]'"):
        drivers.bus_class("pigeon")


def test_an_outsiders_own_missing_import_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    entries(monkeypatch, EntryPoint("broken", "no_such_package_of_pigeons:Bus", "mdp.buses"))
    with pytest.raises(ModuleNotFoundError):
        drivers.bus_class("broken")


def test_drivers_are_imported_when_they_are_used() -> None:
    program = """
import sys
from market_data_pipeline.streaming import drivers
drivers.known_drivers()
assert "redis" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("uri", ["http://user:geheim@host/0", "redis//x", ""])
def test_a_url_that_is_none_of_redis(uri: str) -> None:
    with pytest.raises(ConfigError, match="URL of a Redis server") as caught:
        drivers.open_bus("redis", uri)
    assert "geheim" not in str(caught.value)
