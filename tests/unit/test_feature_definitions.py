"""Definitions of features: what names mean, and what the configuration cannot mean."""

from __future__ import annotations

import math
import re

import pytest

from market_data_core.config_signals import Features, FeatureWindow
from market_data_core.errors import ConfigError
from market_data_core.events import parse_interval
from market_data_pipeline.features.definitions import BUILT_IN, Feature, definitions, feature_names


def one(interval: str = "2s", *, name: str = "", **window: object) -> Feature:
    settings = Features(windows=(FeatureWindow(name=name, **window),) if window else ())  # type: ignore[arg-type]
    return definitions(settings, parse_interval(interval), [name])[0]


def test_the_seed() -> None:
    found = definitions(Features(), 2 * 10**9, ["vol_5m", "vwap_1m", "ret_30s", "vol_5m"])
    assert found == (
        Feature("vol_5m", "vol", 150, reach=149),
        Feature("vwap_1m", "vwap", 30, reach=29),
        Feature("ret_30s", "ret", 15, lag=15, reach=29),
    )


def test_names_that_are_always_there() -> None:
    found = {f.name: f for f in definitions(Features(), 60 * 10**9, feature_names(Features())[3:])}
    assert list(found) == list(BUILT_IN)
    assert found["price"] == Feature("price", "close", 1)
    assert found["momentum"] == Feature("momentum", "mom", 10, reach=9)
    assert found["returns"] == Feature("returns", "ret", 1, lag=1, reach=1)
    assert found["volatility"] == Feature("volatility", "vol", 20, scale=math.sqrt(252 * 390), reach=19)
    assert found["rsi"] == Feature("rsi", "rsi", 14, reach=279)


def test_a_configured_feature_comes_first() -> None:
    assert one(name="rsi", horizon="42s") == Feature("rsi", "rsi", 21, reach=419)
    settings = Features(windows=(FeatureWindow(name="rsi", horizon="42s"),))
    assert feature_names(settings)[0] == "rsi"
    assert len(feature_names(settings)) == len(BUILT_IN)


def test_a_horizon_that_is_no_whole_number_of_windows() -> None:
    assert one(name="vwap_5s", horizon="5s") == Feature("vwap_5s", "vwap", 2, reach=1)
    # Bases ended at or before at - 5s and began at or after at - 10s: 3 and 4 windows ago.
    assert one(name="ret_5s", horizon="5s") == Feature("ret_5s", "ret", 2, lag=3, reach=4)


@pytest.mark.parametrize(
    ("interval", "window", "says"),
    [
        (
            "5m",
            {"name": "vwap_1m", "horizon": "60s"},
            "features.windows: vwap_1m has a horizon of 60s, shorter than the bars of 5m it is made of; "
            "lengthen it or take shorter bars",
        ),
        (
            "2s",
            {"name": "vol_5s", "horizon": "5s"},
            "features.windows: vol_5s has a horizon of 5s, which holds 2 bars of 2s, and it needs 3; "
            "lengthen it or take shorter bars",
        ),
        (
            "2s",
            {"name": "vwap_1m", "horizon": "60s", "min_bars": 31},
            "features.windows: vwap_1m has a horizon of 60s, which holds 30 bars of 2s, and it needs 31; "
            "lengthen it or take shorter bars",
        ),
        (
            "2s",
            {"name": "rsi_1h", "horizon": "1h"},
            "features.windows: rsi_1h has a horizon of 1h and so looks at 36000 bars of 2s "
            "(20 times its period), more than 20000; shorten it or take longer bars",
        ),
    ],
)
def test_a_horizon_that_cannot_be(interval: str, window: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(says)}$"):
        one(interval, **window)  # type: ignore[arg-type]


def test_only_what_is_wanted_is_judged() -> None:
    assert definitions(Features(), parse_interval("1h"), ["price"]) == (Feature("price", "close", 1),)


def test_the_least_that_is_enough() -> None:
    assert one(name="vol", horizon="6s").windows == 3
    assert one(name="vol", horizon="4s", sample=False).windows == 2
    assert one("1s", name="vwap_6h", horizon="20000s").reach == 19_999


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("vwap1m", "no feature is called 'vwap1m'; did you mean vwap_1m or vwap?"),
        ("volatilty", "no feature is called 'volatilty'; did you mean volatility?"),
    ],
)
def test_a_name_that_is_none(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(says)}$"):
        definitions(Features(), 2 * 10**9, ["price", name])


def test_a_name_like_no_other() -> None:
    with pytest.raises(
        ConfigError, match=r"^no feature is called 'xyzzy'; there are vwap_1m, ret_30s, .*; add others"
    ):
        definitions(Features(), 2 * 10**9, ["xyzzy"])
