"""Write ``grafana/dashboards/*.json`` from :mod:`grafana.boards`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana.boards import BOARDS

FOLDER: Final = Path(__file__).resolve().parent / "dashboards"


def rendered() -> dict[str, str]:
    """The text of each file of the folder."""
    return {
        f"{name}.json": json.dumps(board().build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"
        for name, board in BOARDS.items()
    }


def main() -> None:
    for name, text in rendered().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
