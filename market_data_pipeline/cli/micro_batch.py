"""``mdp stream micro-batch``: events of the bus become bars in the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from market_data_pipeline.cli import context

if TYPE_CHECKING:
    from market_data_core.config import Settings


def micro_batch(
    ctx: typer.Context,
    window: Annotated[
        str | None, typer.Option("--window", metavar="DURATION", help="Length of a window, such as 2s or 1m.")
    ] = None,
    topic: Annotated[
        str | None, typer.Option("--topic", metavar="T", help="Topic to read (bus.redis.stream).")
    ] = None,
    group: Annotated[
        str | None, typer.Option("--group", metavar="G", help="Consumer group (bus.redis.consumer_group).")
    ] = None,
    until_idle: Annotated[
        str | None,
        typer.Option(
            "--until-idle",
            metavar="DURATION",
            help="End when nothing has come for so long, every window closed.",
        ),
    ] = None,
) -> None:
    """Make OHLCV bars of the events on the bus and store them exactly once.

    \b
    mdp stream micro-batch --window 2s
    mdp stream micro-batch --window 1m --until-idle 5s
    """
    from market_data_core.config_files import Given

    settings = context.settings(
        ctx,
        Given("--window", "micro_batch.window_ms", window),
        Given("--topic", "bus.redis.stream", topic),
        Given("--group", "bus.redis.consumer_group", group),
    )
    idle = context.seconds("--until-idle", until_idle)
    context.run(_consume(settings, idle, context.options(ctx).json))


async def _consume(settings: Settings, until_idle: float | None, as_json: bool) -> None:
    import asyncio
    import contextlib
    import time

    from market_data_pipeline import telemetry, tracing
    from market_data_pipeline.cli import batching
    from market_data_pipeline.consumers.stats import Observers, RunStats

    stats, health = RunStats(), telemetry.Health()
    metrics = telemetry.Metrics(settings.telemetry.max_symbols)
    redis, batch = settings.bus.redis, settings.micro_batch
    me = telemetry.Membership(redis.stream, redis.consumer_group, batching.member_name(settings))
    observer = Observers(
        stats, telemetry.MetricsObserver(metrics, redis.stream, batch.window_ms, batch.allow_late_ms)
    )
    started = time.monotonic()
    with (
        tracing.traces(settings, "micro-batch") as traces,
        telemetry.exporter(metrics, settings.telemetry.metrics_port, settings.telemetry.metrics_host, health),
    ):
        async with (
            await context.open_bus(settings) as bus,
            await batching.store_of(settings) as store,
        ):
            await batching.topic_of(bus, redis.stream, redis.partitions)
            consumer = batching.micro_batcher(settings, bus, store, observer, member=me.member, traces=traces)
            with contextlib.suppress(asyncio.CancelledError):
                async with (
                    telemetry.watching(metrics, health, bus, store.ping, [me]),
                    batching.tracked(store, "micro-batch", stats.summary),
                    batching.trimming(
                        settings, bus, [redis.stream, redis.bars_stream], telemetry.trimmed(metrics)
                    ),
                ):
                    await batching.until_stopped(consumer, until_idle)
    # Here and not in the caller, which does not go on after Ctrl-C.
    summary = {"seconds": round(time.monotonic() - started, 3), **stats.summary()}
    if as_json:
        context.emit(summary)
    else:
        _say(summary)


def _say(summary: dict[str, Any]) -> None:
    delay = summary["window_delay_ms"]["p95"]
    context.say(
        f"{summary['events']:,} events, {summary['bars_stored']:,} bars stored, {summary['bars_amended']:,} amended, "
        f"{summary['bars_unchanged']:,} unchanged, {summary['duplicates']:,} duplicates, {summary['late']:,} late, "
        f"{summary['dead_lettered']:,} dead letters in {summary['seconds']:.1f} s"
        + ("" if delay is None else f"; p95 of window delay {delay:.0f} ms")
    )
