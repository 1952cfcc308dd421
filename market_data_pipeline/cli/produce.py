"""``mdp stream produce``: a provider's events onto the bus."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from market_data_pipeline.cli import context

if TYPE_CHECKING:
    from market_data_core.config import Settings
    from market_data_pipeline.producers.counts import Counts
    from market_data_pipeline.producers.pacing import Pace
    from market_data_pipeline.producers.provider import Provider
    from market_data_pipeline.producers.runner import RunnerOptions

BadRowsOption = Annotated[
    str,
    typer.Option(
        "--bad-rows",
        metavar="fail|dlq|skip",
        help="What a row does that is no event: end the run, go to the dead letters, or only be counted.",
    ),
]
CodecOption = Annotated[
    str | None, typer.Option("--codec", metavar="frame|json|msgpack", help="How to write (bus.codec).")
]
MetricsOption = Annotated[
    int,
    typer.Option(
        "--metrics-port", metavar="PORT", min=0, max=65_535, help="Serve Prometheus metrics there; 0: do not."
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option("--preset", metavar="lean", help="Layout of the files: lean for QuantConnect LEAN trades."),
]
SymbolsOption = Annotated[
    str | None, typer.Option("--symbols", metavar="A,B", help="Only these, separated by commas.")
]
TopicOption = Annotated[str | None, typer.Option("--topic", metavar="T", help="Topic (bus.redis.stream).")]


def produce(
    ctx: typer.Context,
    provider: Annotated[
        str, typer.Option("--provider", metavar="NAME", help="synthetic, dataset, or an installed one.")
    ],
    symbols: SymbolsOption = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="N", help="Events a second over all symbols; 0: as fast as possible."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", help="End after N events.")] = None,
    duration: Annotated[
        str | None, typer.Option("--duration", metavar="D", help="End after so long, such as 30s.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Synthetic: the same prices again.")
    ] = None,
    start_time: Annotated[
        str | None,
        typer.Option("--start-time", metavar="T", help="Synthetic: event time begins at T, not now."),
    ] = None,
    disorder: Annotated[
        str | None, typer.Option("--disorder", metavar="D", help="Synthetic: out of order by up to D.")
    ] = None,
    late: Annotated[
        float, typer.Option("--late", metavar="SHARE", help="Synthetic: share that comes 10 s late.")
    ] = 0.0,
    duplicates: Annotated[
        float | None, typer.Option("--duplicates", metavar="SHARE", help="Synthetic: share published twice.")
    ] = None,
    gaps: Annotated[
        float | None, typer.Option("--gaps", metavar="SHARE", help="Synthetic: share left out, in silences.")
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option("--dataset", metavar="NAME|FILE", help="Dataset: what to read; may be repeated."),
    ] = None,
    preset: PresetOption = None,
    provider_name: Annotated[
        str | None, typer.Option("--provider-name", metavar="NAME", help="Provider written into the events.")
    ] = None,
    topic: TopicOption = None,
    codec: CodecOption = None,
    bad_rows: BadRowsOption = "fail",
    metrics_port: MetricsOption = 0,
) -> None:
    """Publish a provider's events, live.

    \b
    mdp stream produce --provider synthetic --symbols SPY,AAPL --rate 1000
    mdp stream produce --provider synthetic --rate 0 --limit 1000000 --seed 42
    mdp stream produce --provider dataset --dataset trades.zip --preset lean
    """
    from market_data_core.config_files import Given
    from market_data_core.errors import UsageError
    from market_data_pipeline.producers.pacing import EventTimePace, RatePace, Unpaced
    from market_data_pipeline.producers.provider import ProviderRequest, load_provider
    from market_data_pipeline.producers.replay import parse_moment

    settings = context.settings(
        ctx,
        Given("--topic", "bus.redis.stream", topic),
        Given("--codec", "bus.codec", codec),
        Given("--disorder", "producers.synthetic.disorder_ms", disorder),
        Given("--duplicates", "producers.synthetic.duplicate_ratio", duplicates),
        Given("--gaps", "producers.synthetic.gap_ratio", gaps),
    )
    if rate is not None and not 0 <= rate <= 1e9:
        raise UsageError(f"--rate: must be 0 (as fast as possible) or more events a second (got {rate:g})")
    if limit is not None and limit < 0:
        raise UsageError(f"--limit: must be 0 or more events (got {limit})")
    if not 0 <= late < 1:
        raise UsageError(f"--late: must be a share from 0 up to, not including, 1 (got {late:g})")
    synthetic = provider == "synthetic"
    request = ProviderRequest(
        settings,
        symbols=split(symbols),
        rate=rate,
        limit=limit,
        seed=seed,
        start_ts=None if start_time is None else parse_moment("--start-time", start_time),
        name=provider_name,
        datasets=tuple(dataset or ()),
        preset=preset,
        options={"late_ratio": str(late)} if late else {},
    )
    source = load_provider(provider)(request)
    pace: Pace = Unpaced()
    if synthetic and (rate or (rate is None and settings.producers.synthetic.tick_rate)):
        pace = EventTimePace(1.0, "ingest_ts", request.clock if start_time is None else None)
    elif rate and not synthetic:
        if not source.can_wait:
            raise UsageError(
                f"--rate: {provider} is a live feed, whose pace is its own; leave the option out"
            )
        pace = RatePace(rate)
    options = runner_options(
        settings,
        bad_rows,
        limit=None if synthetic else limit,
        duration_s=context.seconds("--duration", duration),
    )

    async def main() -> None:
        # Said here, since nothing is returned after Ctrl-C.
        finish(ctx, await publish(ctx, settings, source, pace, options, limit, metrics_port, spooling=True))

    context.run(main())


def split(symbols: str | None) -> tuple[str, ...]:
    """The names of a list with commas; none when the option was not given.

    Raises:
        UsageError: it was given, without a name.
    """
    from market_data_core.errors import UsageError

    names = tuple(s.strip().upper() for s in (symbols or "").split(",") if s.strip())
    if symbols is not None and not names:
        raise UsageError(f"--symbols: must name at least one symbol, such as SPY,AAPL (got {symbols!r})")
    return names


def runner_options(settings: Settings, bad_rows: str, **others: Any) -> RunnerOptions:
    """The options of the runner that come from the settings, and ``others``."""
    from market_data_core.errors import UsageError
    from market_data_pipeline.producers.runner import RunnerOptions

    if bad_rows not in ("fail", "dlq", "skip"):
        raise UsageError(f"--bad-rows: must be fail, dlq or skip (got {bad_rows!r})")
    return RunnerOptions(
        partitions=settings.bus.redis.partitions,
        codec=settings.bus.codec,
        bad_rows=bad_rows,  # type: ignore[arg-type]
        **others,
    )


async def publish(
    ctx: typer.Context,
    settings: Settings,
    source: Provider,
    pace: Pace,
    options: RunnerOptions,
    total: int | None,
    metrics_port: int,
    *,
    spooling: bool,
) -> tuple[Counts, bool]:
    """Run the producer to its end, or until Ctrl-C; what it did, and whether it was interrupted."""
    import asyncio
    import sys

    from structlog.contextvars import bind_contextvars

    from market_data_pipeline import telemetry, tracing
    from market_data_pipeline.producers import progress
    from market_data_pipeline.producers.counts import ProducerObserver
    from market_data_pipeline.producers.runner import ProducerRunner
    from market_data_pipeline.producers.spool import Spool

    topic = settings.bus.redis.stream
    metrics, health = telemetry.Metrics(settings.telemetry.max_symbols), telemetry.Health()
    told: ProducerObserver = telemetry.ProducerMetrics(metrics, settings.bus.type)
    on_terminal = sys.stderr.isatty() and not context.options(ctx).json
    async with await context.open_bus(settings) as bus:
        spool = None
        if spooling:
            spool = Spool.open(
                spool_folder(settings), f"{source.name}.{topic}", settings.producers.spool.max_bytes
            )
        try:
            with (
                tracing.traces(settings, "produce") as traces,
                telemetry.exporter(
                    metrics,
                    metrics_port,
                    settings.telemetry.metrics_host,
                    health,
                    option="--metrics-port",
                ),
                progress.shown(source.name, total, told, on_terminal=on_terminal) as observer,
            ):
                bind_contextvars(
                    provider=source.name, lane=options.lane(source.name) or f"live/{source.name}"
                )
                runner = ProducerRunner(
                    traces.producing(bus),
                    source,
                    topic,
                    options,
                    pace=pace,
                    spool=spool,
                    observer=observer,
                )
                async with telemetry.watching(metrics, health, bus):
                    task = asyncio.create_task(runner.run())
                    try:
                        return await asyncio.shield(task), False
                    except asyncio.CancelledError:
                        runner.stop()
                        return await task, True
        finally:
            if spool is not None:
                spool.close()


def spool_folder(settings: Settings) -> Path:
    """Where producers keep events while the bus is away."""
    from market_data_pipeline import embedded

    given = settings.producers.spool.path
    return Path(given).expanduser() if given else embedded.home() / "spool"


def finish(ctx: typer.Context, done: tuple[Counts, bool], **more: Any) -> None:
    """Print the summary."""
    counts, interrupted = done
    if context.options(ctx).json:
        summary = {**asdict(counts), "rate": round(counts.rate, 1), "interrupted": interrupted, **more}
        summary["seconds"] = round(counts.seconds, 3)
        del summary["newest"]
        context.emit(summary)
        return
    said = (
        f"{counts.published:,} events of {counts.provider} on {counts.topic} in {counts.seconds:.1f} s "
        f"({counts.rate:,.0f}/s, {counts.records:,} records, {counts.bytes / 1e6:,.1f} MB)"
    )
    for number, what in (
        (counts.bad_rows, "bad rows"),
        (counts.dropped, "dropped for want of room"),
        (counts.spool_events, "left in the spool for the next start"),
        (counts.unpublished, "taken but not published"),
    ):
        if number:
            said += f"; {number:,} {what}"
    context.say(said)
