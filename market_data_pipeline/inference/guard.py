"""Guard: a blocking adapter in the pool, behind a breaker."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pybreaker
import structlog

from market_data_core.batch import I64
from market_data_core.clock import Clock
from market_data_pipeline.features.table import FeatureTable
from market_data_pipeline.inference.adapter import Decisions, InferenceAdapter
from market_data_pipeline.inference.checking import checked
from market_data_pipeline.inference.observer import EngineObserver, Failed, State
from market_data_pipeline.inference.pool import Pool

log = structlog.get_logger(__name__)


class Guard:
    """Evaluates by an adapter that may be slow, hang or fail.

    After ``failures`` in a row nothing is asked of it for ``reset_s``; then one call tries whether it is well again.
    An evaluation goes on when its caller is cancelled: that says nothing of the model, and the breaker is to hear how
    the call ended, which it does within the timeout.
    """

    def __init__(
        self,
        adapter: InferenceAdapter,
        *,
        timeout_s: float,
        pool_size: int,
        failures: int,
        reset_s: float,
        observer: EngineObserver,
        clock: Clock,
    ) -> None:
        self.adapter = adapter
        self._observer = observer
        self._clock = clock
        self._pool = Pool(f"mdp-inference-{adapter.name}", pool_size, timeout_s)
        self._breaker = pybreaker.CircuitBreaker(
            fail_max=failures,
            reset_timeout=reset_s,
            listeners=[_Changes(adapter.name, observer)],
            state_storage=_Storage(clock),
            throw_new_error_on_trip=False,
        )
        self._attempts: set[asyncio.Task[Decisions]] = set()
        observer.state(adapter.name, "closed")

    async def decide(self, table: FeatureTable, wanted: I64) -> Decisions:
        """The adapter's decisions.

        Raises:
            Failed: there are none.
        """
        attempt = asyncio.create_task(self._attempt(table, wanted))
        self._attempts.add(attempt)
        attempt.add_done_callback(self._ended)
        return await asyncio.shield(attempt)

    async def close(self) -> None:
        """Wait for what is under way, which is over when it times out, and close the adapter."""
        if self._attempts:
            await asyncio.wait(self._attempts)
        self.adapter.close()

    async def _attempt(self, table: FeatureTable, wanted: I64) -> Decisions:
        # pybreaker would let every call through while one tries. Nothing may be awaited between this and calling().
        if self._breaker.current_state == pybreaker.STATE_HALF_OPEN:
            raise Failed("open", "one call is trying whether it is well again")
        try:
            with self._breaker.calling():
                return await self._evaluate(table, wanted)
        except pybreaker.CircuitBreakerError:
            raise Failed("open", "it failed too often and is left alone for now") from None

    async def _evaluate(self, table: FeatureTable, wanted: I64) -> Decisions:
        begun = self._clock.monotonic()
        try:
            decisions = await self._pool.run(
                lambda: checked(self.adapter.decide(table, wanted), table, wanted)
            )
        except Failed as failed:
            if failed.reason not in ("busy", "hangs"):
                self._evaluated(begun, wanted)
            raise
        self._evaluated(begun, wanted)
        return decisions

    def _evaluated(self, begun: int, wanted: I64) -> None:
        seconds = (self._clock.monotonic() - begun) / 1e9
        self._observer.evaluated(self.adapter.name, seconds, len(wanted))

    def _ended(self, attempt: asyncio.Task[Decisions]) -> None:
        self._attempts.discard(attempt)
        if not attempt.cancelled():
            attempt.exception()  # nobody may be left who asks for it


class _Changes(pybreaker.CircuitBreakerListener):
    """Tells of the breaker's changes, once each."""

    def __init__(self, adapter: str, observer: EngineObserver) -> None:
        self._adapter = adapter
        self._observer = observer

    def state_change(self, cb: pybreaker.CircuitBreaker, old_state: Any, new_state: Any) -> None:
        if old_state is not None and old_state.name == new_state.name:
            return
        state = cast(State, new_state.name)
        self._observer.state(self._adapter, state)
        if state == "open":
            log.warning("adapter left alone", adapter=self._adapter, for_s=cb.reset_timeout)
        elif state == "half-open":
            log.info("adapter tried again", adapter=self._adapter)
        else:
            log.info("adapter well again", adapter=self._adapter)


class _Storage(pybreaker.CircuitMemoryStorage):
    """Measures for how long the breaker has been open by the injected clock, as wall time may be set."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(pybreaker.STATE_CLOSED)
        self._clock = clock
        self._since: int | None = None

    @property
    def opened_at(self) -> datetime | None:
        if self._since is None:
            return None
        return datetime.now(UTC) - timedelta(microseconds=(self._clock.monotonic() - self._since) / 1000)

    @opened_at.setter
    def opened_at(self, at: datetime | None) -> None:
        self._since = self._clock.monotonic()
