"""What the runner tells a measured program, and what the program tells the runner. For every environment, so it imports
nothing but the standard library."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from typing import Final

ENVIRONMENT: Final = "BENCH_GIVEN"
TABLE: Final = "peer_bars"
FIRST: Final = "first"
LAST: Final = "last"


@dataclass(frozen=True, slots=True)
class Given:
    """``kafka``: a broker; ``database``: a URL for libpq; ``bars``: how many ``TABLE`` holds at the end, but those of
    the last tick of each symbol, which only closes windows; ``records``: of the topic, with those."""

    kafka: str
    topic: str
    group: str
    database: str
    records: int
    bars: int
    window_ms: int
    late_ms: int


def given() -> Given:
    return Given(**json.loads(os.environ[ENVIRONMENT]))


def mark(name: str) -> None:
    """Tell the runner that something has happened now. On the stdout that a framework may have put aside."""
    print(name, time.time(), file=sys.__stdout__, flush=True)


class FirstRecord:
    """Called with every record, or every batch of them: marks the first."""

    def __init__(self) -> None:
        self._seen = False

    def __call__(self) -> None:
        if not self._seen:
            self._seen = True
            mark(FIRST)
