"""``mdp store``: the database's schema, and what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from market_data_pipeline.cli import context, spans
from market_data_pipeline.cli.store_formats import BatchFormat, RowFormat

if TYPE_CHECKING:
    from datetime import timedelta

    from market_data_store.job_runs import JobRecord

app = typer.Typer(help="Migrate the database; read bars, signals and the job log.", no_args_is_help=True)

Symbols = Annotated[
    list[str] | None,
    typer.Option("--symbol", metavar="S", help="Symbol; may be given again, or as A,B. Without it: all."),
]
Provider = Annotated[str | None, typer.Option("--provider", metavar="P", help="Only this provider's.")]
From = Annotated[
    str | None, typer.Option("--from", metavar="T", help="First time, RFC 3339 or YYYY-MM-DD (UTC).")
]
To = Annotated[str | None, typer.Option("--to", metavar="T", help="End, exclusive, in the same form.")]
FormatOption = Annotated[RowFormat | None, typer.Option("--format", help="How to print rows.")]
BatchFormatOption = Annotated[BatchFormat | None, typer.Option("--format", help="How to print rows.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write there, not to stdout.")
]


@app.command()
def upgrade(
    ctx: typer.Context,
    revision: Annotated[str, typer.Argument(help="Migration to go up to.")] = "head",
    compress_after: Annotated[
        str, typer.Option("--compress-after", metavar="DURATION", help="TimescaleDB: age of compression.")
    ] = "7d",
    retention: Annotated[
        str | None,
        typer.Option(
            "--retention",
            metavar="DURATION",
            help="TimescaleDB: age at which bars and signals are removed; 'off' to keep them.",
        ),
    ] = None,
) -> None:
    """Bring the database to the schema of this version; run it again after TimescaleDB was added.

    \b
    mdp store upgrade
    mdp store upgrade --compress-after 14d --retention 730d
    """
    from market_data_core.errors import UsageError
    from market_data_store import schema
    from market_data_store.timescale import Policies

    try:
        policies = Policies(
            _duration("--compress-after", compress_after),
            None if retention is None else _duration("--retention", "0" if retention == "off" else retention),
        )
    except ValueError as error:
        raise UsageError(f"--compress-after, --retention: {error}") from None
    found = schema.upgrade(context.store_url(context.settings(ctx)), revision, policies=policies)
    _report_current(ctx, found.version, found.missing)


@app.command(context_settings={"ignore_unknown_options": True})
def downgrade(
    ctx: typer.Context,
    revision: Annotated[str, typer.Argument(help="Migration to go down to, such as 0002, -1 or base.")],
) -> None:
    """Undo migrations, with the data of the tables that they made.

    \b
    mdp store downgrade 0003
    """
    from market_data_store import schema

    schema.downgrade(context.store_url(context.settings(ctx)), revision)
    _report_current(ctx, None, None)


@app.command()
def current(ctx: typer.Context) -> None:
    """Which migration the database is at."""
    _report_current(ctx, None, None)


@app.command()
def check(ctx: typer.Context) -> None:
    """Compare the database with what this version declares. Exit code 1 when they differ."""
    from market_data_store import schema

    problems = schema.check(context.store_url(context.settings(ctx)))
    if context.options(ctx).json:
        context.emit({"ok": not problems, "problems": problems})
    else:
        for problem in problems or ["the database is as declared"]:
            context.console().print(problem, markup=False)
    if problems:
        raise typer.Exit(1)


@app.command()
def bars(
    ctx: typer.Context,
    symbol: Symbols = None,
    interval: Annotated[
        str | None,
        typer.Option("--interval", metavar="D", help="Length of the bars (default: micro_batch.window_ms)."),
    ] = None,
    start: From = None,
    end: To = None,
    provider: Provider = None,
    format: BatchFormatOption = None,
    output: Output = None,
) -> None:
    """Stored bars, ordered by symbol and time.

    \b
    mdp store bars --symbol SPY --interval 60s --from 2013-10-07 --to 2013-10-08 --format csv
    mdp store bars --interval 1m --format parquet --output bars.parquet
    """
    from market_data_core.events import format_interval
    from market_data_pipeline.cli import store_formats

    settings = context.settings(ctx)
    length = settings.micro_batch.window_ms * 10**6
    if interval is not None:
        length = spans.length("--interval", interval)
    since, until = spans.span(start, end)
    chosen = store_formats.chosen(ctx, format)

    async def show() -> None:
        async with await context.open_store(settings) as store:
            pages = store.bar_pages(
                spans.names(symbol),
                interval=format_interval(length),
                provider=provider,
                start=since,
                end=until,
            )
            with store_formats.bar_writer(chosen, output) as write:
                async for page in pages:
                    write(page)

    context.run(show())


@app.command()
def signals(
    ctx: typer.Context,
    symbol: Symbols = None,
    name: Annotated[str | None, typer.Option("--name", metavar="N", help="Only signals called so.")] = None,
    start: From = None,
    end: To = None,
    provider: Provider = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many.")] = None,
    format: BatchFormatOption = None,
    output: Output = None,
) -> None:
    """Stored signals, ordered by symbol, time, provider and name.

    Columns: provider,symbol,ts,name,value,score,meta (in CSV ts as RFC 3339 UTC; meta as JSON, or empty).

    \b
    mdp store signals --symbol SPY --name vwap_cross_up
    mdp store signals --from 2025-10-24 --to 2025-10-25 --format csv > signals.csv
    mdp store signals --format parquet --output signals.parquet
    """
    from itertools import islice

    from market_data_pipeline.cli import store_formats
    from market_data_store.client import PAGE

    settings = context.settings(ctx)
    since, until = spans.span(start, end)
    chosen = store_formats.chosen(ctx, format)

    async def show() -> None:
        left = limit
        async with await context.open_store(settings) as store:
            pages = store.signal_pages(
                symbols=spans.names(symbol),
                provider=provider,
                name=name,
                start=since,
                end=until,
                page=min(limit or PAGE, PAGE),
            )
            with store_formats.signal_writer(chosen, output) as write:
                async for page in pages:
                    write(list(islice(page, left)))
                    if left is not None:
                        left -= min(left, len(page))
                        if not left:
                            break

    context.run(show())


@app.command()
def jobs(
    ctx: typer.Context,
    job: Annotated[str | None, typer.Option("--job", metavar="NAME", help="Only runs of this job.")] = None,
    outcome: Annotated[
        str | None,
        typer.Option(
            "--outcome", metavar="O", help="running, done, failed, interrupted or abandoned; else all."
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 20,
    format: FormatOption = None,
) -> None:
    """The log of runs, newest first. A run that is not heard of any more is abandoned.

    \b
    mdp store jobs --outcome failed
    """
    from market_data_core.errors import UsageError
    from market_data_pipeline.cli import store_formats
    from market_data_store.job_runs import OUTCOMES

    if outcome is not None and outcome not in OUTCOMES:
        raise UsageError(f"--outcome: must be one of {', '.join(OUTCOMES)} (got {outcome!r})")
    settings = context.settings(ctx)
    chosen = store_formats.chosen(ctx, format)

    async def read() -> list[dict[str, Any]]:
        async with await context.open_store(settings) as store:
            return [_job(found) for found in await store.jobs(outcome=outcome, job=job, limit=limit)]

    found = context.run(read())
    columns = ("id", "job", "outcome", "started_at", "finished_at", "host", "pid", "counters", "error")
    store_formats.show(chosen, columns, found)


def _job(record: JobRecord) -> dict[str, Any]:
    from dataclasses import asdict

    row = asdict(record)
    for name in ("started_at", "heartbeat_at", "finished_at"):
        if row[name] is not None:
            row[name] = f"{row[name]:%Y-%m-%dT%H:%M:%SZ}"
    return row


def _report_current(ctx: typer.Context, version: str | None, missing: str | None) -> None:
    from market_data_store import schema

    state = schema.current(context.store_url(context.settings(ctx)))
    version, missing = version or state.timescale.version, missing or state.timescale.missing
    if context.options(ctx).json:
        context.emit(
            {
                "revision": state.revision,
                "head": state.head,
                "up_to_date": state.up_to_date,
                "timescaledb": version,
                "timescaledb_missing": missing,
            }
        )
        return
    at = "empty" if state.revision is None else f"at {state.revision}"
    fix = "" if state.up_to_date else f"; this mdp needs {state.head}: run `mdp store upgrade`"
    context.console().print(f"the schema is {at}{fix}", markup=False)
    context.console().print(f"TimescaleDB: {version or f'not used, {missing}'}", markup=False)


def _duration(option: str, text: str) -> timedelta:
    from datetime import timedelta

    if text == "0":
        return timedelta()
    return timedelta(seconds=context.seconds(option, text) or 0)
