"""Rules that follow their file while they run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

import structlog

from market_data_core.batch import I64
from market_data_core.clock import Clock, SystemClock
from market_data_core.config import Settings
from market_data_core.errors import ConfigError
from market_data_pipeline.features.definitions import feature_names
from market_data_pipeline.features.table import FeatureTable
from market_data_pipeline.inference.adapter import Decisions
from market_data_pipeline.inference.adapters.rules import NAME, Rules
from market_data_pipeline.inference.rules_file import computable, locate, nothing, read, rules_of, shipped

log = structlog.get_logger(__name__)

LOOK_EVERY_NS: Final = 10**9
"""How often the file is looked at, at most."""

QUIET_NS: Final = 10**9
"""For how long a file was left alone that counts as whole."""


class _State(NamedTuple):
    """What differs when a file was written or replaced."""

    device: int
    inode: int
    size: int
    written: int
    changed: int


class WatchedRules:
    """:class:`Rules` of a file, which are replaced when the file is. Between two calls of :meth:`refresh` they stay
    the same.

    What is in the file counts once it was left alone for a second, or has not changed from one look to the next: a
    file that is being written is not whole. A file that is wrong or gone leaves the rules as they are.

    Args:
        file: the rules.
        features: the names that may stand in them.
        check: called with the features of each rule; a ConfigError refuses the rules.
        on_failure: called when the file has changed and cannot be used.
        clock: of whose time the file system's stamps are.

    Raises:
        ConfigError: the file as it is now cannot be used.
    """

    name = NAME
    blocking = False

    def __init__(
        self,
        file: Path,
        features: Collection[str],
        *,
        check: Callable[[Sequence[str]], object] = nothing,
        on_failure: Callable[[ConfigError], None] = nothing,
        clock: Clock | None = None,
    ) -> None:
        self._file = file
        self._known = frozenset(features)
        self._check = check
        self._on_failure = on_failure
        self._clock = clock or SystemClock()
        self._state = _state(file)
        self._settled = False
        self._next_look: int | None = None
        self._content = read(file)
        self._failed = False
        self._rules = self._compiled(self._content)
        self.generation = 1
        """Grows whenever the rules were replaced; ``features`` and ``needs_previous`` may differ then."""
        self.failures = 0
        """How often the file had changed and could not be used."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The rules of ``inference.adapters.rules``, for bars of ``inference.interval``.

        Raises:
            ConfigError: the file cannot be used.
        """
        file = locate(settings)
        if file == shipped():
            log.info("there is no rules file here, so the rules that come with mdp are used", file=str(file))
        return cls(file, feature_names(settings.features), check=computable(settings))

    @property
    def features(self) -> tuple[str, ...]:
        """What the rules of now read."""
        return self._rules.features

    @property
    def needs_previous(self) -> bool:
        return self._rules.needs_previous

    def decide(self, table: FeatureTable, wanted: I64) -> Decisions:
        """By the rules of now; ``table`` has the ``features`` of now."""
        return self._rules.decide(table, wanted)

    def close(self) -> None:
        """Nothing is held."""

    def refresh(self, now: int) -> bool:
        """Look at the file if the last look was a second ago, and tell whether the rules were replaced.

        Args:
            now: monotonic ns.
        """
        if self._next_look is not None and now < self._next_look:
            return False
        self._next_look = now + LOOK_EVERY_NS
        state = _state(self._file)
        if state != self._state:
            self._state, self._settled = state, False
            if state is None or self._clock.now() - state.written < QUIET_NS:
                return False
        if self._settled:
            return False
        self._settled = True
        return self._reload()

    def _compiled(self, content: bytes) -> Rules:
        return Rules(rules_of(content, self._file, self._known, self._check))

    def _reload(self) -> bool:
        try:
            content = read(self._file)
            rules = None if content == self._content else self._compiled(content)
        except ConfigError as error:
            self._complain(error)
            return False
        if rules is None:
            if self._failed:
                log.info("the rules file is again as it was", file=str(self._file))
        else:
            self._content, self._rules = content, rules
            self.generation += 1
            log.info("the rules were replaced", file=str(self._file), generation=self.generation)
        self._failed = False
        return rules is not None

    def _complain(self, error: ConfigError) -> None:
        self._failed = True
        self.failures += 1
        log.error("the rules stay as they were, since their file cannot be used", problem=str(error))
        self._on_failure(error)


def _state(file: Path) -> _State | None:
    """None where there is no file."""
    try:
        found = file.stat()
    except (OSError, ValueError):
        return None
    return _State(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
