"""InferenceEngine: asks an adapter for decisions, and another one when it has none."""

from __future__ import annotations

from typing import Final, Protocol, Self

import structlog

from market_data_core.batch import I64
from market_data_core.clock import Clock, SystemClock
from market_data_pipeline.features.table import FeatureTable
from market_data_pipeline.inference.adapter import Decisions, InferenceAdapter
from market_data_pipeline.inference.checking import checked
from market_data_pipeline.inference.guard import Guard
from market_data_pipeline.inference.observer import EngineObserver, Failed, Unobserved

log = structlog.get_logger(__name__)

TIMEOUT_S: Final = 0.25
FAILURES: Final = 3
RESET_S: Final = 10.0


class InferenceEngine:
    """Decides by ``adapter``; what it fails to decide, ``fallback`` does.

    An adapter that does not block is called as it is. One that does runs in ``pool_size`` threads, all rows in one
    call, within ``timeout_s``; after ``failures`` in a row it is left alone for ``reset_s``, and then tried with one
    call. The event loop goes on meanwhile, as long as the model gives up the interpreter's lock now and then.

    Safe for concurrent calls of one event loop. It owns the adapters: :meth:`close` closes them.
    """

    def __init__(
        self,
        adapter: InferenceAdapter,
        fallback: InferenceAdapter | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        pool_size: int = 1,
        failures: int = FAILURES,
        reset_s: float = RESET_S,
        observer: EngineObserver | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._observer = observer or Unobserved()
        self._clock = clock or SystemClock()
        self._adapters = [adapter] if fallback is None else [adapter, fallback]
        self._failing: set[str] = set()
        self._closed = False

        def evaluator(adapter: InferenceAdapter) -> _Evaluator:
            if not adapter.blocking:
                return _Direct(adapter, self._observer, self._clock)
            return Guard(
                adapter,
                timeout_s=timeout_s,
                pool_size=pool_size,
                failures=failures,
                reset_s=reset_s,
                observer=self._observer,
                clock=self._clock,
            )

        self._evaluators = [evaluator(one) for one in self._adapters]

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the columns that any of the adapters reads."""
        return tuple(dict.fromkeys(name for adapter in self._adapters for name in adapter.features))

    @property
    def needs_previous(self) -> bool:
        """Whether any of the adapters looks at previous rows."""
        return any(adapter.needs_previous for adapter in self._adapters)

    async def decide(self, table: FeatureTable, wanted: I64) -> Decisions:
        """Decisions on the ``wanted`` rows of ``table``; see :meth:`InferenceAdapter.decide`.

        None at all when every adapter fails: that is counted and logged, and never raised. Takes at most twice
        ``timeout_s`` for each adapter that blocks: to wait for a thread, and to compute.
        """
        if not len(wanted):
            return Decisions.none()
        last = self._evaluators[-1]
        for evaluator in self._evaluators:
            try:
                decisions = await evaluator.decide(table, wanted)
            except Failed as failed:
                if failed.reason != "open" or evaluator is last:
                    self._tell(evaluator.adapter.name, failed)
                continue
            self._failing.discard(evaluator.adapter.name)
            return decisions
        return Decisions.none()

    async def close(self) -> None:
        """Close the adapters, after what is under way has ended or timed out. A second call does nothing."""
        if not self._closed:
            self._closed = True
            for evaluator in self._evaluators:
                await evaluator.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _tell(self, adapter: str, failed: Failed) -> None:
        """Count it; say it once for each run of failures."""
        self._observer.failed(adapter, failed.reason)
        if adapter not in self._failing:
            self._failing.add(adapter)
            log.warning("inference failed", adapter=adapter, reason=failed.reason, error=str(failed))
        if failed.__cause__ is not None:
            log.debug("adapter raised", adapter=adapter, exc_info=failed.__cause__)


class _Evaluator(Protocol):
    """An adapter and the way in which it is called."""

    adapter: InferenceAdapter

    async def decide(self, table: FeatureTable, wanted: I64) -> Decisions:
        """Checked decisions, or Failed."""
        ...

    async def close(self) -> None: ...


class _Direct:
    """Calls an adapter where it stands."""

    def __init__(self, adapter: InferenceAdapter, observer: EngineObserver, clock: Clock) -> None:
        self.adapter = adapter
        self._observer = observer
        self._clock = clock

    async def decide(self, table: FeatureTable, wanted: I64) -> Decisions:
        begun = self._clock.monotonic()
        try:
            return checked(self.adapter.decide(table, wanted), table, wanted)
        except Failed:
            raise
        except Exception as error:
            raise Failed("exception", f"{type(error).__name__}: {error}") from error
        finally:
            seconds = (self._clock.monotonic() - begun) / 1e9
            self._observer.evaluated(self.adapter.name, seconds, len(wanted))

    async def close(self) -> None:
        self.adapter.close()
