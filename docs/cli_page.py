"""docs/cli.md: every command with its options, from the commands themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from typer.main import get_command

from market_data_pipeline.cli import app

_INTRODUCTION: Final = """\
<!-- Written by `make docs` from the commands. Change it there. -->
# Command line

`mdp COMMAND --help` says the same. `mdp --install-completion` teaches your shell to complete commands and options.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed: one sentence on stderr says what, and what to do |
| 2 | wrong command line or configuration: nothing was started |
| 130 | interrupted with Ctrl-C; what was committed is whole |
| 143 | ended by SIGTERM before there was a result |

Results go to stdout, remarks and logs to stderr.

"""
_GLOBAL: Final = ("config", "json", "debug", "help")


def page() -> str:
    """The whole page."""
    parts = [_INTRODUCTION, "## Options of every command\n"]
    root = get_command(app.app)
    with _context(root, "mdp") as ctx:
        shared = [p for p in root.get_params(ctx) if p.name in _GLOBAL]
        parts.append(_table(p.get_help_record(ctx) for p in shared))
    parts.extend(_group("mdp " + name, app.load(name)) for name in app.COMMANDS)
    return "\n".join(parts)


def _group(path: str, command: Any) -> str:
    children: dict[str, Any] = getattr(command, "commands", {})
    if not children:
        return _command(path, command, "##")
    head = f"## {path}\n\n{_prose(command.help)}"
    return "\n".join([head, *(_command(f"{path} {name}", child, "###") for name, child in children.items())])


def _command(path: str, command: Any, level: str) -> str:
    with _context(command, path) as ctx:
        usage = " ".join([path, *command.collect_usage_pieces(ctx)])
        own = [p for p in command.get_params(ctx) if p.name not in _GLOBAL]
        parts = [f"{level} {path}\n", _prose(command.help), f"```text\n{usage}\n```\n"]
        records = [p.get_help_record(ctx) for p in own]
        if shown := [record for record in records if record is not None]:
            parts.append(_table(iter(shown)))
    return "\n".join(parts)


def _context(command: Any, path: str) -> Any:
    # Wide, so that no help text is wrapped.
    return command.context_class(command, info_name=path, max_content_width=1000, terminal_width=1000)


def _prose(text: str | None) -> str:
    """A docstring as paragraphs, its examples as code."""
    out = []
    for paragraph in (text or "").strip().split("\n\n"):
        if paragraph.startswith("\b"):
            lines = "\n".join(line.strip() for line in paragraph.splitlines()[1:])
            out.append(f"```text\n{lines}\n```\n")
        else:
            out.append(" ".join(paragraph.split()) + "\n")
    return "\n".join(out)


def _table(records: Iterator[tuple[str, str] | None]) -> str:
    lines = ["| option | meaning |", "|---|---|"]
    for record in records:
        if record is not None:
            option, meaning = (" ".join(cell.split()).replace("|", "\\|") for cell in record)
            lines.append(f"| `{option}` | {meaning} |")
    return "\n".join(lines) + "\n"
