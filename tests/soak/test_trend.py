"""The line through a figure tells growth from waves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.soak.trend import FEWEST, trend

SECONDS = np.arange(0.0, 480.0, 0.5)


def wavy(seed: int, slope: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """A saw tooth of the windows with noise that remembers itself, rising by ``slope`` a minute."""
    rng = np.random.default_rng(seed)
    noise, out = rng.standard_normal(len(SECONDS)), np.empty(len(SECONDS))
    last = 0.0
    for i, step in enumerate(noise):
        last = 0.7 * last + step
        out[i] = last
    return 100 + 5 * (SECONDS % 2) + out + slope * SECONDS / 60


@given(st.floats(-50, 50), st.floats(0, 1000), st.integers(2 * FEWEST, 400))
def test_the_slope_of_a_line_is_found_and_certain(slope: float, level: float, samples: int) -> None:
    at = np.arange(samples) * 0.5
    found = trend(at, level + slope * at / 60)
    assert found is not None
    assert found.slope == pytest.approx(slope, abs=1e-6)
    assert found.high - found.low == pytest.approx(0, abs=1e-4)
    assert found.seconds == pytest.approx((samples - 1) * 0.5)


def test_waves_and_noise_that_go_nowhere_rarely_grow() -> None:
    found = [trend(SECONDS, wavy(seed, 0.0)) for seed in range(200)]
    wrong = sum(line is not None and line.grows(0.0) for line in found)
    assert wrong <= 6  # half of one in a hundred, and what luck does


def test_growth_shows_through_the_waves() -> None:
    for seed in range(20):
        found = trend(SECONDS, wavy(seed, 1.0))
        assert found is not None
        assert found.low < 1.0 < found.high or abs(found.slope - 1.0) < 0.2
        assert found.grows(tolerance=4.0)  # 8 minutes of 1
        assert not found.grows(tolerance=12.0)


def test_what_shrinks_does_not_grow() -> None:
    found = trend(SECONDS, wavy(1, -2.0))
    assert found is not None
    assert found.high < 0
    assert not found.grows(0.0)


def test_a_few_samples_are_no_trend() -> None:
    few = 2 * FEWEST - 1
    assert trend(SECONDS[:few], SECONDS[:few]) is None
