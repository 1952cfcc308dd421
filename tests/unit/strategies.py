"""Hypothesis strategies: events, the order in which they arrive, and the records that carry them.

What is large is drawn as a seed and made by :mod:`random`: a thousand draws an example would test Hypothesis.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from market_data_core.batch import EventBatch
from market_data_core.codecs import encode_events, encode_frame
from market_data_core.events import MAX_NOTIONAL, MAX_PRICE, MAX_VOLUME, StreamEvent
from market_data_core.times import MAX_TIME, MIN_TIME

SECOND = 10**9
BASE = 1_763_000_000 * SECOND

# Machines of CI are slow and shared; there every run must also be the same run.
settings.register_profile(
    "mdp",
    deadline=None,
    derandomize=os.environ.get("CI") == "true",
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("mdp")

SEEDS = st.integers(0, 2**32 - 1)
NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")),
    min_size=1,
    max_size=12,
).filter(lambda s: "|" not in s)
INTERVALS = st.sampled_from(["500ms", "1s", "2s", "1m", "5m", "1h", "1d"])
TIMES = st.integers(MIN_TIME, MAX_TIME)
SEQS = st.integers(-(2**63), 2**63 - 1)


@st.composite
def events(draw: st.DrawFn) -> StreamEvent:
    """Any valid event."""
    kind = draw(st.sampled_from(["tick", "bar", "quote"]))
    low, high = sorted(
        draw(st.tuples(*[st.floats(-MAX_PRICE, MAX_PRICE, allow_nan=False, allow_infinity=False)] * 2))
    )
    inside = st.floats(low, high)
    o, c = draw(inside), draw(inside)
    if kind == "tick" and draw(st.booleans()):
        o = low = high = c
    largest = max(abs(low), abs(high), 1.0)
    v = draw(st.floats(0, min(MAX_VOLUME, MAX_NOTIONAL / largest * 0.999)))
    names, interval = draw(st.tuples(NAMES, NAMES)), draw(INTERVALS)
    src_ts, ingest_ts, seq = draw(TIMES), draw(TIMES), draw(SEQS)
    return StreamEvent(*names, kind, interval, src_ts, ingest_ts, o, high, low, c, v, seq)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """``distinct`` events, and ``order``: all of them and copies of some, as they arrive, none late."""

    distinct: list[StreamEvent]
    order: list[StreamEvent]
    allow_late_ns: int


def arrivals(
    seed: int,
    n: int,
    *,
    symbols: int = 5,
    providers: int = 1,
    allow_late_ns: int = 2 * SECOND,
    copies: float = 0.1,
    seconds: float = 60.0,
    bars: float = 0.1,
) -> Arrivals:
    """``n`` events within ``seconds`` that arrive out of order by up to ``allow_late_ns``, some of them again.

    An event is late when one that is more than ``allow_late_ns`` newer came before it. A copy of an event comes
    after it, at any time.
    """
    rng = random.Random(seed)
    distinct = []
    for i in range(n):
        at = BASE + rng.randrange(int(seconds * SECOND)) // 1000 * 1000
        price = round(rng.uniform(10, 500), 2)
        o = h = low = price
        kind = "tick"
        if rng.random() < bars:
            kind, o = "bar", round(price + rng.uniform(-1, 1), 2)
            h, low = max(o, price) + 0.25, min(o, price) - 0.5
        provider, symbol = f"p{rng.randrange(providers)}", f"S{rng.randrange(symbols)}"
        size = float(rng.randrange(0, 1000))
        ingest = at + rng.randrange(SECOND)
        distinct.append(
            StreamEvent(
                provider,
                symbol,
                kind,
                "1s" if kind == "tick" else "500ms",
                at,
                ingest,
                o,
                h,
                low,
                price,
                size,
                i,
            )
        )
    # Delays below the allowed lateness keep every event's newest forerunner within it.
    arriving = [(e.src_ts + rng.randrange(allow_late_ns + 1), rng.random(), e) for e in distinct]
    again = [
        (at + rng.randrange(1, 20 * SECOND), rng.random(), e)
        for at, _, e in arriving
        if rng.random() < copies
    ]
    order = [e for *_, e in sorted(arriving + again, key=lambda a: a[:2])]
    return Arrivals(distinct, order, allow_late_ns)


def records(rng: random.Random, events: Sequence[StreamEvent], *, longest_frame: int = 50) -> list[bytes]:
    """The events, in order, as JSON, msgpack and frames, mixed."""
    out: list[bytes] = []
    i = 0
    while i < len(events):
        some = EventBatch.from_events(events[i : i + rng.randint(1, longest_frame)])
        codec = rng.choice(("json", "msgpack", "frame"))
        if codec == "frame":
            out.append(encode_frame(some))
        else:
            out.extend(encode_events(some, "json" if codec == "json" else "msgpack"))
        i += len(some)
    return out


def pieces(rng: random.Random, n: int, longest: int) -> list[slice]:
    """``range(n)`` cut into pieces of 1 to ``longest``, all of one size or each of its own."""
    even = rng.random() < 0.5
    size = rng.randint(1, longest)
    out = []
    start = 0
    while start < n:
        step = size if even else rng.randint(1, longest)
        out.append(slice(start, min(n, start + step)))
        start += step
    return out
