"""OneThread: keeps scikit-learn to the thread that calls it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from market_data_pipeline.inference.model_files import ml


class OneThread:
    """A context in which BLAS, OpenMP and joblib use one thread, and numpy says nothing of overflows.

    Their threads wait for each other by spinning. On cores that are busy, such as those of a pipeline, two of them took
    thirty times as long as one. Made after the model's libraries are loaded: it only knows those.
    """

    def __init__(self) -> None:
        self._pools: Any = ml("threadpoolctl").ThreadpoolController()
        self._jobs: Any = ml("joblib").parallel_config

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._pools.limit(limits=1), self._jobs(backend="sequential"), np.errstate(all="ignore"):
            yield
