"""How evenly a topic is spread over its partitions: pure arithmetic on what a driver tells of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from market_data_pipeline.streaming.bus import TopicStatus

HOT: Final = 2.0
"""How many times its even share makes a partition hot."""
FEWEST: Final = 100
"""Records below which chance alone makes a partition look hot."""


def shares(amounts: Sequence[int]) -> list[float]:
    """Each amount by their sum, from 0 to 1; all 0 when there is nothing."""
    total = sum(amounts)
    return [amount / total if total else 0.0 for amount in amounts]


def hot(amounts: Sequence[int]) -> list[int]:
    """The places that hold more than :data:`HOT` times an even share of at least :data:`FEWEST`, and at least half of
    all where there are fewer places than that could happen in, the hottest first."""
    if len(amounts) < 2 or sum(amounts) < FEWEST:
        return []
    # Of two partitions none can have twice its even share.
    bound = min(HOT / len(amounts), 0.75)
    found = [(share, place) for place, share in enumerate(shares(amounts)) if share > bound]
    return [place for _, place in sorted(found, reverse=True)]


def remarks(status: TopicStatus) -> Iterator[str]:
    """One sentence for each hot partition, of the records and of the lag of each group."""
    even = f"{100 / max(1, status.partitions):.0f} % would be even"
    for p in hot(status.sizes):
        share = 100 * shares(status.sizes)[p]
        yield f"partition {p} of {status.topic} is hot: {share:.0f} % of the records, where {even}"
    for group in status.groups:
        parts = sorted(group.partitions, key=lambda part: part.partition)
        lags = [part.lag for part in parts]
        for place in hot(lags):
            p, share = parts[place].partition, 100 * shares(lags)[place]
            yield (
                f"partition {p} of {status.topic} is hot: {share:.0f} % of the lag of group {group.group}, where {even}"
            )
