"""Seeded random ticks: geometric Brownian motion for each symbol, made as columns.

Each symbol has random streams of its own, seeded by the run's seed and the symbol's name, so its prices do
not change with the other symbols asked for, as long as its share of the rate is the same. Time and price of an
event are fixed by its place in the schedule: the same seed and start time give the same events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from hashlib import blake2b
from typing import Final

import numpy as np
from numpy.typing import NDArray

from market_data_core.batch import I64, EventBatch
from market_data_core.clock import Clock, SystemClock
from market_data_core.codecs import canonical_series
from market_data_core.errors import PoisonRecord, UsageError
from market_data_core.events import Series
from market_data_pipeline.producers.provider import ProviderRequest

UNPACED_RATE: Final = 1_000_000.0
"""Events a second of event time in a run that goes as fast as possible."""
_DAY_S: Final = 86_400.0
_BLOCK: Final = 65_536
_BLOCK_S: Final = 5.0
"""Events are made in blocks of so many, or of so many seconds: megabytes at once come and go in steps of memory."""
_STRETCH: Final = 100
"""Events that one gap leaves out."""
_HIGHEST: Final = 1e9
_PRICES, _SIZES, _GAPS, _DELAYS, _LATE, _COPIES, _WAITS = range(7)


@dataclass(frozen=True, slots=True)
class SyntheticSpec:
    """What to make.

    ``rate``: events a second over all symbols, in turn; 0 means as fast as possible. Event time is then that of
    the clock, or, with ``start_ts`` (UTC ns), goes on by a microsecond an event. ``volatility``: standard deviation
    of the logarithmic return over a day. ``disorder_ms``: arrival is delayed by up to this much, which puts events out
    of order. ``late_ratio``: share of events delayed by ``late_ms`` instead. ``duplicate_ratio``: share of events
    that arrive once more within ``duplicate_ms``. ``gap_ratio``: share of events left out, in silences of 100 events
    of the schedule. ``limit``: distinct events to make; copies come on top.

    Raises:
        UsageError: a value is impossible; the message names it.
    """

    symbols: tuple[str, ...] = ("SPY", "AAPL", "MSFT")
    rate: float = 3.0
    start_ts: int | None = None
    seed: int = 0
    limit: int | None = None
    volatility: float = 0.02
    price_tick: float = 0.01
    disorder_ms: int = 0
    late_ratio: float = 0.0
    late_ms: int = 10_000
    duplicate_ratio: float = 0.0
    duplicate_ms: int = 1000
    gap_ratio: float = 0.0
    provider: str = "synthetic"

    def __post_init__(self) -> None:
        if not self.symbols:
            raise UsageError("no symbols are asked for; name some, such as --symbols SPY,AAPL")
        if len(set(self.symbols)) != len(self.symbols):
            raise UsageError("a symbol is asked for twice; name each once in --symbols")
        for symbol in self.symbols:
            try:
                canonical_series(self.provider, symbol, "tick", "1s")
            except PoisonRecord as error:
                raise UsageError(
                    f"{symbol!r} of {self.provider!r} cannot be a series: {error}; correct --symbols"
                ) from None
        if not (self.rate >= 0 and np.isfinite(self.rate)):
            raise UsageError(
                f"the rate must be 0 (as fast as possible) or more, not {self.rate}; correct --rate"
            )
        if 0 < self.rate < 1e-6 or self.rate > 1e9:
            raise UsageError(f"the rate must be from 0.000001 to 1e9 events a second, not {self.rate:g}")
        if self.seed < 0:
            raise UsageError(f"the seed must be 0 or more, not {self.seed}; correct --seed")
        if self.limit is not None and self.limit < 0:
            raise UsageError(f"the limit must be 0 or more, not {self.limit}; correct --limit")
        if self.volatility < 0 or self.price_tick <= 0:
            raise UsageError("volatility must be 0 or more and the price tick more than 0")
        for name in ("late_ratio", "duplicate_ratio", "gap_ratio"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} must be from 0 up to, not including, 1; not {getattr(self, name)}")
        for name in ("disorder_ms", "late_ms", "duplicate_ms"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must be 0 or more, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class SyntheticProvider:
    """A provider of random ticks; ``ingest_ts`` is when each arrives by the schedule."""

    spec: SyntheticSpec
    clock: Clock = field(default_factory=SystemClock)
    can_wait: bool = True

    @property
    def name(self) -> str:
        return self.spec.provider

    def batches(self) -> Iterator[EventBatch]:
        """Batches in order of arrival; endless without a limit."""
        on_time = _schedule(self.spec, self._start)
        if self.spec.rate == 0 and self.spec.start_ts is None:
            on_time = _by_the_clock(on_time, self._start(), self.clock)
        on_time = _limited(on_time, self.spec)
        if self.spec.disorder_ms or self.spec.late_ratio or self.spec.duplicate_ratio:
            return _arrivals(on_time, self.spec)
        return on_time

    def _start(self) -> int:
        start = self.clock.now() if self.spec.start_ts is None else self.spec.start_ts
        return start - start % 1000


def provider(request: ProviderRequest) -> SyntheticProvider:
    """The provider as the settings and the command line ask for it."""
    given = request.settings.producers.synthetic
    symbols = tuple(s.upper() for s in request.symbols) or given.symbols
    seed = given.seed if request.seed is None else request.seed
    spec = SyntheticSpec(
        symbols=symbols,
        rate=given.tick_rate * len(symbols) if request.rate is None else request.rate,
        start_ts=request.start_ts,
        seed=int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed,
        limit=request.limit,
        volatility=given.price_volatility,
        disorder_ms=given.disorder_ms,
        duplicate_ratio=given.duplicate_ratio,
        gap_ratio=given.gap_ratio,
        late_ratio=float(request.options.get("late_ratio", 0.0)),
        provider=request.name or given.provider,
    )
    return SyntheticProvider(spec, request.clock)


def _stream(spec: SyntheticSpec, purpose: int, symbol: str = "") -> np.random.Generator:
    name = int.from_bytes(blake2b(symbol.encode(), digest_size=8).digest(), "little")
    return np.random.default_rng([spec.seed, purpose, name])


def _schedule(spec: SyntheticSpec, begin: Callable[[], int]) -> Iterator[EventBatch]:
    """All events in schedule order: the symbols take turns, round after round. ``begin`` is asked when the first of
    them are made, which takes longer than a trade on its way may: the first is due now."""
    symbols = len(spec.symbols)
    series = tuple(Series(spec.provider, symbol, "tick", "1s") for symbol in spec.symbols)
    rate = spec.rate or UNPACED_RATE
    rounds = max(16, int(min(_BLOCK, (spec.rate or np.inf) * _BLOCK_S)) // symbols)
    days = symbols / rate / _DAY_S
    drift, spread = -0.5 * spec.volatility**2 * days, spec.volatility * np.sqrt(days)
    prices = [_stream(spec, _PRICES, symbol) for symbol in spec.symbols]
    sizes = [_stream(spec, _SIZES, symbol) for symbol in spec.symbols]
    # Each walks on from a price between 20 and 400, evenly spread on a logarithmic scale.
    walk = np.empty((symbols, rounds + 1))
    walk[:, -1] = [np.log(20.0) + np.log(20.0) * stream.random() for stream in prices]
    size = np.empty((symbols, rounds))
    code = np.tile(np.arange(symbols, dtype=np.int32), rounds)
    silences = _Silences(spec)
    done = 0
    start: int | None = None
    while True:
        walk[:, 0] = walk[:, -1]
        for row, stream in enumerate(prices):
            stream.standard_normal(out=walk[row, 1:])
        walk[:, 1:] = walk[:, 1:] * spread + drift
        np.cumsum(walk, axis=1, out=walk)
        for row, stream in enumerate(sizes):
            stream.standard_exponential(out=size[row])
        price = _to_tick(np.exp(walk[:, 1:].T.ravel()), spec.price_tick)
        at = _times(done * symbols, rounds * symbols, rate)
        start = begin() if start is None else start
        at += start
        batch = EventBatch(
            series=series,
            code=code,
            src_ts=at,
            ingest_ts=at,
            o=price,
            h=price,
            l=price,
            c=price,
            v=np.ceil(size.T.ravel() * 200.0),
            seq=np.repeat(np.arange(done, done + rounds, dtype=np.int64), symbols),
        )
        yield batch.take(~silences.mask(len(batch))) if spec.gap_ratio else batch
        done += rounds


class _Silences:
    """Which events of the schedule are left out: whole stretches of it, with which blocks need not line up."""

    def __init__(self, spec: SyntheticSpec) -> None:
        self._ratio = spec.gap_ratio
        self._random = _stream(spec, _GAPS)
        self._rest = np.empty(0, np.bool_)

    def mask(self, n: int) -> NDArray[np.bool_]:
        """For the next ``n`` events, True where one is left out."""
        stretches = -(-(n - len(self._rest)) // _STRETCH)
        more = np.repeat(self._random.random(max(stretches, 0)) < self._ratio, _STRETCH)
        drawn = np.concatenate([self._rest, more])
        self._rest = drawn[n:]
        return drawn[:n]


def _times(first: int, n: int, rate: float) -> I64:
    """Nanoseconds after the start of the events ``first`` to ``first + n``, cut to microseconds.

    Whole numbers throughout, so that they neither drift nor depend on how the schedule is cut into blocks.
    """
    per = Fraction(rate).limit_denominator(1_000_000)
    index = np.arange(first, first + n, dtype=np.int64) * per.denominator
    seconds, rest = np.divmod(index, per.numerator)
    out: I64 = seconds * 1_000_000_000 + rest * 1_000_000 // per.numerator * 1000
    return out


def _by_the_clock(batches: Iterator[EventBatch], start: int, clock: Clock) -> Iterator[EventBatch]:
    """``batches`` with event times that reach from the last batch's to now, so that they never are ahead."""
    reached = start
    for batch in batches:
        until = max(clock.now(), reached)
        at = reached + (np.arange(len(batch)) * ((until - reached) / max(len(batch), 1))).astype(np.int64)
        at -= at % 1000
        reached = until
        yield replace(batch, src_ts=at, ingest_ts=at)


