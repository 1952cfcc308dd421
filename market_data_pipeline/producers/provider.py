"""The contract that every source of events keeps, and where providers are found by name.

A provider is a name, whether its source can wait, and batches of events. It knows nothing of the bus: pacing,
validation, framing, retries and the spool are the runner's (:mod:`market_data_pipeline.producers.runner`).
docs/writing-a-provider.md shows a whole one in twenty lines.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import Final, Protocol, cast

from market_data_core.batch import EventBatch
from market_data_core.clock import Clock, SystemClock
from market_data_core.config import Settings
from market_data_core.errors import UsageError

ENTRY_POINT_GROUP: Final = "mdp.providers"

_BUILT_IN: Final = {
    "dataset": "market_data_pipeline.producers.dataset:provider",
    "synthetic": "market_data_pipeline.producers.synthetic:provider",
}


@dataclass(frozen=True, slots=True)
class BadRow:
    """An observation that cannot become an event.

    ``place``: where it stood, for a person (``file.csv:17``). ``value``: its original bytes.
    """

    place: str
    reason: str
    value: bytes
    key: str = ""


Observations = Iterator[EventBatch | BadRow] | AsyncIterator[EventBatch | BadRow]


class Provider(Protocol):
    """A source of events.

    ``can_wait`` is True for a source that is read (a file, a generator): the runner slows it when the bus is
    slow. A live feed cannot wait: the runner always takes what it gives, spools it, and past the bound of the
    spool counts what it drops.
    """

    @property
    def name(self) -> str:
        """For logs, metrics and the spool's file; usually the provider name in the events too."""
        ...

    @property
    def can_wait(self) -> bool: ...

    def batches(self) -> Observations:
        """All events in order of arrival, as columns; a row that is no event as a :class:`BadRow`.

        An ordinary iterator runs in a thread, an async one in the event loop. Either ends when the source does
        and is closed when the run stops. Where a batch's ``ingest_ts`` is 0, the runner stamps it.
        """
        ...


@dataclass(frozen=True, slots=True)
class ProviderRequest:
    """What was asked of a provider on the command line, beside its own part of the settings.

    ``rate`` is events a second over all symbols (0: as fast as possible); None leaves each to the settings.
    """

    settings: Settings
    symbols: tuple[str, ...] = ()
    rate: float | None = None
    limit: int | None = None
    seed: int | None = None
    start_ts: int | None = None
    name: str | None = None
    clock: Clock = field(default_factory=SystemClock)
    datasets: tuple[str, ...] = ()
    preset: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)


ProviderFactory = Callable[[ProviderRequest], Provider]


def provider_names() -> list[str]:
    """All names that :func:`load_provider` knows, built in and installed."""
    return sorted({*_BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def load_provider(name: str) -> ProviderFactory:
    """The factory of the provider called ``name``; its module is imported only now.

    Raises:
        UsageError: no provider has this name, or its package cannot be imported.
    """
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        return cast(ProviderFactory, getattr(import_module(module), attribute))
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        try:
            return cast(ProviderFactory, point.load())
        except (ImportError, AttributeError) as error:
            raise UsageError(
                f"the provider {name!r} ({point.value}) cannot be imported: {error}; reinstall its package"
            ) from error
    raise UsageError(
        f"there is no provider {name!r}; use one of {', '.join(provider_names())}, or install a package "
        f"that offers it under the entry point group {ENTRY_POINT_GROUP}"
    )
