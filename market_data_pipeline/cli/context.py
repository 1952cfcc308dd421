"""What every command needs: global options, settings, the two servers, and how a command ends.

Imports here are kept light, since ``mdp --help`` pays for them; whatever connects is imported on use.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from market_data_core.config import Settings
    from market_data_core.config_files import Given
    from market_data_pipeline.streaming.bus import Bus
    from market_data_store.client import StoreClient

_T = TypeVar("_T")
_META = "mdp.options"
INTERRUPTED = 130
TERMINATED = 143
NO_LIMIT_SECONDS = 86_400.0
_WIDEST = 10_000


@dataclass
class Options:
    """The global options; they may stand before or after the command."""

    config: Path | None = None
    json: bool = False
    debug: bool = False


def options(ctx: typer.Context) -> Options:
    """The global options of this run."""
    found: Options = ctx.meta.setdefault(_META, Options())
    return found


def settings(ctx: typer.Context, *given: Given) -> Settings:
    """The settings of this run, with keys set by the command's own options on top; logging is set up by them.

    >>> settings(ctx, Given("--window", "micro_batch.window_ms", window))  # None: not given

    Raises:
        ConfigError: one sentence.
    """
    from market_data_core.config_files import load
    from market_data_pipeline.logging import configure

    chosen = options(ctx)
    loaded = load(chosen.config, given=given)
    about = loaded.telemetry
    configure(
        "DEBUG" if chosen.debug else about.log_level, json=log_as_json(about.log_format, asked=chosen.json)
    )
    return loaded


def log_as_json(log_format: str, *, asked: bool) -> bool | None:
    """What ``telemetry.log_format`` and ``--json`` say of logs; None: as stderr is."""
    if log_format == "auto":
        return True if asked else None
    return log_format == "json"


def bus_url(settings: Settings) -> str:
    """Where the bus is; the embedded Redis is started when none is configured. Holds a password."""
    if settings.bus.type == "kafka":
        return settings.bus.kafka.url.reveal()
    if settings.bus.type != "redis":
        return settings.bus.uri.reveal()
    if settings.bus.redis.uri:
        return settings.bus.redis.address.reveal()
    from market_data_pipeline import embedded

    return embedded.redis().start()


def store_url(settings: Settings) -> str:
    """Where the database is; the embedded PostgreSQL is started when none is configured. Holds a password."""
    if settings.store.url:
        return settings.store.url.reveal()
    from market_data_pipeline import embedded

    return embedded.postgres().start()


async def open_bus(settings: Settings) -> Bus:
    """A connection to the configured bus; close it when done."""
    import asyncio

    from market_data_pipeline.streaming import drivers

    url = await asyncio.to_thread(bus_url, settings)
    return drivers.open_bus(settings.bus.type, url)


async def open_store(settings: Settings) -> StoreClient:
    """A connection pool to the store; close it when done. The embedded database's schema is kept up to date.

    Raises:
        SchemaOutOfDate: a database of the user's own needs ``mdp store upgrade``.
    """
    import asyncio

    from market_data_core.errors import SchemaOutOfDate
    from market_data_store.client import StoreClient

    async def connect() -> StoreClient:
        limit = settings.store.statement_timeout_ms / 1000 or NO_LIMIT_SECONDS
        return await StoreClient.connect(url, pool_size=settings.store.pool_size, timeout_s=limit)

    url = await asyncio.to_thread(store_url, settings)
    try:
        return await connect()
    except SchemaOutOfDate:
        if settings.store.url:
            raise
        from market_data_store import schema

        await asyncio.to_thread(schema.upgrade, url)
        return await connect()


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a command's coroutine to its end.

    SIGINT and SIGTERM cancel it, so that ``finally`` and ``async with`` give everything back; a coroutine that
    may stop at any moment catches ``CancelledError`` and returns. A second signal ends the process at once.
    After SIGINT the exit code is 130. After SIGTERM it is 0 when the coroutine returned, else 143.
    """
    received: list[signal.Signals] = []

    import asyncio

    async def supervised() -> _T:
        from structlog.contextvars import bind_contextvars

        bind_contextvars(run=os.urandom(4).hex())  # every record of this run carries it
        loop = asyncio.get_running_loop()
        task = loop.create_task(main)

        def stop(which: signal.Signals) -> None:
            if received:
                os._exit(INTERRUPTED if which is signal.SIGINT else TERMINATED)
            received.append(which)
            task.cancel()

        for which in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(which, stop, which)
        try:
            return await task
        finally:
            for which in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(which)

    try:
        result = asyncio.run(supervised())
    except asyncio.CancelledError:
        if not received:
            raise
        raise typer.Exit(INTERRUPTED if received[0] is signal.SIGINT else TERMINATED) from None
    if signal.SIGINT in received:
        raise typer.Exit(INTERRUPTED)
    return result


def seconds(option: str, text: str | None) -> float | None:
    """The seconds of a duration given with ``option``; None when it was not given.

    Raises:
        UsageError: it is no duration.
    """
    from market_data_core.errors import UsageError
    from market_data_core.events import parse_interval

    if text is None:
        return None
    try:
        return parse_interval(text) / 1e9
    except ValueError:
        raise UsageError(f"{option}: must be a duration such as 500ms, 2s or 1m (got {text!r})") from None


# --- output ----------------------------------------------------------------------------------------------------


def emit(value: Any) -> None:
    """One JSON object on one line of stdout; NaN becomes null, dataclasses and dates are understood."""
    import msgspec

    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.flush()


def console() -> Console:
    """Where people read results: stdout, without colour when it is not a terminal."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())


def say(text: str) -> None:
    """A remark for people, on stderr so that results can be piped."""
    print(text, file=sys.stderr, flush=True)


def table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Rows for people; only the last column is broken into lines, and only on a terminal, so that what a row says can
    be found, copied and cut."""
    from rich.measure import Measurement

    out = grid(title, columns, rows)
    view = console()
    needed = Measurement.get(view, view.options.update(max_width=_WIDEST), out)
    view.width = max(view.width, needed.minimum) if sys.stdout.isatty() else needed.maximum
    view.print(out)


def grid(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """What :func:`table` prints: numbers are set to the right."""
    from rich.table import Table
    from rich.text import Text

    out = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(
            isinstance(row[index], int | float) or row[index] is None for row in rows
        )
        last = index == len(columns) - 1
        out.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=not last)
    for row in rows:
        out.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    return out


def fail(message: str, code: int = 1) -> NoReturn:
    """End the command with one sentence on stderr."""
    say(f"mdp: {message}")
    raise typer.Exit(code)
