"""``mdp stream repartition``: another number of partitions for topics that are at rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from market_data_pipeline.cli import context, spans

if TYPE_CHECKING:
    from market_data_core.config import Settings
    from market_data_pipeline.consumers.moving import Moved, Moving

_LOOK_AGAIN_SECONDS = 1.0


def repartition(
    ctx: typer.Context,
    partitions: Annotated[int, typer.Option("--partitions", metavar="N", help="How many from now on.")],
    topic: Annotated[
        str | None, typer.Option("--topic", metavar="T", help="Topic to change (bus.redis.stream).")
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
    """Change the number of partitions of a topic that nobody uses; bars and signals follow the events.

    \b
    mdp stream repartition --partitions 16
    mdp stream repartition --partitions 16 --wait 10m
    """
    from market_data_core.errors import UsageError

    settings = context.settings(ctx)
    redis = settings.bus.redis
    name = redis.stream if topic is None else spans.topic("--topic", topic)
    following = [redis.bars_stream, redis.signals_stream]
    if name in following:
        raise UsageError(
            f"--topic {name}: follows {redis.stream}; use --topic {redis.stream}, which moves both"
        )
    patience = context.seconds("--wait", wait) or 0.0
    still = context.seconds("--settle", settle) or 0.0
    names = [name, *following] if name == redis.stream else [name]
    moved = context.run(_repartition(settings, names, partitions, patience, still))
    for one in moved:
        if context.options(ctx).json:
            context.emit(one)
        else:
            context.say(
                f"{one.topic}: {one.before} partitions before, {one.after} now; "
                f"groups moved: {', '.join(one.groups) or 'none'}; records carried over: {one.carried}"
            )
    if not moved and not context.options(ctx).json:
        context.say(f"{name} has {partitions} partitions already")


async def _repartition(
    settings: Settings, names: list[str], partitions: int, patience: float, still: float
) -> list[Moved]:
    from market_data_core.errors import BusError
    from market_data_pipeline.consumers.repartitioning import Repartitioning

    redis = settings.bus.redis
    async with await context.open_bus(settings) as bus, await context.open_store(settings) as store:
        if not await bus.partitions(names[0]):
            raise BusError(
                f"there is no topic {names[0]}: it gets bus.redis.partitions when it is first used"
            )
        work = Repartitioning(
            bus,
            store,
            names,
            partitions,
            bars_topic=redis.bars_stream,
            keep_ms=redis.retention_ms,
            settle_s=still,
        )
        await at_rest(work, patience)
        return await work.run()


async def at_rest(work: Moving, patience: float) -> None:
    """Wait until nothing is in the way, or as long as asked; each thing in the way is said once."""
    import asyncio

    said = ""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while loop.time() < deadline and (found := await work.obstacle()):
        if found != said:
            context.say(f"waiting: {found}")
            said = found
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)
