"""Files of history as a provider: CSV, gzip, zip, Parquet, LEAN archives; one or many, merged by time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import structlog
from pydantic import ValidationError

from market_data_core.batch import EventBatch
from market_data_core.config import Dataset, Settings
from market_data_core.errors import DatasetError, UsageError
from market_data_pipeline.producers.merge import Disorder, merged
from market_data_pipeline.producers.provider import BadRow, Provider, ProviderRequest
from market_data_pipeline.producers.sources import Source, sources_of

_log = structlog.get_logger(__name__)
PRESETS: Final = ("lean",)
STORE: Final = "store"


class Named(NamedTuple):
    """A dataset, the provider name of its events, and what to correct when it is wrong."""

    dataset: Dataset
    provider: str
    key: str


@dataclass(frozen=True, slots=True)
class DatasetProvider:
    """Events of files in time order. ``start``, ``end``: only those in ``[start, end)``, UTC ns."""

    name: str
    sources: Sequence[Source]
    start: int | None = None
    end: int | None = None
    symbols: frozenset[str] = frozenset()
    can_wait: bool = True
    disorder: Disorder = field(default_factory=Disorder)

    def batches(self) -> Iterator[EventBatch | BadRow]:
        wanted = [s for s in self.sources if self._overlaps(s)]
        everything = self.start is None and self.end is None and not self.symbols
        yield from merged(wanted, None if everything else self._keep, self.disorder)
        if self.disorder.rows:
            _log.warning(
                "the files are not in time order; events beyond the allowed lateness amend their bars",
                provider=self.name,
                rows_out_of_order=self.disorder.rows,
                furthest_back_seconds=self.disorder.furthest / 1e9,
            )

    def _overlaps(self, source: Source) -> bool:
        before = source.end is not None and self.start is not None and source.end <= self.start
        after = source.earliest is not None and self.end is not None and source.earliest >= self.end
        return not (before or after)

    def _keep(self, batch: EventBatch) -> EventBatch:
        mask = np.ones(len(batch), np.bool_)
        if self.start is not None:
            mask &= batch.src_ts >= self.start
        if self.end is not None:
            mask &= batch.src_ts < self.end
        if self.symbols:
            mask &= np.array([s.symbol in self.symbols for s in batch.series], np.bool_)[batch.code]
        return batch if mask.all() else batch.take(mask)


def find_dataset(settings: Settings, given: str, preset: str | None, provider: str | None) -> Named:
    """The dataset called ``given`` in the settings, or the file of that name with a preset.

    Raises:
        UsageError: there is neither.
    """
    if preset is not None and preset not in PRESETS:
        raise UsageError(f"there is no preset {preset!r}; use --preset {' or '.join(PRESETS)}")
    configured = settings.datasets.get(given)
    if configured is not None:
        if preset is not None and configured.preset != preset:
            raise UsageError(
                f"the dataset {given!r} of the configuration has its own layout; leave out --preset {preset}"
            )
        return Named(configured, provider or _provider_name(configured), f"datasets.{given}")
    if given == STORE:
        return Named(Dataset(format="store"), provider or "", "--dataset store")
    if preset is not None:
        try:
            dataset = Dataset(path=given, preset="lean")
        except ValidationError as error:
            raise UsageError(f"--dataset {given!r} cannot be used: {error.errors()[0]['msg']}") from None
        return Named(dataset, provider or preset, "--dataset")
    if settings.locate(given).exists():
        raise UsageError(
            f"nothing says how to read {given}; add --preset lean for a LEAN file, or describe it under datasets in "
            "the configuration"
        )
    known = f" (it has {', '.join(sorted(settings.datasets))})" if settings.datasets else ""
    raise UsageError(
        f"there is no dataset {given!r} in the configuration{known}, nor a file of that name; correct --dataset"
    )


def _provider_name(dataset: Dataset) -> str:
    if dataset.preset is not None and "provider" not in dataset.model_fields_set:
        return dataset.preset
    return dataset.provider


def file_provider(
    settings: Settings,
    named: Sequence[Named],
    *,
    symbols: Sequence[str] = (),
    start: int | None = None,
    end: int | None = None,
) -> DatasetProvider:
    """The provider of the files of all ``named`` datasets.

    Raises:
        DatasetError: a file is missing or is not as described.
        UsageError: stored bars are among them; those are replayed alone.
    """
    if any(n.dataset.format == "store" for n in named):
        raise UsageError("stored bars cannot be merged with files; give --dataset store alone")
    sources = [s for n in named for s in sources_of(n.dataset, settings.locate, n.provider, n.key)]
    seen: set[str] = set()
    for source in sources:
        if source.place in seen:
            raise DatasetError(f"{source.place} is given twice; name each file once")
        seen.add(source.place)
    wanted = frozenset(s.upper() for s in symbols)
    return DatasetProvider(named[0].provider, sources, start, end, wanted)


def provider(request: ProviderRequest) -> Provider:
    """The provider of `mdp stream produce --provider dataset`."""
    if not request.datasets:
        raise UsageError(
            "the provider dataset needs a file or the name of a configured dataset; add --dataset"
        )
    named = [find_dataset(request.settings, d, request.preset, request.name) for d in request.datasets]
    return file_provider(request.settings, named, symbols=request.symbols)
