"""Write the reference pages from the code: ``make docs``, or ``python -m docs --check`` to only compare."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from docs import cli_page, configuration_page, files_page

FOLDER: Final = Path(__file__).parent


def pages() -> dict[Path, str]:
    """What each generated page should hold now."""
    return {
        FOLDER / "configuration.md": configuration_page.page(),
        FOLDER / "cli.md": cli_page.page(),
        FOLDER / "files.md": files_page.page(),
    }


def stale() -> list[Path]:
    """Generated pages that are not what the code says."""
    return [path for path, text in pages().items() if not path.is_file() or path.read_text("utf-8") != text]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is stale")
    only_check = parser.parse_args().check
    changed = stale()
    for path in changed:
        if not only_check:
            path.write_text(pages()[path], "utf-8")
        print(f"{path.name}: {'stale; run `make docs`' if only_check else 'written'}")
    sys.exit(1 if only_check and changed else 0)


if __name__ == "__main__":
    main()
