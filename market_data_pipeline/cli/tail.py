"""``mdp stream tail``: what is on a topic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from market_data_pipeline.cli import context, spans

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from market_data_core.config import Settings
    from market_data_pipeline.streaming.bus import Bus, Offset, StoredRecord

_WAIT_S = 0.2
_PAGE = 500


def tail(
    ctx: typer.Context,
    topic: Annotated[
        str | None, typer.Option("--topic", metavar="T", help="Topic to show (bus.redis.stream).")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Rows to show; 50 unless following.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what comes, until Ctrl-C.")] = False,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Begin with the oldest record instead of the newest.")
    ] = False,
) -> None:
    """Show events, bars or dead letters of a topic without consuming them.

    \b
    mdp stream tail --topic mdp.events --limit 50
    mdp stream tail --topic mdp.bars --follow
    """
    settings = context.settings(ctx)
    wanted = limit if limit is not None or follow else 50
    context.run(
        _tail(
            settings,
            settings.bus.redis.stream if topic is None else spans.topic("--topic", topic),
            wanted,
            follow,
            from_start,
            context.options(ctx).json,
        )
    )


async def _tail(
    settings: Settings, topic: str, limit: int | None, follow: bool, from_start: bool, as_json: bool
) -> None:
    from market_data_core.errors import UsageError
    from market_data_pipeline.cli.rows import RowReader

    reader = RowReader()
    async with await context.open_bus(settings) as bus:
        partitions = await bus.partitions(topic)
        if partitions == 0 and not follow:
            known = ", ".join(t.topic for t in await bus.status()) or "none"
            raise UsageError(f"there is no topic {topic!r}; known topics: {known}")
        rows: list[dict[str, Any]] = []
        async for record in _records(bus, topic, limit, follow, from_start):
            rows.extend(reader.rows(record.value, record.lane))
            if follow or from_start:
                shown = rows if limit is None else rows[:limit]
                _show(shown, as_json)
                if limit is not None and (limit := limit - len(shown)) <= 0:
                    return
                rows = []
        _show(rows if limit is None else rows[-limit:], as_json)


async def _records(
    bus: Bus, topic: str, limit: int | None, follow: bool, from_start: bool
) -> AsyncIterator[StoredRecord]:
    """The newest records of all partitions, or all from the first; then, following, what comes."""
    import asyncio

    following: dict[int, Offset | None] = {}
    if not from_start:
        newest: list[StoredRecord] = []
        for partition in range(await bus.partitions(topic)):
            records = await bus.newest(topic, partition, limit or 10)
            following[partition] = records[-1].offset + 1 if records else None
            newest.extend(records)
        for record in sorted(newest, key=lambda r: r.timestamp_ms):
            yield record
        if not follow:
            return
    while True:
        quiet = True
        for partition in range(await bus.partitions(topic)):
            records = await bus.read(topic, partition, following.get(partition), _PAGE)
            for record in records:
                yield record
                following[partition] = record.offset + 1
                quiet = False
        if quiet and not follow:
            return
        if quiet:
            await asyncio.sleep(_WAIT_S)


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    for row in rows:
        if as_json:
            context.emit(row)
        else:
            print(
                "  ".join(f"{name}={_text(value)}" for name, value in row.items() if value is not None),
                flush=True,
            )


def _text(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)
