"""``mdp config``: what is configured, and whether it is right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from market_data_core.config import Settings
from market_data_core.config_files import check, keys
from market_data_core.errors import ConfigError
from market_data_core.redact import SecretUrl
from market_data_pipeline.cli import context

app = typer.Typer(help="Show and check the configuration.", no_args_is_help=True)


@app.command()
def show(
    ctx: typer.Context,
    changed: Annotated[bool, typer.Option("--changed", help="Only what is not a default.")] = False,
) -> None:
    """Every key with its value and where the value comes from; passwords are hidden.

    \b
    mdp config show --changed
    """
    loaded = context.settings(ctx)
    rows = [(path, value, loaded.source(path)) for path, value in _values(loaded)]
    if changed:
        rows = [row for row in rows if row[2] != "default"]
    if context.options(ctx).json:
        for path, value, source in rows:
            context.emit({"key": path, "value": value, "source": source})
        return
    context.table(
        None, ("key", "value", "source"), [(path, _text(value), source) for path, value, source in rows]
    )


@app.command()
def validate(
    ctx: typer.Context,
    file: Annotated[Path | None, typer.Argument(help="Instead of --config.", metavar="FILE")] = None,
) -> None:
    """Read the configuration and the rules as every command would, and name everything that is wrong with them.

    \b
    mdp config validate configs/production.yaml
    """
    from market_data_pipeline.inference import rules_file

    settings, problems = check(file or context.options(ctx).config)
    if settings is not None:
        problems = rules_file.problems_of(settings)
    as_json = context.options(ctx).json
    if settings is None or problems:
        if as_json:
            context.emit({"valid": False, "problems": problems})
        for problem in problems[:-1]:
            context.say(f"mdp: {problem}")
        raise ConfigError(problems[-1])
    read = str(settings.file) if settings.file else "defaults and environment"
    if as_json:
        context.emit({"valid": True, "file": str(settings.file) if settings.file else None, "problems": []})
    else:
        context.console().print(f"{read}: valid", markup=False)


def _values(settings: Settings) -> list[tuple[str, Any]]:
    """Each leaf key with its value, secrets hidden; datasets one row for each key that is set."""
    rows: list[tuple[str, Any]] = []
    for key in keys():
        value: Any = settings
        for part in key.path.split("."):
            value = getattr(value, part)
        if key.path == "datasets":
            for name, dataset in value.items():
                rows.extend(_flat(f"datasets.{name}", dataset.model_dump(mode="json", exclude_unset=True)))
        else:
            rows.append((key.path, _plain(value)))
    return rows


def _flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(prefix, value)]
    return [row for name, inner in value.items() for row in _flat(f"{prefix}.{name}", inner)]


def _plain(value: Any) -> Any:
    if isinstance(value, SecretUrl):
        return str(value)
    if isinstance(value, tuple):
        return [item.model_dump(mode="json") if isinstance(item, BaseModel) else item for item in value]
    return value


def _text(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(f"{i['name']} {i['horizon']}" if isinstance(i, dict) else str(i) for i in value)
    return str(value)
