"""``mdp dev``: the embedded Redis and PostgreSQL."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated, Any

import typer

from market_data_pipeline import embedded
from market_data_pipeline.cli import context


class Which(StrEnum):
    """The embedded services."""

    REDIS = "redis"
    POSTGRES = "postgres"


app = typer.Typer(help="The embedded Redis and PostgreSQL, which other commands start by themselves.")


@app.command()
def up(ctx: typer.Context) -> None:
    """Start both, if they do not run, and print where they are."""
    for service in embedded.services():
        began = time.monotonic()
        before = service.url()
        service.start()
        took = time.monotonic() - began
        _say(ctx, service, "already running" if before else f"started in {took:.1f} s")


@app.command()
def down(ctx: typer.Context) -> None:
    """Stop both and wait until no process is left. The data stays."""
    for service in embedded.services():
        _say(ctx, service, "stopped" if service.stop() else "was not running")


@app.command()
def status(ctx: typer.Context) -> None:
    """What runs, where, since when, and how much it keeps. Exit code 1 unless both run."""
    found = [service.status() for service in embedded.services()]
    if context.options(ctx).json:
        for one in found:
            context.emit(one)
    else:
        rows = [
            (
                s.name,
                "running" if s.running else "stopped",
                s.pid,
                s.port,
                _age(s.uptime_s),
                _size(s.data_bytes),
                s.path,
            )
            for s in found
        ]
        context.table(None, ("service", "state", "pid", "port", "up", "data", "folder"), rows)
    if not all(one.running for one in found):
        raise typer.Exit(1)


@app.command()
def url(
    name: Annotated[Which, typer.Argument(metavar="redis|postgres", help="Which of the two.")],
) -> None:
    """The URL of one of them, password included, for another program; it is started if it does not run.

    \b
    redis-cli -u "$(mdp dev url redis)" XINFO GROUPS mdp.events
    psql "$(mdp dev url postgres)" -c 'SELECT count(*) FROM bars_ohlcv'
    """
    print(next(service for service in embedded.services() if service.name == name).start())


def _say(ctx: typer.Context, service: embedded.Service, what: str) -> None:
    state = service.status()
    if context.options(ctx).json:
        row: dict[str, Any] = {"service": service.name, "result": what, "pid": state.pid, "port": state.port}
        context.emit(row)
    else:
        where = f" on 127.0.0.1:{state.port}, process {state.pid}" if state.running else ""
        context.console().print(f"{service.name}: {what}{where}", markup=False)


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
