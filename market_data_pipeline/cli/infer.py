"""``mdp stream infer``: bars of the bus become signals, on the bus and in the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from market_data_pipeline.cli import context

if TYPE_CHECKING:
    from market_data_core.config import Settings


def infer(
    ctx: typer.Context,
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter",
            metavar="NAME",
            help="What decides: rules, sklearn, or an installed adapter. Without it, what the configuration enables.",
        ),
    ] = None,
    interval: Annotated[
        str | None,
        typer.Option(
            "--interval", metavar="DURATION", help="Bars to decide on, such as 2s (inference.interval)."
        ),
    ] = None,
    topic: Annotated[
        str | None,
        typer.Option("--topic", metavar="T", help="Topic of bars to read (bus.redis.bars_stream)."),
    ] = None,
    group: Annotated[
        str | None, typer.Option("--group", metavar="G", help="Consumer group (inference.group).")
    ] = None,
    until_idle: Annotated[
        str | None,
        typer.Option("--until-idle", metavar="DURATION", help="End when nothing has come for so long."),
    ] = None,
) -> None:
    """Make signals of the bars on the bus, by rules or a model, and store and publish them exactly once.

    \b
    mdp stream infer --adapter rules
    mdp stream infer --adapter sklearn --until-idle 5s
    """
    from market_data_core.config_files import Given
    from market_data_core.errors import UsageError
    from market_data_pipeline.cli.inferring import adapter_of

    settings = context.settings(
        ctx,
        Given("--interval", "inference.interval", interval),
        Given("--topic", "bus.redis.bars_stream", topic),
        Given("--group", "inference.group", group),
    )
    chosen = adapter or adapter_of(settings)
    if chosen is None:
        raise UsageError("no adapter is enabled in inference.adapters: enable one, or name it with --adapter")
    idle = context.seconds("--until-idle", until_idle)
    context.run(_consume(settings, chosen, idle, context.options(ctx).json))


async def _consume(settings: Settings, adapter: str, until_idle: float | None, as_json: bool) -> None:
    import asyncio
    import contextlib
    import time

    from market_data_pipeline import telemetry, tracing
    from market_data_pipeline.cli import batching
    from market_data_pipeline.cli.inferring import deciding, inference
    from market_data_pipeline.consumers.signal_stats import SignalStats
    from market_data_pipeline.consumers.stats import Observers

    stats, health = SignalStats(), telemetry.Health()
    metrics = telemetry.Metrics(settings.telemetry.max_symbols)
    redis = settings.bus.redis
    told = telemetry.InferenceMetrics(metrics, redis.bars_stream)
    me = telemetry.Membership(redis.bars_stream, settings.inference.group, batching.member_name(settings))
    started = time.monotonic()
    with (
        tracing.traces(settings, "infer") as traces,
        telemetry.exporter(metrics, settings.telemetry.metrics_port, settings.telemetry.metrics_host, health),
    ):
        async with (
            deciding(settings, adapter, told) as decider,
            await context.open_bus(settings) as bus,
            await batching.store_of(settings) as store,
        ):
            await batching.topic_of(bus, redis.bars_stream, redis.partitions)
            consumer = inference(
                settings, decider, bus, store, Observers(stats, told), told, member=me.member, traces=traces
            )
            with contextlib.suppress(asyncio.CancelledError):
                async with (
                    telemetry.watching(metrics, health, bus, store.ping, [me]),
                    batching.tracked(store, "infer", stats.summary),
                    batching.trimming(
                        settings, bus, [redis.bars_stream, redis.signals_stream], telemetry.trimmed(metrics)
                    ),
                ):
                    await batching.until_stopped(consumer, until_idle)
    # Here and not in the caller, which does not go on after Ctrl-C.
    summary = {"seconds": round(time.monotonic() - started, 3), "adapter": adapter, **stats.summary()}
    if as_json:
        context.emit(summary)
    else:
        _say(summary)


def _say(summary: dict[str, Any]) -> None:
    context.say(
        f"{summary['bars']:,} bars, {summary['signals_stored']:,} signals stored, "
        f"{summary['signals_unchanged']:,} unchanged, {summary['signals_withdrawn']:,} withdrawn, "
        f"{summary['dead_lettered']:,} dead letters in {summary['seconds']:.1f} s"
    )
    for name, count in summary["signals_by_name"].items():
        context.say(f"  {count:>9,}  {name}")
