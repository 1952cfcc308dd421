"""``mdp stream migrate``: topics that are at rest go to another bus, with all that consumers remember of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from market_data_pipeline.cli import context, spans
from market_data_pipeline.cli.repartition import at_rest

if TYPE_CHECKING:
    from market_data_core.config import Settings
    from market_data_pipeline.consumers.moving import Moved


def migrate(
    ctx: typer.Context,
    to: Annotated[str, typer.Option("--to", metavar="BUS", help="Driver to move to: redis or kafka.")],
    source: Annotated[
        str | None, typer.Option("--from", metavar="BUS", help="Driver to move from (bus.type).")
    ] = None,
    topic: Annotated[
        str | None, typer.Option("--topic", metavar="T", help="Topic to move (bus.redis.stream).")
    ] = None,
    wait: Annotated[
        str | None,
        typer.Option(
            "--wait", metavar="DURATION", help="Wait so long for what is in the way, and say what it is."
        ),
    ] = None,
    settle: Annotated[
        str, typer.Option("--settle", metavar="DURATION", help="How long nothing must have been published.")
    ] = "2s",
) -> None:
    """Move a topic that nobody uses to another bus; bars, signals and dead letters follow the events.

    \b
    mdp stream migrate --from redis --to kafka
    mdp stream migrate --from kafka --to redis --wait 10m
    """
    from market_data_core.config_files import Given
    from market_data_core.errors import UsageError

    wanted = None if topic is None else spans.topic("--topic", topic)
    old = context.settings(ctx, Given("--from", "bus.type", source))
    new = context.settings(ctx, Given("--to", "bus.type", to))
    if old.bus.type == new.bus.type:
        raise UsageError(f"--to {to}: is where it comes from; name the other bus with --from")
    redis = new.bus.redis
    following = [redis.bars_stream, redis.signals_stream]
    name = wanted or redis.stream
    if name in following:
        raise UsageError(
            f"--topic {name}: follows {redis.stream}; use --topic {redis.stream}, which moves both"
        )
    patience = context.seconds("--wait", wait) or 0.0
    still = context.seconds("--settle", settle) or 0.0
    names = [name, *following] if name == redis.stream else [name]
    moved, letters = context.run(_migrate(old, new, names, patience, still))
    if context.options(ctx).json:
        for one in moved:
            context.emit(one)
        return
    for one in moved:
        context.say(
            f"{one.topic}: {one.before} partitions on {old.bus.type}, {one.after} on {to}; "
            f"groups moved: {', '.join(one.groups)}; records carried over: {one.carried}"
        )
    if letters:
        context.say(f"dead letters moved: {letters}")
    if not moved:
        context.say(f"there is nothing to move: no group has a position of {old.bus.type} in {name}")


async def _migrate(
    old: Settings, new: Settings, names: list[str], patience: float, still: float
) -> tuple[list[Moved], int]:
    from market_data_pipeline.consumers.migration import Migration

    redis = new.bus.redis
    async with (
        await context.open_bus(old) as source,
        await context.open_bus(new) as target,
        await context.open_store(new) as store,
    ):
        work = Migration(
            source,
            target,
            store,
            names,
            bars_topic=redis.bars_stream,
            keep_ms=redis.retention_ms,
            settle_s=still,
        )
        await at_rest(work, patience)
        return await work.run(), await work.move_letters()
