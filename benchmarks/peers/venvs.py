"""An environment of each peer's own, made on first use in the cache of the test servers, outside of the repository."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from tests.servers import cached, install

HERE = Path(__file__).parent


def python_of(lock: str) -> Path:
    """The interpreter that has what ``lock``, a file beside this one, pins; another lock is another environment.

    Raises:
        ServerMissing: the packages could not be installed.
    """
    pins = HERE / lock
    digest = hashlib.sha256(pins.read_bytes()).hexdigest()[:12]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    with cached(f"{pins.stem}-{version}-{digest}") as (folder, scratch):
        if scratch is not None:
            install([sys.executable, "-m", "venv", str(scratch)], HERE, pins.stem)
            pip = [str(scratch / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            install([*pip, "--require-hashes", "--requirement", str(pins)], HERE, pins.stem)
    return folder / "bin" / "python"
