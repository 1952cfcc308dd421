"""Drivers by name: ours by an explicit table, imported when used, and outsiders' by an entry point.

A package that brings a driver declares it so, and ``bus.type: name`` finds it::

    [project.entry-points."mdp.buses"]
    name = "package.module:ClassOfBus"

The class is called with the server's URI and the keyword ``clock``.
"""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import Final, cast

from market_data_core.clock import Clock, SystemClock
from market_data_core.errors import ConfigError, MissingExtra
from market_data_core.redact import SecretUrl
from market_data_pipeline.streaming.bus import Bus

GROUP: Final = "mdp.buses"
_STREAMING: Final = "market_data_pipeline.streaming"
DRIVERS: Final[dict[str, str]] = {
    "kafka": f"{_STREAMING}.kafka_bus:KafkaBus",
    "memory": f"{_STREAMING}.memory_bus:MemoryBus",
    "redis": f"{_STREAMING}.redis_bus:RedisBus",
}
EXTRAS: Final[dict[str, tuple[str, str]]] = {"kafka": ("aiokafka", "kafka")}
"""For drivers that need one: the package they import, and the extra that brings it."""


def known_drivers() -> list[str]:
    """Names that :func:`bus_class` takes."""
    return sorted({*DRIVERS, *(entry.name for entry in entry_points(group=GROUP))})


def bus_class(name: str) -> type[Bus]:
    """The driver called ``name``.

    Raises:
        ConfigError: there is none of that name, or it is not a bus.
        MissingExtra: it needs a package that is not installed.
    """
    entry = _entry(name)
    try:
        found = getattr(importlib.import_module(entry.module), entry.attr, None)
    except ModuleNotFoundError as error:
        package, extra = EXTRAS.get(name, ("", ""))
        if not extra or error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingExtra(f"the {name} bus needs {package}: pip install 'mdp[{extra}]'") from None
    if not (isinstance(found, type) and issubclass(found, Bus)):
        raise ConfigError(f"bus.type {name!r} names {entry.value}, which is not a Bus: fix its entry point")
    return found


def open_bus(name: str, uri: str | SecretUrl, *, clock: Clock | None = None) -> Bus:
    """A bus of the driver called ``name``. It connects on first use.

    Raises:
        ConfigError: there is no such driver, or the URI is not one of its.
        MissingExtra: it needs a package that is not installed.
    """
    build = cast("type", bus_class(name))
    return cast(Bus, build(uri, clock=clock or SystemClock()))


def _entry(name: str) -> EntryPoint:
    if name in DRIVERS:
        return EntryPoint(name, DRIVERS[name], GROUP)
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            return entry
    raise ConfigError(f"bus.type {name!r} is not a known driver: use one of {', '.join(known_drivers())}")
