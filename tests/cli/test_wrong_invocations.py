"""What people get wrong: one sentence that names it and the fix, the right exit code, no traceback, no password.

The mistakes are in wrong_invocations.yaml.
"""

from __future__ import annotations

import os
import pty
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
import yaml

from market_data_store import schema
from tests.cli.conftest import Invoke, Services

PASSWORD = "hunter2"  # noqa: S105


@dataclass(frozen=True, slots=True)
class Mistake:
    """One entry of the file; see there."""

    what: str
    args: str
    says: str
    code: int = 2
    environ: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    connects: bool = False
    without: str | None = None
    real: bool = False

    def lay(self, folder: Path) -> None:
        """Write the files."""
        for name, text in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")


_FILE = Path(__file__).with_name("wrong_invocations.yaml")
MISTAKES = [Mistake(**entry) for entry in yaml.safe_load(_FILE.read_text("utf-8"))]
REAL = [mistake for mistake in MISTAKES if mistake.real]


@pytest.fixture(scope="module")
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


@pytest.fixture(scope="module")
def databases(services: Services) -> dict[str, str]:
    """Databases of every age, by name."""
    server = services.postgres.rpartition("/")[0]
    with psycopg.connect(services.postgres, autocommit=True) as connection:
        for name in ("empty", "old", "newer"):
            connection.execute(f"CREATE DATABASE {name}")
    schema.upgrade(f"{server}/old", "0002")
    schema.upgrade(f"{server}/newer")
    with psycopg.connect(f"{server}/newer") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0999'")
    return {name: f"{server}/{name}" for name in ("empty", "old", "newer", "nowhere")}


@pytest.fixture
def environ(
    request: pytest.FixtureRequest, services: Services, databases: dict[str, str], taken_port: int
) -> dict[str, str]:
    """The variables of a mistake, filled in."""
    known = {
        "redis": services.redis,
        "postgres": services.postgres,
        "redis_wrong_password": _with_password(services.redis),
        "redis_wrong_database": services.redis.rpartition("/")[0] + "/99",
        "postgres_wrong_password": _with_password(services.postgres),
        "postgres_wrong_database": databases["nowhere"],
        "postgres_empty": databases["empty"],
        "postgres_old": databases["old"],
        "postgres_newer": databases["newer"],
        "taken_port": str(taken_port),
    }
    mistake: Mistake = request.getfixturevalue("mistake")
    given = {
        name: re.sub(r"\{(\w+)\}", lambda match: known[match[1]], text)
        for name, text in mistake.environ.items()
    }
    return {"MDP_HOME": str(services.home), **given} if mistake.connects else given


def _with_password(url: str) -> str:
    return re.sub(r":[^:@/]*@", f":{PASSWORD}@", url)


def _passwords(services: Services) -> list[str]:
    found = [re.search(r":([^:@/]*)@", url) for url in (services.redis, services.postgres)]
    return [PASSWORD, *(match[1] for match in found if match is not None)]


def _check(mistake: Mistake, services: Services, code: int, out: str, err: str) -> None:
    said = out + err
    assert "Traceback" not in said
    assert not [password for password in _passwords(services) if password in said]
    expected = ".*".join(re.escape(part) for part in mistake.says.split("..."))
    assert re.fullmatch(f"mdp: {expected}\n", err), err
    assert (code, out) == (mistake.code, "")


def _named(mistake: Mistake) -> str:
    return mistake.what.replace(" ", "-")


@pytest.mark.parametrize("mistake", MISTAKES, ids=_named)
def test_a_mistake_is_answered_in_one_sentence(
    mistake: Mistake,
    invoke: Invoke,
    environ: dict[str, str],
    services: Services,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    mistake.lay(tmp_path)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    if mistake.without is not None:
        monkeypatch.setitem(sys.modules, mistake.without, None)
    ended = invoke(*shlex.split(mistake.args))
    _check(mistake, services, ended.code, ended.out, ended.err)
    assert not list(tmp_path.glob("home/*.json")), "services were started for nothing"


@pytest.mark.parametrize("mistake", REAL, ids=_named)
def test_so_it_is_for_a_process_of_its_own(
    mistake: Mistake, clean_environment: None, environ: dict[str, str], services: Services, tmp_path: Path
) -> None:
    mistake.lay(tmp_path)
    program = Path(sys.executable).with_name("mdp")
    done = subprocess.run(
        [str(program), *shlex.split(mistake.args)],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    _check(mistake, services, done.returncode, done.stdout, done.stderr)


def test_parquet_is_not_written_to_a_terminal(
    clean_environment: None, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MDP_HOME", str(services.home))
    terminal, end = pty.openpty()
    done = subprocess.run(
        [str(Path(sys.executable).with_name("mdp")), "store", "bars", "--format", "parquet"],
        stdout=end,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    os.close(end)
    os.close(terminal)
    sentence = "mdp: --format parquet is not for a terminal: add --output FILE or redirect stdout\n"
    assert (done.returncode, done.stderr) == (2, sentence)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_home_that_cannot_be_written(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    monkeypatch.setenv("MDP_HOME", str(home))
    ended = invoke("dev", "up")
    assert ended.code == 1
    assert re.fullmatch(
        r"mdp: the embedded redis cannot use .* \(Permission denied\); set MDP_HOME .*\n", ended.err
    )


def test_there_are_enough_of_them() -> None:
    assert len(MISTAKES) >= 40
    assert len(REAL) >= 12
    assert len({mistake.what for mistake in MISTAKES}) == len(MISTAKES)


def test_positions_of_another_bus_are_refused(
    invoke: Invoke, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MDP_HOME", str(services.home))
    topic, group = ("--topic", "other.bus"), ("--group", "other-bus")
    made = invoke("stream", "produce", "--provider", "synthetic", "--rate", "0", "--limit", "3", *topic)
    assert made.code == 0
    assert invoke("stream", "micro-batch", "--until-idle", "100ms", *topic, *group).code == 0
    monkeypatch.setenv("MDP_BUS__TYPE", "memory")
    ended = invoke("stream", "micro-batch", "--until-idle", "100ms", *topic, *group)
    assert (ended.code, ended.out) == (2, "")
    expected = (
        r"mdp: group other-bus has read partition \d+ of other\.bus on another bus: '.*' is not an offset of the "
        r"memory bus, such as 17; set bus\.type back, or take the topic along with mdp stream migrate\n"
    )
    assert re.fullmatch(expected, ended.err)
