"""``mdp stream replay``: history onto the bus, on lanes of its own."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from market_data_pipeline.cli import context
from market_data_pipeline.cli.produce import (
    BadRowsOption,
    CodecOption,
    MetricsOption,
    PresetOption,
    SymbolsOption,
    TopicOption,
    finish,
    publish,
    runner_options,
    split,
)

if TYPE_CHECKING:
    from market_data_core.config import Settings
    from market_data_pipeline.producers.dataset import Named
    from market_data_pipeline.producers.pacing import Pace
    from market_data_pipeline.producers.provider import Provider
    from market_data_pipeline.producers.replay import Range


def replay(
    ctx: typer.Context,
    dataset: Annotated[
        list[str],
        typer.Option(
            "--dataset",
            metavar="NAME|FILE|store",
            help="What to replay; may be repeated, files are merged by time.",
        ),
    ],
    start: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="T", help="First event time, such as 2025-10-01 or 2025-10-01T14:30:00Z."
        ),
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="T", help="Event time before which it ends.")
    ] = None,
    speed: Annotated[
        str, typer.Option("--speed", metavar="max|N", help="So many times as fast as it happened.")
    ] = "max",
    window: Annotated[
        str | None,
        typer.Option("--window", metavar="W", help="Only the whole windows of this length within the range."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace stored bars even by bars of fewer events.")
    ] = False,
    symbols: SymbolsOption = None,
    preset: PresetOption = None,
    interval: Annotated[
        str | None, typer.Option("--interval", metavar="I", help="Of stored bars to replay, such as 1m.")
    ] = None,
    provider_name: Annotated[
        str | None,
        typer.Option(
            "--provider-name",
            metavar="NAME",
            help="Provider written into the events; of stored bars: only its.",
        ),
    ] = None,
    topic: TopicOption = None,
    codec: CodecOption = None,
    bad_rows: BadRowsOption = "fail",
    metrics_port: MetricsOption = 0,
) -> None:
    """Publish history into the live topic without disturbing what is live there.

    Times without a zone are UTC. Stored bars only change where the replay has at least as many events for them;
    interrupted, it goes on to the end of the window it is in.

    \b
    mdp stream replay --dataset spy_1day_history --from 2025-10-01 --to 2025-10-02
    mdp stream replay --dataset trades.zip --preset lean --speed 10
    mdp stream replay --dataset store --interval 1m --from 2025-10-01 --to 2025-10-02
    """
    from market_data_core.config_files import Given
    from market_data_pipeline.producers.dataset import file_provider, find_dataset
    from market_data_pipeline.producers.pacing import EventTimePace, Unpaced
    from market_data_pipeline.producers.replay import new_run, parse_range, parse_speed, replay_lane

    settings = context.settings(
        ctx, Given("--topic", "bus.redis.stream", topic), Given("--codec", "bus.codec", codec)
    )
    window_s = context.seconds("--window", window)
    window_ns = None if window_s is None else round(window_s * 1e9)
    asked = parse_range(start, end, window_ns)
    times = parse_speed(speed)
    pace: Pace = Unpaced() if times is None else EventTimePace(times)
    run = new_run(_now())
    options = runner_options(
        settings,
        bad_rows,
        lane=replay_lane(run, force=force),
        end_lanes=True,
        finish_ns=window_ns or settings.micro_batch.window_ms * 1_000_000,
    )
    named = [find_dataset(settings, name, preset, provider_name) for name in dataset]
    wanted = split(symbols)

    async def main() -> None:
        # Said here, since nothing is returned after Ctrl-C.
        async with AsyncExitStack() as stack:
            source: Provider
            if len(named) == 1 and named[0].dataset.format == "store":
                source = await _stored(stack, settings, named[0], asked, wanted, interval, provider_name)
            else:
                source = file_provider(settings, named, symbols=wanted, start=asked.start, end=asked.end)
            done = await publish(ctx, settings, source, pace, options, None, metrics_port, spooling=False)
        finish(ctx, done, run=run)

    context.run(main())


def _now() -> int:
    from market_data_core.clock import SystemClock

    return SystemClock().now()


async def _stored(
    stack: AsyncExitStack,
    settings: Settings,
    named: Named,
    asked: Range,
    symbols: tuple[str, ...],
    interval: str | None,
    provider_name: str | None,
) -> Provider:
    from market_data_core.errors import UsageError
    from market_data_core.events import format_interval, parse_interval
    from market_data_pipeline.producers.stored import StoredBars

    dataset = named.dataset
    if asked.start is None or asked.end is None:
        raise UsageError("stored bars are replayed by range; add --from and --to")
    chosen = interval or (dataset.interval if "interval" in dataset.model_fields_set else None)
    if chosen is None:
        raise UsageError("stored bars are replayed by interval; add --interval, such as --interval 1m")
    try:
        chosen = format_interval(parse_interval(chosen))
    except ValueError as error:
        raise UsageError(f"--interval: {error}") from None
    provider = provider_name or (dataset.provider if "provider" in dataset.model_fields_set else None)
    wanted = symbols or ((dataset.symbol.upper(),) if dataset.symbol else ())
    store = await stack.enter_async_context(await context.open_store(settings))
    return StoredBars(store, chosen, asked.start, asked.end, wanted, provider)
