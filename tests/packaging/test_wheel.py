"""What is installed: the wheel, the source archive, and a program from the wheel in an environment of its own.

Nothing is downloaded. The environment has the wheel in it, and sees the packages that the tests run with, but not the
checkout: a ``.pth`` file that is found through another one is not read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from market_data_core import __version__
from market_data_pipeline import embedded
from market_data_store.schema_version import HEAD

ROOT = Path(__file__).parents[2]
PACKAGES = ("market_data_core", "market_data_store", "market_data_pipeline")
INFO = f"mdp-{__version__}.dist-info"
pytestmark = pytest.mark.slow


def build(source: Path, folder: Path, target: str) -> Path:
    """Build ``wheel`` or ``sdist`` with the hatchling of this environment."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = folder.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return made


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("sdist"), "sdist")


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and an empty folder to work in."""

    environment: Path
    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def run(self, program: str, *args: str) -> str:
        """What a program of the environment prints; it must not fail."""
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("MDP_", "PYTHON"))}
        for name in ("REDIS_URI", "DATABASE_URL", "KAFKA_BOOTSTRAP"):
            environ.pop(name, None)
        environ["MDP_HOME"] = str(self.home)
        done = subprocess.run(
            [str(self.environment / "bin" / program), *args],
            cwd=self.folder,
            env=environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    made = Installed(tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("folder"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(made.environment)], check=True)
    python = str(made.environment / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True, timeout=120)
    site = Path(made.run("python", "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip())
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", "utf-8")
    yield made
    for service in embedded.services(made.home):
        service.stop()


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    held = {name.partition("/")[0] for name in contents(wheel)}
    assert held == {*PACKAGES, INFO}


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES, "migrations", "configs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a clone of the repository")
    moved = {"migrations": "market_data_store/migrations", "configs": "market_data_pipeline/configs"}
    expected = {}
    for name in listed.stdout.split():
        top, _, rest = name.partition("/")
        expected[f"{moved.get(top, top)}/{rest}"] = (ROOT / name).read_bytes()
    assert {f"{package}/py.typed" for package in PACKAGES} <= expected.keys()
    found = {name: data for name, data in contents(wheel).items() if not name.startswith(INFO)}
    assert found == expected


def test_the_source_archive_builds_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert contents(build(source, tmp_path, "wheel")) == contents(wheel)


def test_the_source_archive_can_be_set_up_tested_and_deployed(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {
        "Makefile",
        ".ci/setup",
        "requirements.lock",
        "requirements.image.lock",
        "Dockerfile",
        "docker-compose.observability.yml",
        ".env.example",
        "grafana/prometheus/compose.yml",
        "tests/packaging/test_wheel.py",
        "docs/deployment.md",
        "LICENSE",
    }
    assert not [name for name in names if name.startswith((".venv", "dist/")) or name.endswith(".pyc")]


def test_the_program_says_its_version_and_what_it_can(installed: Installed) -> None:
    assert installed.run("mdp", "--version") == f"mdp {__version__}\n"
    assert "mdp demo --duration 30s" in installed.run("mdp", "--help")
    where = "import market_data_core, market_data_store, market_data_pipeline as p, sys; print(p.__file__, sys.prefix)"
    file, prefix = installed.run("python", "-c", where).split()
    assert Path(file).is_relative_to(prefix)
    found = "from importlib.metadata import version; print(version('mdp'))"
    assert installed.run("python", "-c", found).strip() == __version__


def test_config_show_works_where_there_is_no_file(installed: Installed) -> None:
    rows = [json.loads(line) for line in installed.run("mdp", "--json", "config", "show").splitlines()]
    values = {row["key"]: row["value"] for row in rows}
    assert values["bus.redis.stream"] == "mdp.events"
    assert {row["source"] for row in rows if not row["key"].startswith("store.")} == {"default"}


def test_the_database_is_migrated_from_the_wheel(installed: Installed) -> None:
    """On the embedded PostgreSQL, by the migrations inside of the package."""
    where = "from market_data_store import schema; print(schema.script_location())"
    location = Path(installed.run("python", "-c", where).strip())
    assert location.is_relative_to(installed.environment)
    installed.run("mdp", "store", "upgrade")
    installed.run("mdp", "store", "check")
    assert json.loads(installed.run("mdp", "--json", "store", "current"))["revision"] == HEAD
