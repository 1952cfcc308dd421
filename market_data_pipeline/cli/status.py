"""``mdp stream status``: topics, groups, partitions, owners, lag, oldest pending, and what is spread unevenly."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from market_data_pipeline.cli import context

if TYPE_CHECKING:
    from rich.console import RenderableType

    from market_data_core.config import Settings
    from market_data_pipeline.streaming.bus import TopicStatus

_TOPICS = ["topic", "partitions", "records", "lag", "lag ms", "groups"]
_GROUPS = [
    "topic",
    "group",
    "partition",
    "owner",
    "lag",
    "lag ms",
    "pending",
    "oldest pending ms",
    "% of records",
    "% of lag",
]
_SECONDS = 1.0


def status(
    ctx: typer.Context,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it anew each second, on a terminal, until Ctrl-C.")
    ] = False,
) -> None:
    """Show every topic, its consumer groups, who owns which partition, and how far behind they are.

    A partition that has more than twice its even share of the records, or of a group's lag, is named.

    \b
    mdp stream status
    mdp stream status --watch
    mdp stream status --json
    """
    from market_data_core.errors import UsageError

    settings = context.settings(ctx)
    as_json = context.options(ctx).json
    if watch and (as_json or not sys.stdout.isatty()):
        raise UsageError("--watch: needs a terminal and no --json; without it the state is printed once")
    if watch:
        context.run(_watch(settings))
        return
    topics = context.run(_status(settings))
    if as_json:
        for topic in topics:
            context.emit(topic)
        return
    if not topics:
        context.say("no topic yet: start a producer with `mdp stream produce --provider synthetic`")
        return
    context.table("Topics", _TOPICS, _of_topics(topics))
    rows = _of_groups(topics)
    if rows:
        context.console().print()
        context.table("Consumer groups", _GROUPS, rows)
    for remark in _remarks(topics):
        context.console().print(remark, markup=False)


def _of_topics(topics: list[TopicStatus]) -> list[tuple[object, ...]]:
    """The lag of a topic is that of the group that is furthest behind."""
    out: list[tuple[object, ...]] = []
    for t in topics:
        lag = max((sum(p.lag for p in g.partitions) for g in t.groups), default=0)
        lag_ms = max((p.lag_ms for g in t.groups for p in g.partitions), default=0)
        out.append((t.topic, t.partitions, t.records, lag, lag_ms, ", ".join(g.group for g in t.groups)))
    return out


def _of_groups(topics: list[TopicStatus]) -> list[tuple[object, ...]]:
    from market_data_pipeline.streaming.skew import shares

    out: list[tuple[object, ...]] = []
    for t in topics:
        records = dict(enumerate(shares(t.sizes)))
        for g in t.groups:
            for p, lag in zip(g.partitions, shares([p.lag for p in g.partitions]), strict=True):
                shown = round(100 * records.get(p.partition, 0.0)), round(100 * lag)
                owner = p.owner or "nobody"
                behind = p.lag, p.lag_ms, p.pending, p.oldest_pending_ms
                out.append((t.topic, g.group, p.partition, owner, *behind, *shown))
    return out


def _remarks(topics: list[TopicStatus]) -> list[str]:
    from market_data_pipeline.streaming.skew import remarks

    return [remark for topic in topics for remark in remarks(topic)]


async def _status(settings: Settings) -> list[TopicStatus]:
    async with await context.open_bus(settings) as bus:
        return sorted(await bus.status(), key=lambda t: t.topic)


async def _watch(settings: Settings) -> None:
    import asyncio
    import contextlib

    from rich.live import Live

    from market_data_core.errors import MdpError

    live = Live(console=context.console(), auto_refresh=False, vertical_overflow="visible")
    async with await context.open_bus(settings) as bus:
        with live, contextlib.suppress(asyncio.CancelledError):
            while True:
                try:
                    found = sorted(await bus.status(), key=lambda t: t.topic)
                    live.update(_shown(found), refresh=True)
                except MdpError as error:
                    if not error.retriable:
                        raise
                    # Whoever watches an outage wants to see its end.
                    live.update(f"{error}", refresh=True)
                await asyncio.sleep(_SECONDS)


def _shown(topics: list[TopicStatus]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [
        context.grid("Topics", _TOPICS, _of_topics(topics)),
        Text(),
        context.grid("Consumer groups", _GROUPS, _of_groups(topics)),
    ]
    return Group(*parts, *(Text(remark) for remark in _remarks(topics)))
