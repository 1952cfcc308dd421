"""What a producer did, and the seam through which others are told of it."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Counts:
    """What a producer did. Events are those of the provider, copies included.

    ``taken``: given by the provider and valid. ``published``: on the bus (those of an earlier run's spool too).
    ``dropped``: of a live feed, for want of room. ``unpublished``: taken, neither on the bus nor in the spool.
    ``bad_rows``: rows that are no events, wherever they went. ``spooled``: went to the disk; ``spool_events`` are
    there still.
    """

    provider: str
    topic: str
    taken: int = 0
    published: int = 0
    records: int = 0
    bytes: int = 0
    dropped: int = 0
    unpublished: int = 0
    bad_rows: int = 0
    spooled: int = 0
    spool_events: int = 0
    spool_bytes: int = 0
    retries: int = 0
    seconds: float = 0.0
    newest: int = 0

    @property
    def rate(self) -> float:
        """Published events a second."""
        return self.published / self.seconds if self.seconds > 0 else 0.0


class ProducerObserver:
    """Told of what happens; the base class does nothing. Telemetry and progress bars derive from it."""

    def published(self, counts: Counts, events: int) -> None:
        """``events`` more are on the bus."""

    def changed(self, counts: Counts) -> None:
        """Another count went up: dropped, bad_rows, spooled, retries or the spool's depth."""


@dataclass(slots=True)
class Tally:
    """Keeps the counts of a delivery, and tells the observer."""

    counts: Counts
    observer: ProducerObserver
    away: bool = False

    def published(self, events: int, records: int, size: int) -> None:
        self.counts.published += events
        self.counts.records += records
        self.counts.bytes += size
        self.observer.published(self.counts, events)

    def unavailable(self, reason: str) -> None:
        self.counts.retries += 1
        if not self.away:
            self.away = True
            _log.warning("the bus cannot be reached", provider=self.counts.provider, reason=reason)
        self.observer.changed(self.counts)

    def available(self) -> None:
        if self.away:
            self.away = False
            _log.info("the bus is back", provider=self.counts.provider, topic=self.counts.topic)

    def spooled(self, events: int) -> None:
        self.counts.spooled += events
        self.observer.changed(self.counts)

    def spool_depth(self, events: int, size: int) -> None:
        self.counts.spool_events, self.counts.spool_bytes = events, size
        self.observer.changed(self.counts)


class Untold:
    """For dead letters, which are no events."""

    def published(self, events: int, records: int, size: int) -> None: ...
    def unavailable(self, reason: str) -> None: ...
    def available(self) -> None: ...
    def spooled(self, events: int) -> None: ...
    def spool_depth(self, events: int, size: int) -> None: ...
