"""``mdp stream run``: produce, micro-batch and infer in one process, seen live and recounted at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from market_data_pipeline.cli import context

if TYPE_CHECKING:
    from market_data_core.config import Settings
    from market_data_core.config_files import Given
    from market_data_pipeline.audit import Audit, Verdict
    from market_data_pipeline.consumers.stats import RunStats
    from market_data_store.client import StoreClient

_IDLE_S = 0.3


def run(
    ctx: typer.Context,
    duration: Annotated[
        str | None, typer.Option("--duration", metavar="DURATION", help="End after so long, such as 30s.")
    ] = None,
    window: Annotated[
        str | None, typer.Option("--window", metavar="DURATION", help="Length of a window, such as 2s or 1m.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", metavar="N", help="Events a second, over all symbols.")
    ] = None,
    symbols: Annotated[
        str | None, typer.Option("--symbols", metavar="A,B", help="Symbols, separated by commas.")
    ] = None,
) -> None:
    """Run the whole pipeline in one process: synthetic events, the bus, bars and signals in the store.

    \b
    mdp stream run
    mdp stream run --duration 30s --window 1s --rate 100 --json
    """
    from market_data_core.config_files import Given

    given = (
        Given("--window", "micro_batch.window_ms", window),
        Given("--symbols", "producers.synthetic.symbols", None if symbols is None else symbols.split(",")),
    )
    settings = context.settings(ctx, *given)
    if rate is not None:
        settings = context.settings(ctx, *given, each(rate, len(settings.producers.synthetic.symbols)))
    context.run(pipeline_with_summary(ctx, settings, context.seconds("--duration", duration)))


def each(rate: float, symbols: int) -> Given:
    """``--rate``, events a second over all symbols, as the configuration has it: of one symbol.

    Raises:
        UsageError: it is negative.
    """
    from market_data_core.config_files import Given
    from market_data_core.errors import UsageError

    if not rate >= 0:
        raise UsageError(f"--rate: must be 0 (as fast as possible) or more, not {rate:g}")
    return Given("--rate", "producers.synthetic.tick_rate", rate / symbols)


async def pipeline_with_summary(ctx: typer.Context, settings: Settings, duration: float | None) -> bool:
    """Run the pipeline and print its summary, also after Ctrl-C; whether it ended by itself.

    Exits with 1 when the recount found a difference.
    """
    as_json = context.options(ctx).json
    summary = await pipeline(settings, duration, as_json)
    if as_json:
        context.emit(summary)
    else:
        _say(summary)
    if summary["lost"] or summary["duplicated"] or summary["different"]:
        context.fail("the stored bars differ from the recount of what was published; see `mdp store bars`")
    return not summary["interrupted"]


async def pipeline(settings: Settings, duration: float | None, as_json: bool) -> dict[str, Any]:
    """Produce for ``duration`` seconds, or until Ctrl-C, then drain, recount and sum up."""
    import asyncio
    import contextlib
    import sys
    import time

    from market_data_core.errors import UsageError
    from market_data_core.events import format_interval
    from market_data_pipeline import telemetry, tracing
    from market_data_pipeline.audit import Audit
    from market_data_pipeline.cli import batching
    from market_data_pipeline.cli.inferring import adapter_of, deciding, inference
    from market_data_pipeline.cli.live import LiveView, starting
    from market_data_pipeline.cli.producing import live_runner
    from market_data_pipeline.consumers.signal_stats import SignalStats
    from market_data_pipeline.consumers.stats import Observers, RunStats

    if not settings.producers.synthetic.enabled:
        raise UsageError(
            "producers.synthetic.enabled is false, and `stream run` has no other producer; set it to true"
        )
    stats, signals, audit = RunStats(), SignalStats(), Audit()
    redis, batch = settings.bus.redis, settings.micro_batch
    adapter = adapter_of(settings)
    metrics, health = telemetry.Metrics(settings.telemetry.max_symbols), telemetry.Health()
    members = [telemetry.Membership(redis.stream, redis.consumer_group, batching.member_name(settings))]
    observer = Observers(
        stats, telemetry.MetricsObserver(metrics, redis.stream, batch.window_ms, batch.allow_late_ms)
    )
    started = time.monotonic()
    interrupted = False
    on_terminal = not as_json and sys.stderr.isatty()
    interval = format_interval(batch.window_ms * 1_000_000)
    with (
        tracing.traces(settings, "run") as traces,
        telemetry.exporter(metrics, settings.telemetry.metrics_port, settings.telemetry.metrics_host, health),
        starting(_waited_for(settings), on_terminal=on_terminal) as started_up,
    ):
        async with contextlib.AsyncExitStack() as stack:
            told = telemetry.InferenceMetrics(metrics, redis.bars_stream)
            decider = None
            if adapter is not None:
                decider = await stack.enter_async_context(deciding(settings, adapter, told))
            bus = await stack.enter_async_context(await context.open_bus(settings))
            store = await stack.enter_async_context(await batching.store_of(settings))
            await batching.topic_of(bus, redis.stream, redis.partitions)
            consumers = [
                batching.micro_batcher(
                    settings, bus, store, observer, member=members[0].member, traces=traces
                )
            ]
            if decider is not None:
                await batching.topic_of(bus, redis.bars_stream, redis.partitions)
                me = telemetry.Membership(
                    redis.bars_stream, settings.inference.group, batching.member_name(settings)
                )
                consumers.append(
                    inference(
                        settings,
                        decider,
                        bus,
                        store,
                        Observers(signals, told),
                        told,
                        member=me.member,
                        traces=traces,
                    )
                )
                members.append(me)
            runner = live_runner(
                settings,
                traces.producing(bus),
                audit,
                duration,
                telemetry.ProducerMetrics(metrics, settings.bus.type),
            )
            view = LiveView(
                stats,
                signals,
                lambda: runner.counts.published,
                bus,
                redis.stream,
                redis.consumer_group,
                stages=_stages(settings, interval),
                interval=interval,
                duration=duration,
            )
            started_up()
            stop = asyncio.Event()
            consuming = [asyncio.create_task(consumer.run(stop)) for consumer in consumers]
            producing = asyncio.create_task(runner.run())
            async with (
                telemetry.watching(metrics, health, bus, store.ping, members),
                batching.tracked(store, "run", stats.summary),
                batching.trimming(
                    settings,
                    bus,
                    [redis.stream, redis.bars_stream, redis.signals_stream],
                    telemetry.trimmed(metrics),
                ),
                view.shown(on_terminal=on_terminal),
            ):
                try:
                    await asyncio.wait({producing, *consuming}, return_when=asyncio.FIRST_COMPLETED)
                except asyncio.CancelledError:
                    interrupted = True
                    runner.stop()
                failed = any(task.done() for task in consuming)
                if failed:
                    # A consumer ends by itself only with an error.
                    runner.stop()
                await asyncio.shield(producing)
                if interrupted or failed:
                    stop.set()
                # Signals come of the last bars, so the one is done before the other is told to end.
                for consumer, task in zip(consumers, consuming, strict=True):
                    if not stop.is_set():
                        consumer.end_when_idle(_IDLE_S)
                    await asyncio.shield(task)
            audit.only_first(runner.counts.taken)
            verdict = await recount(settings, store, stats, audit, everything=not interrupted)
    seconds = time.monotonic() - started
    return {
        "seconds": round(seconds, 3),
        "events_in": runner.counts.published,
        "events_per_second": round(runner.counts.rate, 1),
        "lost": verdict.lost,
        "duplicated": verdict.duplicated,
        "different": verdict.different,
        "audited_events": verdict.events,
        "audited_bars": verdict.bars,
        "interrupted": interrupted,
        **stats.summary(),
        **{name: value for name, value in signals.summary().items() if name.startswith("signals_")},
    }


def _waited_for(settings: Settings) -> str:
    if settings.bus.redis.uri and settings.store.url:
        return "connecting to the bus and the store"
    return "starting the embedded services; the first time takes some seconds"


def _stages(settings: Settings, interval: str) -> list[str]:
    from market_data_pipeline.cli.inferring import adapter_of

    signals = [] if adapter_of(settings) is None else ["signals"]
    return ["synthetic ticks", settings.bus.type, f"bars of {interval}", *signals, "PostgreSQL"]


async def recount(
    settings: Settings, store: StoreClient, stats: RunStats, audit: Audit, *, everything: bool
) -> Verdict:
    """Compare the published events with the stored bars; without ``everything`` only windows that had closed."""
    from market_data_core.events import format_interval
    from market_data_pipeline.audit import Verdict

    window_ns = settings.micro_batch.window_ms * 1_000_000
    provider = settings.producers.synthetic.provider
    closed = [w for (_, lane), w in stats.watermarks.items() if lane == f"live/{provider}"]
    span = audit.span(window_ns, None if everything else min(closed, default=0))
    if span is None:
        return Verdict(0, 0, 0, 0, 0)
    bars = await store.bars(
        list(settings.producers.synthetic.symbols),
        interval=format_interval(window_ns),
        provider=provider,
        start=span[0],
        end=span[1],
    )
    return audit.compare(bars, window_ns, *span)


def _say(summary: dict[str, Any]) -> None:
    delay = summary["window_delay_ms"]
    delays = "  ".join(f"{name} {value:,.0f} ms" for name, value in delay.items() if value is not None)
    rows = [
        ("events in", f"{summary['events_in']:,} ({summary['events_per_second']:,.0f}/s)"),
        ("bars stored", f"{summary['bars_stored']:,}"),
        ("bars amended", f"{summary['bars_amended']:,}"),
        ("window delay", delays or "no window closed"),
        ("signals stored", f"{summary['signals_stored']:,}"),
        ("late", f"{summary['late']:,}"),
        ("duplicates dropped", f"{summary['duplicates']:,}"),
        ("dead letters", f"{summary['dead_lettered']:,}"),
        ("lost", f"{summary['lost']:,}"),
        ("duplicated", f"{summary['duplicated']:,}"),
        ("different bars", f"{summary['different']:,}"),
    ]
    context.table(None, ["summary", ""], rows)
    wrong = summary["lost"] or summary["duplicated"] or summary["different"]
    found = "[bold red]✗ An independent recount[/]" if wrong else "[bold green]✓ An independent recount[/]"
    context.console().print(
        f"\n{found} of {summary['audited_events']:,} events in {summary['audited_bars']:,} bars "
        + ("found what is lost, duplicated or different." if wrong else "found the bars in the store exact.")
    )
    if summary["signals_by_name"]:
        names = ", ".join(f"{name} {count:,}" for name, count in summary["signals_by_name"].items())
        context.console().print(f"Signals: {names}.")
