"""``mdp demo``: the whole pipeline on the embedded services."""

from __future__ import annotations

from typing import Annotated

import typer

from market_data_pipeline.cli import context

app = typer.Typer(rich_markup_mode=None)


@app.command()
def demo(
    ctx: typer.Context,
    duration: Annotated[
        str, typer.Option("--duration", metavar="DURATION", help="How long to produce, such as 30s.")
    ] = "30s",
    rate: Annotated[
        float, typer.Option("--rate", metavar="N", help="Events a second, over all symbols.")
    ] = 600.0,
) -> None:
    """Watch the whole pipeline on the embedded Redis and PostgreSQL, then a checked summary.

    Servers that the configuration or the environment name are left alone.

    \b
    mdp demo
    mdp demo --duration 10s --json
    """
    from market_data_core.config_files import Given
    from market_data_core.events import format_interval
    from market_data_pipeline.cli.run import each, pipeline_with_summary

    given = (
        Given("mdp demo", "bus.type", "redis"),
        Given("mdp demo", "bus.redis.uri", ""),
        Given("mdp demo", "store.url", ""),
        Given("mdp demo", "producers.synthetic.enabled", True),
        # Short windows, so that half a minute is enough for indicators of 14 bars.
        Given("mdp demo", "micro_batch.window_ms", 1000),
        # Ticks like those of a bad day: out of order, some of them later than is allowed for, some of them twice.
        Given("mdp demo", "producers.synthetic.price_volatility", 0.5),
        Given("mdp demo", "producers.synthetic.disorder_ms", 560),
        Given("mdp demo", "producers.synthetic.duplicate_ratio", 0.005),
        # Nobody scrapes a demo, and the port may be in use by the real thing.
        Given("mdp demo", "telemetry.metrics_port", 0),
    )
    symbols = len(context.settings(ctx, *given).producers.synthetic.symbols)
    settings = context.settings(ctx, *given, each(rate, symbols))
    context.run(pipeline_with_summary(ctx, settings, context.seconds("--duration", duration)))
    if not context.options(ctx).json:
        symbol = settings.producers.synthetic.symbols[0]
        window = format_interval(settings.micro_batch.window_ms * 1_000_000)
        context.say(
            f"\nThe bars are stored: try `mdp store bars --symbol {symbol} --interval {window}`.\n"
            "`mdp dev down` stops the services."
        )
