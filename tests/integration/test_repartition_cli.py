"""``mdp stream repartition`` and ``mdp stream status`` as an operator runs them, on servers of their own."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.redis import RedisServer
from tests.servers.redis import running as redis_running

Mdp = Callable[..., tuple[int, list[dict[str, Any]], str]]


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    yield from redis_running("6.2")


@pytest.fixture
def environ(redis: RedisServer, database: str, tmp_path: Path) -> dict[str, str]:
    with redis.client() as client:
        client.flushall()
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("MDP_", "REDIS_", "DATABASE_"))}
    return keep | {
        "MDP_HOME": str(tmp_path),
        "REDIS_URI": redis.uri,
        "DATABASE_URL": database,
        "MDP_TELEMETRY__METRICS_PORT": "0",
        "MDP_BUS__REDIS__PARTITIONS": "2",
    }


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "market_data_pipeline.cli.app", *args]


@pytest.fixture
def mdp(environ: dict[str, str], tmp_path: Path) -> Mdp:
    """Exit code, rows of stdout, and stderr of one command."""

    def run(*args: str) -> tuple[int, list[dict[str, Any]], str]:
        done = subprocess.run(
            command(*args, "--json"),
            check=False,
            env=environ,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr

    return run


def test_from_two_to_four_partitions(mdp: Mdp) -> None:
    produce = ("stream", "produce", "--provider", "synthetic", "--rate", "0", "--limit", "3000")
    assert mdp(*produce)[0] == 0
    code, _, said = mdp("stream", "repartition", "--partitions", "4", "--settle", "100ms")
    assert (code, "records that no group has read" in said) == (1, True)
    assert mdp("stream", "micro-batch", "--until-idle", "500ms")[0] == 0
    assert mdp("stream", "repartition", "--partitions", "4", "--settle", "100ms")[0] == 0
    assert mdp(*produce)[0] == 0
    code, _, said = mdp("stream", "repartition", "--partitions", "8", "--settle", "100ms")
    assert code == 1
    assert "records to read" in said
    assert "stop the producers and run the group's command with --until-idle" in said
    assert mdp("stream", "micro-batch", "--until-idle", "500ms")[0] == 0
    code, moved, said = mdp("stream", "repartition", "--partitions", "8", "--settle", "100ms")
    assert (code, {m["topic"]: (m["before"], m["after"]) for m in moved}) == (
        0,
        {"mdp.events": (4, 8), "mdp.bars": (4, 8)},
    ), said
    _, topics, _ = mdp("stream", "status")
    assert {t["topic"]: (t["partitions"], len(t["sizes"])) for t in topics} == {
        "mdp.bars": (8, 8),
        "mdp.events": (8, 8),
    }
    code, moved, _ = mdp("stream", "repartition", "--partitions", "8")
    assert (code, moved) == (0, [])


def test_wrong_invocations(mdp: Mdp) -> None:
    code, _, said = mdp("stream", "repartition", "--partitions", "4", "--topic", "mdp.bars")
    assert (code, "use --topic mdp.events" in said) == (2, True)
    code, _, said = mdp("stream", "repartition", "--partitions", "4")
    assert (code, "there is no topic mdp.events" in said) == (1, True)
    code, _, said = mdp("stream", "migrate", "--to", "redis")
    assert (code, "--to redis: is where it comes from" in said) == (2, True)
    code, _, said = mdp("stream", "migrate", "--to", "kafka")
    assert (code, "must name the brokers while bus.type is kafka" in said) == (2, True)
    code, _, said = mdp("stream", "status", "--watch")
    assert (code, "--watch: needs a terminal" in said) == (2, True)


def test_watch_shows_topics_until_it_is_interrupted(
    mdp: Mdp, environ: dict[str, str], tmp_path: Path
) -> None:
    assert mdp("stream", "produce", "--provider", "synthetic", "--rate", "0", "--limit", "50")[0] == 0
    ours, theirs = pty.openpty()
    wide = environ | {"COLUMNS": "200", "TERM": "xterm"}
    watching = subprocess.Popen(
        command("stream", "status", "--watch"), env=wide, cwd=tmp_path, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    try:
        shown = b""
        while shown.count(b"mdp.events") < 2:
            shown += os.read(ours, 4096)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(20) == 130
    finally:
        watching.kill()
        watching.wait()
        os.close(ours)


def test_wait_says_what_is_in_the_way_and_goes_on_when_it_is_gone(
    mdp: Mdp, environ: dict[str, str], tmp_path: Path
) -> None:
    """It is started first, as an operator would who then stops the rest."""
    produce = ("stream", "produce", "--provider", "synthetic", "--rate", "0", "--limit", "500")
    assert mdp(*produce)[0] == 0
    assert mdp("stream", "micro-batch", "--until-idle", "500ms")[0] == 0
    assert mdp(*produce)[0] == 0
    with subprocess.Popen(
        command("stream", "repartition", "--partitions", "4", "--settle", "100ms", "--wait", "5m", "--json"),
        env=environ,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as waiting:
        try:
            assert waiting.stderr is not None
            lag = waiting.stderr.readline()
            assert "waiting: group mdp-consumers of mdp.events has" in lag
            assert mdp("stream", "micro-batch", "--until-idle", "500ms")[0] == 0
            moved, said = waiting.communicate(timeout=120)
        finally:
            waiting.kill()
    assert waiting.returncode == 0, said
    assert {row["topic"]: (row["before"], row["after"]) for row in map(json.loads, moved.splitlines())} == {
        "mdp.events": (2, 4),
        "mdp.bars": (2, 4),
    }
    # What was said is said once, however often it was looked at.
    told = [lag, *said.splitlines(keepends=True)]
    assert len(told) == len(set(told))


def test_a_worker_that_keeps_its_name_goes_on_where_it_was(
    mdp: Mdp, environ: dict[str, str], tmp_path: Path
) -> None:
    produce = ("stream", "produce", "--provider", "synthetic", "--rate", "0", "--limit", "200")
    assert mdp(*produce)[0] == 0
    environ["MDP_BUS__MEMBER"] = "worker-0"
    environ["MDP_BUS__REDIS__LEASE_MS"] = "600000"

    def groups() -> list[dict[str, Any]]:
        _, topics, _ = mdp("stream", "status")
        return [g for t in topics if t["topic"] == "mdp.events" for g in t["groups"]]

    def members() -> list[str]:
        return [m for g in groups() for m in g["members"]]

    def left() -> int:
        return sum(p["lag"] + p["pending"] for g in groups() for p in g["partitions"])

    with subprocess.Popen(command("stream", "micro-batch"), env=environ, cwd=tmp_path) as worker:
        try:
            while members() != ["worker-0"] or left():
                assert worker.poll() is None
            worker.terminate()
            assert worker.wait(60) == 0
        finally:
            worker.kill()
    # It ended and is waited for, as long as its lease lasts; and it need not wait for that itself.
    assert members() == ["worker-0"]
    assert mdp(*produce)[0] == 0
    code, (summary,), _ = mdp("stream", "micro-batch", "--until-idle", "500ms")
    assert (code, summary["events"]) == (0, 200)


def test_wait_ends_with_what_is_still_in_the_way(mdp: Mdp) -> None:
    assert mdp("stream", "produce", "--provider", "synthetic", "--rate", "0", "--limit", "50")[0] == 0
    code, _, said = mdp("stream", "repartition", "--partitions", "4", "--settle", "1ms", "--wait", "100ms")
    assert code == 1
    assert "waiting: topic mdp.events has" in said
    assert "mdp: topic mdp.events has" in said
