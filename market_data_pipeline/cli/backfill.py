"""``mdp backfill``: bars of months of files, straight into the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from market_data_pipeline.cli import context
from market_data_pipeline.cli.produce import PresetOption, SymbolsOption, split

if TYPE_CHECKING:
    from market_data_core.config import Settings
    from market_data_pipeline.backfill.engine import Engine
    from market_data_pipeline.backfill.totals import Totals
    from market_data_pipeline.producers.dataset import Named
    from market_data_pipeline.producers.replay import Range

app = typer.Typer(rich_markup_mode=None)
_TOLD = 20


@app.command()
def backfill(
    ctx: typer.Context,
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset", metavar="NAME|PATH", help="A configured dataset, a file, or a pattern of files."
        ),
    ],
    preset: PresetOption = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="T", help="First event time, such as 2025-10-01.")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="T", help="Event time before which it ends.")
    ] = None,
    window: Annotated[
        str | None,
        typer.Option("--window", metavar="W", help="Length of a bar; a divisor of a day, such as 1m."),
    ] = None,
    symbols: SymbolsOption = None,
    engine: Annotated[
        str,
        typer.Option("--engine", metavar="local|ray", help="Processes of this machine, or a Ray cluster."),
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", help="Tasks at once; without it one for each CPU."),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            metavar="A",
            help="Of the Ray cluster, such as auto; without it one is started here.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Pass over what a run before has finished.")
    ] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Replace stored bars even by bars of fewer events.")
    ] = False,
    bad_rows: Annotated[
        str,
        typer.Option(
            "--bad-rows",
            metavar="fail|skip",
            help="What a row does that is no event: fail its task, or be counted.",
        ),
    ] = "fail",
    provider_name: Annotated[
        str | None,
        typer.Option("--provider-name", metavar="NAME", help="Provider written into the bars."),
    ] = None,
) -> None:
    """Make the bars of files by many processes and store them; no bus is needed, nothing is published.

    The bars are those of `mdp stream replay` and a micro-batcher. Work is cut by symbol and UTC day. A run that was
    interrupted goes on where it was; a file that has changed is done again.

    \b
    mdp backfill --dataset 'ticks/*_trade.zip' --preset lean --window 1m
    mdp backfill --dataset spy_history --from 2025-07-01 --to 2025-10-01 --window 1m --workers 8
    mdp backfill --dataset spy_history --window 1m --engine ray --ray-address auto --json
    """
    from market_data_core.config_files import Given
    from market_data_core.errors import UsageError
    from market_data_core.events import format_interval
    from market_data_pipeline.producers.dataset import find_dataset
    from market_data_pipeline.producers.layout import DAY
    from market_data_pipeline.producers.replay import parse_range

    settings = context.settings(ctx, Given("--window", "micro_batch.window_ms", window))
    window_ns = settings.micro_batch.window_ms * 1_000_000
    if DAY % window_ns:
        raise UsageError(
            f"--window: {format_interval(window_ns)} does not divide a day, and a task is a day; use one that does, "
            "such as 1s, 1m, 5m or 1h"
        )
    if engine not in ("local", "ray"):
        raise UsageError(f"--engine: must be local or ray (got {engine!r})")
    if ray_address is not None and engine != "ray":
        raise UsageError("--ray-address: only --engine ray has one; add it, or leave the address out")
    if workers is not None and not 1 <= workers <= 4096:
        raise UsageError(f"--workers: must be from 1 to 4096 (got {workers})")
    if bad_rows not in ("fail", "skip"):
        raise UsageError(f"--bad-rows: must be fail or skip (got {bad_rows!r})")
    named = find_dataset(settings, dataset, preset, provider_name)
    if named.dataset.format == "store":
        raise UsageError("--dataset: stored bars are no files; use mdp stream replay --dataset store")
    asked = parse_range(start, end, window_ns)
    used = _engine(engine, workers, ray_address, settings)
    wanted = frozenset(split(symbols))

    async def main() -> None:
        # Said here, since nothing is returned after Ctrl-C.
        totals, seconds = await _run(
            ctx, settings, dataset, named, asked, used, wanted, resume, force, bad_rows == "skip"
        )
        _finish(ctx, totals, seconds)

    context.run(main())


def _engine(name: str, workers: int | None, address: str | None, settings: Settings) -> Engine:
    if name == "ray":
        from market_data_pipeline.backfill.ray_engine import RayEngine

        return RayEngine(address, workers)
    from market_data_pipeline.backfill.local_engine import LocalEngine

    return LocalEngine(workers, settings.telemetry.log_level)


async def _run(
    ctx: typer.Context,
    settings: Settings,
    given: str,
    named: Named,
    asked: Range,
    engine: Engine,
    symbols: frozenset[str],
    resume: bool,
    force: bool,
    skip_bad_rows: bool,
) -> tuple[Totals, float]:
    """Do it, or until Ctrl-C what is under way; the totals, and how many seconds it took."""
    import asyncio
    import sys
    import time

    from market_data_core.clock import SystemClock
    from market_data_pipeline.backfill import progress
    from market_data_pipeline.backfill.coordinator import Coordinator, Limits
    from market_data_pipeline.backfill.desk import Desk
    from market_data_pipeline.backfill.plan import Plan
    from market_data_pipeline.backfill.task import DONE_LANE, topic_of
    from market_data_pipeline.backfill.totals import Totals
    from market_data_pipeline.cli import batching

    totals, batch = Totals(), settings.micro_batch
    started = time.monotonic()
    place = given if given in settings.datasets else str(settings.locate(given).absolute())
    async with await context.open_store(settings) as store:
        desk = Desk(
            store_url=await asyncio.to_thread(context.store_url, settings),
            timeout_s=settings.store.statement_timeout_ms / 1000 or context.NO_LIMIT_SECONDS,
            topic=topic_of(place, batch.window_ms * 1_000_000),
            window_ns=batch.window_ms * 1_000_000,
            kinds=batch.kinds,
            horizon_ns=batch.dedupe_horizon_ms * 1_000_000,
            force=force,
            skip_bad_rows=skip_bad_rows,
            resume=resume,
        )
        finished = await store.read_offsets(desk.topic, DONE_LANE) if resume else {}
        plan = Plan(asked, (desk.window_ns, desk.kinds, force, skip_bad_rows), finished)
        limits = Limits(symbols, batch.max_future_ms * 1_000_000)
        files = await asyncio.to_thread(_files, settings, named, asked, totals)
        on_terminal = sys.stderr.isatty() and not context.options(ctx).json
        async with batching.tracked(store, "backfill", totals.counters), engine:
            with progress.shown(given, totals, on_terminal=on_terminal) as draw:
                coordinator = Coordinator(engine, desk, plan, limits, totals, SystemClock(), draw)
                task = asyncio.create_task(coordinator.run(files))
                try:
                    await asyncio.shield(task)
                except asyncio.CancelledError:
                    totals.interrupted = True
                    coordinator.stop()
                    await task
    totals.cpu["main"] = time.process_time()
    return totals, time.monotonic() - started


def _files(settings: Settings, named: Named, asked: Range, totals: Totals) -> list[Any]:
    """The files whose names do not say that they are outside of the range; what is wrong with others is a failure."""
    from market_data_core.errors import DatasetError
    from market_data_pipeline.producers.sources import files_in, paths_of

    out = []
    for path in paths_of(named.dataset.path, settings.locate, named.key):
        try:
            found = files_in(path, named.dataset, named.provider, named.key)
        except DatasetError as error:
            totals.files += 1
            totals.files_scanned += 1
            totals.fail(None, None, str(error))
            continue
        for file in found:
            first, last = file.layout.earliest, file.layout.end
            before = last is not None and asked.start is not None and last <= asked.start
            after = first is not None and asked.end is not None and first >= asked.end
            if not before and not after:
                out.append(file)
    return out


def _finish(ctx: typer.Context, totals: Totals, seconds: float) -> None:
    """Print the summary; exit with 1 when something was not done."""
    if context.options(ctx).json:
        rate = round(totals.events / seconds, 1) if seconds else 0.0
        context.emit({**totals.summary(), "seconds": round(seconds, 3), "events_per_second": rate})
    else:
        _say(totals, seconds)
    if totals.failed:
        context.fail(
            f"{totals.failed:,} of {max(totals.tasks, totals.failed):,} tasks failed; correct what is said of "
            "them and run the same command again, which does only what is missing"
        )


def _say(totals: Totals, seconds: float) -> None:
    from market_data_pipeline.backfill.totals import MOST_FAILURES

    for failure in totals.failures[:_TOLD]:
        what = f"{failure.symbol} {failure.date}: " if failure.symbol else ""
        context.say(f"failed: {what}{failure.reason}")
    if totals.failed > _TOLD:
        context.say(f"failed: {totals.failed - _TOLD:,} more; --json tells up to {MOST_FAILURES:,}")
    said = (
        f"{totals.done:,} of {totals.tasks:,} tasks done, {totals.skipped:,} finished before; "
        f"{totals.events:,} events; bars: {totals.bars_inserted:,} inserted, {totals.bars_amended:,} amended, "
        f"{totals.bars_unchanged:,} unchanged; {seconds:.1f} s, {sum(totals.cpu.values()):.1f} s of CPU, "
        f"{totals.events / max(seconds, 1e-9):,.0f} events/s"
    )
    for number, what in (
        (totals.bars_refused, "bars kept out by stored ones of more events"),
        (totals.duplicates, "duplicates"),
        (totals.bad_rows, "bad rows"),
        (totals.behind_horizon, "rows further behind than the stream would take them"),
        (totals.workers_lost, "workers lost"),
    ):
        if number:
            said += f"; {number:,} {what}"
    context.say(said)
