"""Decider: the engine that decides, and the features that it needs for it; both may change while it runs."""

from __future__ import annotations

from typing import Protocol, Self, runtime_checkable

from market_data_core.clock import Clock
from market_data_core.config import Settings
from market_data_core.config_signals import Features
from market_data_core.events import format_interval, parse_interval
from market_data_pipeline.features.definitions import Feature, definitions
from market_data_pipeline.inference.adapter import InferenceAdapter
from market_data_pipeline.inference.adapters.registry import open_adapter
from market_data_pipeline.inference.engine import InferenceEngine
from market_data_pipeline.inference.observer import EngineObserver, Unobserved


@runtime_checkable
class Refreshing(Protocol):
    """An adapter that looks after what it was made of, such as a file of rules."""

    name: str
    generation: int
    failures: int

    def refresh(self, now: int) -> bool:
        """Look, if it is time to (monotonic ns), and tell whether something changed. ``failures`` grows when it did and
        cannot be used."""
        ...


class Decider:
    """An adapter, what stands in for it when it fails, and the definitions of the features that they read.

    ``generation`` grows whenever those features may be others than before.
    """

    def __init__(
        self,
        engine: InferenceEngine,
        features: Features,
        refreshing: tuple[Refreshing, ...],
        clock: Clock,
        observer: EngineObserver | None = None,
    ) -> None:
        self.engine = engine
        self._settings = features
        self._refreshing = refreshing
        self._clock = clock
        self._observer = observer or Unobserved()

    @classmethod
    def from_settings(
        cls, settings: Settings, adapter: str, clock: Clock, observer: EngineObserver | None = None
    ) -> Self:
        """What ``settings`` and ``--adapter`` say. Rules stand in for any other adapter while they are enabled.

        Raises:
            ConfigError: the adapter, its options or a feature it reads are not to be had; MdpError: as the adapter.
        """
        chosen = open_adapter(adapter, settings)
        fallback: InferenceAdapter | None = None
        if adapter != "rules" and settings.inference.adapters.rules.enabled:
            fallback = open_adapter("rules", settings)
        s = settings.inference
        engine = InferenceEngine(
            chosen,
            fallback,
            timeout_s=s.timeout_ms / 1e3,
            pool_size=s.pool_size,
            failures=s.breaker.failures,
            reset_s=s.breaker.reset_ms / 1e3,
            observer=observer,
            clock=clock,
        )
        candidates: tuple[object, ...] = (chosen, fallback)
        refreshing = tuple(a for a in candidates if isinstance(a, Refreshing))
        decider = cls(engine, settings.features, refreshing, clock, observer)
        decider.features(parse_interval(interval_of(settings)))
        return decider

    @property
    def generation(self) -> int:
        return sum(r.generation for r in self._refreshing)

    def refresh(self) -> None:
        """Let what decides look after its files. Between two calls nothing changes."""
        now = self._clock.monotonic()
        for adapter in self._refreshing:
            before = adapter.failures
            adapter.refresh(now)
            if adapter.failures > before:
                self._observer.failed(adapter.name, "reload")

    def features(self, interval_ns: int) -> tuple[Feature, ...]:
        """What the adapters read, of bars of ``interval_ns``.

        Raises:
            ConfigError: one of them cannot be computed from such bars.
        """
        return definitions(self._settings, interval_ns, self.engine.features)


def interval_of(settings: Settings) -> str:
    """The interval of the bars that signals are made of."""
    return settings.inference.interval or format_interval(settings.micro_batch.window_ms * 1_000_000)
