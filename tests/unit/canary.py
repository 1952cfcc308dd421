"""What a malicious model does: it leaves a file behind as soon as anything of it is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def sing(path: str) -> str:
    """Leave the trace."""
    Path(path).write_text("executed")
    return path


class PickledCanary:
    """Sings when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return sing, (str(self.path),)


class SkopsCanary:
    """Sings when skops restores it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __setstate__(self, state: dict[str, str]) -> None:
        sing(state["path"])
        self.__dict__.update(state)
