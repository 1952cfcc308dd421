"""Adapters by name: ours by an explicit table, imported when used, and outsiders' by an entry point.

A package that brings an adapter declares it so, and ``--adapter name`` finds it::

    [project.entry-points."mdp.adapters"]
    name = "package.module:ClassOfAdapter"

The class is called with what ``inference.options.name`` holds, as keywords. One that wants more, as ours do, has a
class method ``from_settings``, which is called with all the settings instead.
"""

from __future__ import annotations

import importlib
import inspect
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, cast

from market_data_core.config import Settings
from market_data_core.errors import ConfigError
from market_data_pipeline.inference.adapter import InferenceAdapter

GROUP: Final = "mdp.adapters"
_ADAPTERS: Final = "market_data_pipeline.inference.adapters"
ADAPTERS: Final[dict[str, str]] = {
    "rules": f"{_ADAPTERS}.watched_rules:WatchedRules",
    "sklearn": f"{_ADAPTERS}.sklearn:SklearnAdapter",
}


def known_adapters() -> list[str]:
    """Names that :func:`open_adapter` takes."""
    return sorted({*ADAPTERS, *(entry.name for entry in entry_points(group=GROUP))})


def adapter_class(name: str) -> type[Any]:
    """The adapter called ``name``.

    Raises:
        ConfigError: there is none of that name, or it is not an adapter.
    """
    entry = _entry(name)
    found = getattr(importlib.import_module(entry.module), entry.attr, None)
    if not isinstance(found, type) or not callable(getattr(found, "decide", None)):
        raise ConfigError(
            f"the adapter {name!r} names {entry.value}, which is not an InferenceAdapter: fix its entry point"
        )
    return found


def open_adapter(name: str, settings: Settings) -> InferenceAdapter:
    """The adapter called ``name``, as it is configured. Close it when done.

    Raises:
        ConfigError: there is no such adapter, or its options are not its.
        MdpError: what it needs is missing or wrong; the message says what.
    """
    kind = adapter_class(name)
    build = getattr(kind, "from_settings", None)
    if callable(build):
        return cast(InferenceAdapter, build(settings))
    options = settings.inference.options.get(name, {})
    try:
        inspect.signature(kind).bind(**options)
    except TypeError as error:
        raise ConfigError(f"inference.options.{name}: {error}") from None
    except ValueError:  # a class of C has no signature to look at
        pass
    return cast(InferenceAdapter, kind(**options))


def _entry(name: str) -> EntryPoint:
    if name in ADAPTERS:
        return EntryPoint(name, ADAPTERS[name], GROUP)
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            return entry
    raise ConfigError(f"there is no adapter {name!r}: use one of {', '.join(known_adapters())}")
