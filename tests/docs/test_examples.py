"""The examples in the help of the commands are commands that exist, with options that they have.

They are parsed, not run: some never end, and some name files and times of the reader's own.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from market_data_pipeline.cli import app


def _commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from _commands(f"{path} {name}", child)


def _everything() -> Iterator[tuple[str, str]]:
    """(command, its help), and those of the whole."""
    yield "mdp", app.EPILOG
    for name in app.COMMANDS:
        for path, command in _commands(f"mdp {name}", app.load(name)):
            yield path, command.help or ""


def _examples() -> list[tuple[str, str]]:
    return [
        (path, line.strip())
        for path, text in _everything()
        for paragraph in text.split("\n\n")
        if paragraph.lstrip().startswith("\b")
        for line in paragraph.splitlines()
        if line.strip().startswith("mdp ")
    ]


EXAMPLES = _examples()


@pytest.mark.parametrize(("path", "example"), EXAMPLES, ids=[example for _, example in EXAMPLES])
def test_an_example_can_be_parsed(path: str, example: str) -> None:
    command: Any = get_command(app.app)
    arguments = shlex.split(example.partition(" > ")[0])[1:]
    name, parent = "mdp", None
    while True:
        context = command.make_context(name, list(arguments), parent=parent)
        if not hasattr(command, "resolve_command"):
            break
        rest = [*context._protected_args, *context.args]
        name, command, arguments = command.resolve_command(context, rest)
        parent = context
    assert path in (context.command_path, "mdp")


def test_every_command_with_options_of_its_own_shows_an_example() -> None:
    lacking = []
    for name in app.COMMANDS:
        for path, command in _commands(f"mdp {name}", app.load(name)):
            own = {p.name for p in command.params} - {"config", "json", "debug", "help"}
            if own and not hasattr(command, "commands") and "\b" not in (command.help or ""):
                lacking.append(path)
    assert lacking == []
