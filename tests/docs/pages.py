"""The code on a page: fenced blocks, and the shell script that runs them in order.

A page is run as its reader would: all ``bash`` blocks in one shell, ``python`` blocks as programs, in one folder. A
block whose first line is the comment ``# NAME.EXT`` is a file of that name. An ``output`` block is what the block
before it prints, with ``...`` for what differs from run to run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_FENCE: Final = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE: Final = re.compile(r"# (?P<name>[\w./-]+\.(?:py|toml|yaml|json|csv))\n")

NOT_RUN: Final = {
    "git clone https://github.com/mdp/mdp.git": "the network",
    "cd mdp": "there is no clone to go to: the page runs in a folder with the configurations",
    "make setup": "it installs from the network; the tests run in what it made",
    "make demo": "it makes .venv, and runs `mdp demo`, which is run",
    "make test": "it runs the pages",
}
"""Commands that are left out, with the reason. Everything else is executed."""

_OFFLINE: Final = (
    "python -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-index"
)
INSTEAD: Final = {
    f"pip install ./{name}": f'{_OFFLINE} --no-build-isolation --no-deps --target "$PYTHONPATH" ./{name}'
    for name in ("coin", "stretched", "tapped")
}
"""Commands that are run in another form: packages are installed without the network, and beside the environment."""


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block; ``line`` is where it begins."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name of the file that the block is, if it is one."""
        match = _FILE.match(self.text)
        return match["name"] if match else None


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text("utf-8")
    return [
        Block(page, text.count("\n", 0, match.start()) + 1, match["language"], match["text"])
        for match in _FENCE.finditer(text)
    ]


def commands(block: Block) -> Iterator[str]:
    """The lines of a block that are commands of their own."""
    for line in block.text.splitlines():
        if line.strip() and not line.startswith(("#", " ")):
            yield _command(line)


def script(page: Path, python: str, reports: Path) -> str:
    """A bash script that runs the page; what the block at line N prints goes to the file N in ``reports``."""
    lines = ["set -eu", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for block in blocks(page):
        body = _shell(block, python)
        if body is not None:
            report = shlex.quote(str(reports / str(block.line)))
            lines.append(f"echo {block.line} > {shlex.quote(str(reports / 'at'))}")
            lines.append(f"{{\n{body}\n}} > {report} 2> {report}.err")
    return "\n".join(lines) + "\n"


def _command(line: str) -> str:
    """A line without the remark at its end."""
    return line.partition("  #")[0].strip()


def _shell(block: Block, python: str) -> str | None:
    """The block as lines of bash; None when there is nothing to run."""
    if block.language == "bash":
        lines = block.text.splitlines()
        return "\n".join(
            ":" if _command(line) in NOT_RUN else INSTEAD.get(_command(line), line) for line in lines
        )
    quoted = shlex.quote(block.text)
    if block.file is not None:
        name = shlex.quote(block.file)
        put = f'mkdir -p "$(dirname {name})"\nprintf %s {quoted} > {name}'
        return f"{put}\n{python} {name}" if block.language == "python" else put
    return f"printf %s {quoted} | {python} -" if block.language == "python" else None
