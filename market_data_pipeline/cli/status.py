"""``mdp stream status``: topics, groups, partitions, owners, lag, oldest pending."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from market_data_pipeline.cli import context

if TYPE_CHECKING:
    from market_data_core.config import Settings
    from market_data_pipeline.streaming.bus import TopicStatus


def status(ctx: typer.Context) -> None:
    """Show every topic, its consumer groups, who owns which partition, and how far behind they are.

    \b
    mdp stream status
    mdp stream status --json
    """
    topics = context.run(_status(context.settings(ctx)))
    if context.options(ctx).json:
        for topic in topics:
            context.emit(topic)
        return
    if not topics:
        context.say("no topic yet: start a producer with `mdp stream produce --provider synthetic`")
        return
    context.table(
        "Topics",
        ["topic", "partitions", "records", "groups"],
        [(t.topic, t.partitions, t.records, ", ".join(g.group for g in t.groups)) for t in topics],
    )
    rows = [
        (t.topic, g.group, p.partition, p.owner or "nobody", p.lag, p.lag_ms, p.pending, p.oldest_pending_ms)
        for t in topics
        for g in t.groups
        for p in g.partitions
    ]
    if rows:
        columns = ["topic", "group", "partition", "owner", "lag", "lag ms", "pending", "oldest pending ms"]
        context.console().print()
        context.table("Consumer groups", columns, rows)


async def _status(settings: Settings) -> list[TopicStatus]:
    async with await context.open_bus(settings) as bus:
        return sorted(await bus.status(), key=lambda t: t.topic)
