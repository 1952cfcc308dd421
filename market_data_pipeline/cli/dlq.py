"""``mdp stream dlq``: the dead letters of a topic, and what can be done about them."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from market_data_pipeline.cli import context

if TYPE_CHECKING:
    from market_data_pipeline.streaming.dead_letters import Buried, DeadLetters, Which

T = TypeVar("T")
app = typer.Typer(
    help="Look at records that were put aside, send them again, remove them.", no_args_is_help=True
)

TopicOption = Annotated[
    str | None,
    typer.Option("--topic", metavar="T", help="Topic whose dead letters are meant (bus.redis.stream)."),
]
ReasonOption = Annotated[
    str | None, typer.Option("--reason", metavar="TEXT", help="Those whose reason begins with this.")
]
Ids = Annotated[
    list[str] | None, typer.Argument(metavar="[ID]...", help="As `mdp stream dlq list` shows them.")
]


@app.command("list")
def list_letters(
    ctx: typer.Context,
    topic: TopicOption = None,
    reason: ReasonOption = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="At most so many, the oldest.")
    ] = 50,
    summary: Annotated[
        bool, typer.Option("--summary", help="Only how many there are for each reason.")
    ] = False,
) -> None:
    """Show which records were put aside, and why; the oldest first.

    \b
    mdp stream dlq list
    mdp stream dlq list --summary
    """
    if summary:
        _summary(ctx, topic, reason)
        return
    from market_data_pipeline.streaming.dead_letters import Which

    found = _with(ctx, topic, lambda letters: letters.letters(Which(reason=reason), limit=limit + 1))
    shown = found[:limit]
    if context.options(ctx).json:
        for buried in shown:
            context.emit(_row(buried))
    elif not shown:
        context.say("no dead letters")
    else:
        names = ("id", "at", "topic", "partition", "offset", "bytes", "reason")
        context.table(None, names, [[_row(buried)[name] for name in names] for buried in shown])
    if len(found) > limit:
        context.say("there are more: add --limit, or --summary to count them by reason")


@app.command()
def show(
    ctx: typer.Context,
    id: Annotated[str, typer.Argument(metavar="ID", help="As `mdp stream dlq list` shows it.")],
    topic: TopicOption = None,
    raw: Annotated[bool, typer.Option("--raw", help="Only the record's original bytes, on stdout.")] = False,
) -> None:
    """Show one record that was put aside, whole.

    \b
    mdp stream dlq show 1763000000000-0
    mdp stream dlq show 1763000000000-0 --raw > record.json
    """
    from base64 import b64encode

    from market_data_pipeline.cli.rows import preview

    buried = _with(ctx, topic, lambda letters: letters.show(id))
    value = buried.letter.value
    if raw:
        sys.stdout.buffer.write(value)
        sys.stdout.buffer.flush()
    elif context.options(ctx).json:
        context.emit(_row(buried) | {"value_base64": b64encode(value).decode()})
    else:
        for name, cell in (*_row(buried).items(), ("value", preview(value, 2000))):
            print(f"{name:<10} {'-' if cell in ('', None) else cell}")


@app.command()
def requeue(
    ctx: typer.Context,
    ids: Ids = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    reason: ReasonOption = None,
    value_file: Annotated[
        Path | None,
        typer.Option("--value-file", metavar="FILE", help="Send this instead of the original; - is stdin."),
    ] = None,
    topic: TopicOption = None,
) -> None:
    """Publish records again where they came from, and take them out of the dead letters.

    What still cannot be read comes back as a new dead letter. An event that was counted already is not counted
    twice within the dedupe horizon.

    \b
    mdp stream dlq requeue 1763000000000-0 --value-file corrected.json
    mdp stream dlq requeue --reason late
    """
    which = _chosen("--all or --reason", ids, everything, reason)
    value = None if value_file is None else _read(value_file)
    count = _with(ctx, topic, lambda letters: letters.requeue(which, value=value))
    _tell(ctx, "requeued", count)


@app.command()
def purge(
    ctx: typer.Context,
    ids: Ids = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    reason: ReasonOption = None,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="DURATION", help="Those put aside longer ago, such as 7d."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    topic: TopicOption = None,
) -> None:
    """Remove records that were put aside, for good.

    \b
    mdp stream dlq purge --older-than 7d
    mdp stream dlq purge --all --yes
    """
    which = _chosen("--all, --reason or --older-than", ids, everything, reason, older_than)
    if not yes:
        _confirm(len(_with(ctx, topic, lambda letters: letters.letters(which))))
    _tell(ctx, "purged", _with(ctx, topic, lambda letters: letters.purge(which)))


def _with(ctx: typer.Context, topic: str | None, do: Callable[[DeadLetters], Awaitable[T]]) -> T:
    """``do`` with the dead letters of a topic."""
    from market_data_core.config_files import Given
    from market_data_pipeline.streaming.dead_letters import DeadLetters

    settings = context.settings(ctx, Given("--topic", "bus.redis.stream", topic))

    async def main() -> T:
        async with await context.open_bus(settings) as bus:
            return await do(DeadLetters(bus, settings.bus.redis.stream))

    return context.run(main())


def _summary(ctx: typer.Context, topic: str | None, reason: str | None) -> None:
    counts = _with(ctx, topic, lambda letters: letters.reasons())
    chosen = [(count, text) for text, count in counts.items() if text.startswith(reason or "")]
    if context.options(ctx).json:
        for count, text in chosen:
            context.emit({"reason": text, "count": count})
    elif not chosen:
        context.say("no dead letters")
    else:
        context.table(None, ("count", "reason"), chosen)


def _chosen(
    options: str, ids: list[str] | None, everything: bool, reason: str | None, older_than: str | None = None
) -> Which:
    """Which letters are meant; saying nothing means none. ``options`` are those that choose, for the message.

    Raises:
        UsageError: none were chosen, or in more than one way.
    """
    from market_data_core.clock import SystemClock
    from market_data_core.errors import UsageError
    from market_data_pipeline.streaming.dead_letters import Which

    seconds = context.seconds("--older-than", older_than)
    by_condition = reason is not None or seconds is not None
    if sum((bool(ids), everything, by_condition)) != 1:
        raise UsageError(f"choose dead letters in one way: give their ids, or {options}")
    before = None if seconds is None else SystemClock().now() - round(seconds * 1e9)
    return Which(ids=ids or None, reason=reason, before=before)


def _read(file: Path) -> bytes:
    from market_data_core.errors import UsageError

    if str(file) == "-":
        return sys.stdin.buffer.read()
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(
            f"--value-file: cannot read {file} ({error.strerror}); name a readable file"
        ) from None


def _confirm(count: int) -> None:
    """Ask, or say how not to be asked.

    Raises:
        UsageError: nobody is there to answer. Abort: the answer was no.
    """
    from market_data_core.errors import UsageError

    if count == 0:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            f"{_letters(count)} would be removed for good: add --yes to do it without being asked"
        )
    typer.confirm(f"Remove {_letters(count)} for good?", abort=True, err=True)


def _tell(ctx: typer.Context, what: str, count: int) -> None:
    if context.options(ctx).json:
        context.emit({what: count})
    else:
        context.say(f"{_letters(count)} {what}")


def _letters(count: int) -> str:
    return "1 dead letter" if count == 1 else f"{count:,} dead letters"


def _row(buried: Buried) -> dict[str, Any]:
    from market_data_core.codecs import format_time

    letter = buried.letter
    return {
        "id": buried.id,
        "at": format_time(letter.at),
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "key": letter.key,
        "lane": letter.lane,
        "bytes": len(letter.value),
        "reason": letter.reason,
    }
