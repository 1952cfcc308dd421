"""Reads hostile rules in a process of its own, and prints what came of each: ``python -m tests.unit.hostile FILE``.

An audit hook (PEP 578) sees every import, compile, exec, open, socket and process of the interpreter. It cannot be
taken out again, which is why this is a process.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import yaml

from market_data_core.errors import ConfigError
from market_data_pipeline.inference.expressions import Condition
from market_data_pipeline.inference.rules_file import rules_of
from market_data_pipeline.inference.templates import Template

FEATURES: Final = frozenset({"price", "rsi", "momentum", "volatility", "volume"})
READERS: Final[dict[str, Callable[[str], object]]] = {
    "conditions": lambda text: Condition(text, FEATURES),
    "templates": lambda text: Template(text, FEATURES),
    "files": lambda text: rules_of(text.encode(), Path("rules.yaml"), FEATURES),
}
HARMLESS: Final = {
    "conditions": "max(rsi, 1) > 70 and not momentum < -0.01",
    "templates": "rsi {rsi:.1f} of {symbol}",
    "files": "- {name: a, condition: rsi > 1, signal: 1, score: 1, cooldown: 60s, symbols: ['S*'], meta: {m: '{rsi}'}}",
}
_ATTEMPTS: Final = 3


def written(entry: str | dict[str, Any]) -> str:
    """The text that an entry of the list stands for."""
    return entry if isinstance(entry, str) else entry["start"] * entry["times"] + entry["end"]


def main(file: Path) -> None:
    seen: list[str] = []
    watching = False

    def hook(event: str, arguments: object) -> None:
        if watching:
            seen.append(event)

    for kind, text in HARMLESS.items():
        READERS[kind](text)  # what is imported on first use is imported now
        with contextlib.suppress(ConfigError):
            READERS[kind]("nonsense {")
    sys.addaudithook(hook)
    watching = True
    ast.literal_eval("1")
    Path(os.devnull).read_bytes()
    watching = False
    results: dict[str, Any] = {"control": list(seen)}
    gc.disable()
    for kind, entries in yaml.safe_load(file.read_text("utf-8")).items():
        results[kind] = []
        for text in map(written, entries):
            seen.clear()
            error: Exception | None = None
            took = []
            for _ in range(_ATTEMPTS):
                watching = True
                start = time.perf_counter()
                try:
                    READERS[kind](text)
                except Exception as raised:
                    error = raised
                took.append(time.perf_counter() - start)
                watching = False
            results[kind].append(
                {
                    "error": type(error).__name__,
                    "says": str(error),
                    "column": getattr(error, "column", None),
                    "ms": min(took) * 1000,
                    "events": list(seen),
                }
            )
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