def _to_tick(price: NDArray[np.float64], tick: float) -> NDArray[np.float64]:
    """Prices on the grid of ``tick``; a decimal grid gives the float nearest to the decimal number."""
    price = np.clip(price, tick, _HIGHEST)
    steps = round(1.0 / tick)
    if steps >= 1 and abs(steps * tick - 1.0) < 1e-9:
        return np.maximum(np.rint(price * steps), 1.0) / steps
    return np.maximum(np.rint(price / tick), 1.0) * tick


def _limited(batches: Iterator[EventBatch], spec: SyntheticSpec) -> Iterator[EventBatch]:
    if spec.limit is None:
        yield from batches
        return
    left = spec.limit
    while left > 0:
        batch = next(batches)
        yield batch if len(batch) <= left else batch.take(slice(left))
        left -= len(batch)


def _arrivals(batches: Iterator[EventBatch], spec: SyntheticSpec) -> Iterator[EventBatch]:
    """Events in order of arrival: delayed, some of them by much, and some arriving twice. How the schedule is cut into
    blocks does not change which."""
    delays, lates, copies, waits = (_stream(spec, of) for of in (_DELAYS, _LATE, _COPIES, _WAITS))
    held = EventBatch.empty()
    for batch in batches:
        n = len(batch)
        if n == 0:
            continue
        delay = delays.integers(0, spec.disorder_ms * 1000, n, endpoint=True) * 1000
        delay[lates.random(n) < spec.late_ratio] = spec.late_ms * 1_000_000
        arriving = replace(batch, ingest_ts=batch.src_ts + delay)
        again = np.flatnonzero(copies.random(n) < spec.duplicate_ratio)
        if len(again):
            more = arriving.take(again)
            wait = waits.integers(1, max(spec.duplicate_ms * 1000, 1), len(again), endpoint=True) * 1000
            more = replace(more, ingest_ts=more.ingest_ts + wait)
            arriving = EventBatch.concat([arriving, more])
        pool = arriving if len(held) == 0 else EventBatch.concat([held, arriving])
        pool = pool.take(np.argsort(pool.ingest_ts, kind="stable"))
        # What arrives before the newest scheduled event cannot be overtaken by events still to be made.
        ready = int(np.searchsorted(pool.ingest_ts, batch.src_ts[-1]))
        if ready:
            yield pool.take(slice(ready))
        held = pool.take(slice(ready, None))
    if len(held):
        yield held
