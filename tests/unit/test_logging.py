"""What is logged, where, and what never is."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from structlog.contextvars import bind_contextvars

from market_data_core.redact import SecretUrl
from market_data_pipeline.cli.context import log_as_json
from market_data_pipeline.logging import configure

PASSWORD = "hunter2-and-more"  # noqa: S105
URL = f"redis://:{PASSWORD}@h:6379/0"


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Leave logging as it was found."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    out, err = capsys.readouterr()
    assert out == "", "stdout is for results"
    return [json.loads(line) for line in err.splitlines()]


def test_records_are_json_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    configure("INFO")
    structlog.get_logger("mdp").info("claimed", partition=3, lag=1.5, owner=None)
    (record,) = lines(capsys)
    assert record.pop("timestamp")
    assert record == {"event": "claimed", "level": "info", "partition": 3, "lag": 1.5, "owner": None}


def test_the_level_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    configure("WARNING")
    structlog.get_logger("mdp").info("quiet")
    structlog.get_logger("mdp").warning("loud")
    logging.getLogger("somelib").info("quiet")
    logging.getLogger("market_data_store").info("quiet")
    assert [record["event"] for record in lines(capsys)] == ["loud"]


def test_libraries_are_heard_from_warning_on(capsys: pytest.CaptureFixture[str]) -> None:
    configure("INFO")
    logging.getLogger("somelib").info("chatter")
    logging.getLogger("somelib").warning("lost %s", "it")
    logging.getLogger("market_data_store").info("ours")
    assert [record["event"] for record in lines(capsys)] == ["lost it", "ours"]


@pytest.mark.parametrize(
    ("log_format", "asked", "as_terminal", "is_json"),
    [
        ("auto", False, True, False),
        ("auto", False, False, True),
        ("auto", True, True, True),
        ("json", False, True, True),
        ("console", False, False, False),
        ("console", True, True, False),
    ],
)
def test_the_format_is_chosen(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    log_format: str,
    asked: bool,
    as_terminal: bool,
    is_json: bool,
) -> None:
    """``telemetry.log_format`` before ``--json`` before what stderr is."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: as_terminal)
    configure("INFO", json=log_as_json(log_format, asked=asked))
    structlog.get_logger("mdp").info("claimed")
    assert capsys.readouterr().err.startswith("{") == is_json


async def test_records_name_their_run_and_their_partition(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of a partition's task name it, and no other's."""
    configure("INFO", json=True)
    log = structlog.get_logger("mdp")
    bind_contextvars(run="r1")

    async def of(partition: int) -> None:
        bind_contextvars(partition=partition)
        await asyncio.sleep(0)
        log.info("committed")

    await asyncio.gather(*(asyncio.create_task(of(p)) for p in (0, 1)))
    log.info("done")
    found = [(r["run"], r.get("partition")) for r in lines(capsys)]
    assert found == [("r1", 0), ("r1", 1), ("r1", None)]


@pytest.mark.parametrize("as_terminal", [True, False])
def test_no_secret_is_logged(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, as_terminal: bool
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: as_terminal)
    configure("INFO")
    log = structlog.get_logger("mdp")

    def fail(secret_local: str) -> None:
        raise ConnectionError(f"cannot reach {secret_local}")

    try:
        fail(URL)
    except ConnectionError as error:
        log.warning("gone", url=URL, wrapped=SecretUrl(URL), error=error, several=[URL], named={"u": URL})
        log.exception("gone")
        logging.getLogger("somelib").exception("gone from %s", URL)
    _, err = capsys.readouterr()
    assert PASSWORD not in err
    assert err.count("redis://:***@h") >= 5
    assert "Traceback (most recent call last)" in err
