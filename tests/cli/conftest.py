"""Commands in this process, and embedded services that the tests of a session share."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from market_data_pipeline import embedded
from market_data_pipeline.cli import app


class Ended(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


class Services(NamedTuple):
    """Running embedded services; the URLs hold their passwords."""

    home: Path
    redis: str
    postgres: str


Invoke = Callable[..., Ended]


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """The embedded Redis and PostgreSQL of a home of their own."""
    home = tmp_path_factory.mktemp("services")
    try:
        yield Services(home, embedded.redis(home).start(), embedded.postgres(home).start())
    finally:
        for service in embedded.services(home):
            service.stop()


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing configured, in an empty folder, with a home that does not exist yet."""
    for name in [name for name in os.environ if name.startswith(("MDP_", "REDIS_URI", "DATABASE_URL"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MDP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MDP_TELEMETRY__METRICS_PORT", "0")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def invoke(capfd: pytest.CaptureFixture[str], clean_environment: None) -> Iterator[Invoke]:
    """Run a command in this process."""
    handlers, level = logging.root.handlers[:], logging.root.level

    def run(*args: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            app.main(list(args))
        out, err = capfd.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    yield run
    # The command's handler writes to a stderr that ends with the test.
    logging.root.handlers[:], logging.root.level = handlers, level
