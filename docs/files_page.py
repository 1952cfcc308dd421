"""docs/files.md: one line for every file, from the files' own first sentences."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDERS: Final = {
    "market_data_core": "Contracts: what data looks like and how it is added up. No I/O; imports nothing of ours.",
    "market_data_store": "The only package that knows SQL, tables and migrations. Imports core.",
    "market_data_pipeline": "Everything that moves. Imports core; reaches the database by `StoreClient` alone.",
    "migrations": "The database's history, applied by `mdp store upgrade`.",
}
_INTRODUCTION: Final = """\
<!-- Written by `make docs` from the first sentence of each file. Change it there. -->
# Files

Which file a tick passes when is told in [architecture.md](architecture.md).
"""


def page() -> str:
    """The whole page."""
    parts = [_INTRODUCTION]
    for name, about in FOLDERS.items():
        parts.append(f"## {name}\n\n{about}\n")
        lines = [
            f"| [{path.relative_to(ROOT / name)}](../{path.relative_to(ROOT)}) | {said} |"
            for path in sorted((ROOT / name).rglob("*.py"), key=_place)
            if (said := _first_sentence(path))
        ]
        parts.append("\n".join(["| file | |", "|---|---|", *lines]) + "\n")
    return "\n".join(parts)


def _place(path: Path) -> tuple[Path, bool, str]:
    """Folder by folder, each one's own file first."""
    return path.parent, path.name != "__init__.py", path.name


def _first_sentence(path: Path) -> str:
    """Of the module's docstring; empty for a package that only makes a folder one."""
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    text = " ".join(docstring.split("\n\n")[0].split())
    sentence = re.split(r"(?<=\.) ", text, maxsplit=1)[0].rstrip(".:")
    return sentence.replace("``", "`").replace("|", "\\|")
