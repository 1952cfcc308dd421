"""configs/production.yaml is one file for both buses, says what is missing, and holds no secret."""

from __future__ import annotations

import json
import re
from typing import Final

import pytest

from market_data_core.config_files import Key, keys
from market_data_core.redact import SecretText, SecretUrl
from tests.cli.conftest import Invoke
from tests.docs.pages import ROOT

FILE: Final = ROOT / "configs" / "production.yaml"
DATABASE: Final = "postgresql://mdp:hush-hush@db/mdp"
ON_REDIS: Final = {"REDIS_URI": "rediss://:hush-hush@r:6380/0", "DATABASE_URL": DATABASE}
ON_KAFKA: Final = {
    "MDP_BUS__TYPE": "kafka",
    "KAFKA_BOOTSTRAP": "k1:9093,k2:9093",
    "KAFKA_USERNAME": "mdp",
    "KAFKA_PASSWORD": "hush-hush",
    "KAFKA_TLS": "true",
    "DATABASE_URL": DATABASE,
}


@pytest.fixture
def mdp(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """On the file, with nothing in the environment."""
    for name in {*ON_REDIS, *ON_KAFKA}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MDP_CONFIG", str(FILE))
    monkeypatch.chdir(ROOT)
    return invoke


@pytest.mark.parametrize("environ", [ON_REDIS, ON_KAFKA], ids=["redis", "kafka"])
def test_it_is_shown_and_valid_on(
    mdp: Invoke, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert mdp("config", "validate").code == 0
    shown = mdp("config", "show", "--json")
    assert shown.code == 0
    assert "hush-hush" not in shown.out + shown.err
    values = {row["key"]: row["value"] for row in map(json.loads, shown.out.splitlines())}
    assert values["bus.redis.partitions"] == 8
    assert values["bus.type"] == environ.get("MDP_BUS__TYPE", "redis")


@pytest.mark.parametrize("environ", [ON_REDIS, ON_KAFKA], ids=["redis", "kafka"])
def test_it_names_what_this_bus_needs_and_nothing_of_the_other(
    mdp: Invoke, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    monkeypatch.setenv("MDP_BUS__TYPE", environ.get("MDP_BUS__TYPE", "redis"))
    ended = mdp("config", "validate")
    assert ended.code == 2
    needed = {"DATABASE_URL", "KAFKA_BOOTSTRAP" if environ is ON_KAFKA else "REDIS_URI"}
    assert set(re.findall(r"environment variable (\w+) is not set", ended.out + ended.err)) == needed


def test_no_secret_stands_in_it() -> None:
    text = FILE.read_text("utf-8")
    secret = [key for key in keys() if _is_secret(key)]
    assert {key.path for key in secret} >= {"bus.redis.uri", "bus.kafka.password", "store.url"}
    for key in secret:
        name = key.path.rpartition(".")[2]
        for given in re.findall(rf"^ +{name}: *(\S+)", text, re.MULTILINE):
            assert given.startswith("${"), f"{key.path} is not from the environment"


def _is_secret(key: Key) -> bool:
    return key.info.annotation in (SecretUrl, SecretText)
