"""``mdp signals``: what became of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from market_data_pipeline.cli import context, spans

if TYPE_CHECKING:
    from market_data_pipeline.signals.report import Figures

app = typer.Typer(help="Judge stored signals by the bars that followed them.", no_args_is_help=True)

_HEADINGS: Final = (
    *("name", "symbol", "count", "scored", "open", "withdrawn", "hit %", "mean", "95 % interval", "t"),
    *("median", "worst", "best", "|move|", "score"),
)
_ALL: Final = "(all)"


# A group of one command: the word is needed, since more may follow.
@app.callback()
def _signals() -> None:
    """Judge stored signals by the bars that followed them."""


@app.command()
def report(
    ctx: typer.Context,
    start: Annotated[
        str, typer.Option("--from", metavar="T", help="First time, RFC 3339 or YYYY-MM-DD (UTC).")
    ],
    end: Annotated[str, typer.Option("--to", metavar="T", help="End, exclusive, in the same form.")],
    horizon: Annotated[
        str, typer.Option("--horizon", metavar="D", help="How long after a signal its return is taken.")
    ] = "60s",
    symbols: Annotated[
        list[str] | None,
        typer.Option("--symbols", "--symbol", metavar="A,B", help="Only these symbols (default: all)."),
    ] = None,
    provider: Annotated[
        str | None, typer.Option("--provider", metavar="P", help="Only this provider's.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="N", help="Only signals called so.")] = None,
    interval: Annotated[
        str | None,
        typer.Option(
            "--interval",
            metavar="D",
            help="Length of the bars that give the prices (default: what signals are made of: inference.interval, "
            "or micro_batch.window_ms).",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Also draw a picture, .svg or .png (needs mdp[plot])."),
    ] = None,
) -> None:
    """How each signal did afterwards: its forward return on stored bars, by name and by symbol.

    \b
    mdp signals report --from 2025-10-24 --to 2025-10-25 --horizon 60s
    mdp signals report --from 2025-10-24 --to 2025-10-25 --name vwap_cross_up --symbols SPY,AAPL --plot report.svg
    """
    from dataclasses import asdict

    from market_data_core.events import format_interval
    from market_data_pipeline.signals import plot as picture
    from market_data_pipeline.signals.reading import Question, read_outcomes, steps_to
    from market_data_pipeline.signals.report import figures

    since, until = spans.span(start, end)
    ahead = spans.length("--horizon", horizon)
    if plot is not None:
        picture.check(plot)
    settings = context.settings(ctx)
    given = interval or settings.inference.interval or f"{settings.micro_batch.window_ms}ms"
    bars = spans.length("--interval", given)
    question = Question(
        since, until, ahead, format_interval(bars), tuple(spans.names(symbols) or ()), provider, name
    )
    steps = steps_to(ahead, bars if plot is not None else ahead)

    async def judge() -> Any:
        async with await context.open_store(settings) as store:
            return await read_outcomes(store, question, steps)

    outcomes = context.run(judge())
    found = figures(outcomes, ahead)
    about = {"horizon": format_interval(ahead), "interval": question.interval}
    if context.options(ctx).json:
        for row in found:
            context.emit(asdict(row) | about)
    else:
        _show(found, about, start, end)
    if found[0].unpriced:
        context.say(
            f"mdp: signals without a price to start from: {found[0].unpriced}, since no bar of "
            f"{question.interval} with a close above 0 had ended by then; "
            "choose the --interval of the bars that they were made of"
        )
    if plot is not None:
        picture.draw(outcomes, found, question, plot)


def _show(found: list[Figures], about: dict[str, str], start: str, end: str) -> None:
    """The table: in bps, with what the columns are."""
    title = (
        f"Signals of {start} to {end}: return over {about['horizon']} in the direction of the value, "
        f"on bars of {about['interval']}, in bps"
    )
    columns = [_aligned(column) for column in zip(*(_cells(row) for row in found), strict=True)]
    context.table(title, _HEADINGS, list(zip(*columns, strict=True)))
    context.console().print(
        "\nopen: no bar at the end of the horizon yet, or no price; withdrawn signals are not scored.\n"
        "95 % interval and t allow for overlapping horizons (Newey-West, Student's t); |move| is of signals whose "
        "value is 0,\nwhich have no direction. No costs, no spread: see docs/signals-report.md.",
        markup=False,
    )


def _aligned(column: tuple[object, ...]) -> tuple[object, ...]:
    """Numbers that are text already, set to the right."""
    texts = ["" if cell is None else str(cell) for cell in column]
    if not any(text[:1] in "+-0123456789" for text in texts if text):
        return column
    width = max(map(len, texts))
    return tuple(text.rjust(width) for text in texts)


def _cells(row: Figures) -> list[object]:
    interval = None if row.low_bps is None else f"{_number(row.low_bps)} … {_number(row.high_bps)}"
    hits = None if row.hit_rate is None else f"{100 * row.hit_rate:.1f}"
    counts = (row.count, row.scored, row.open, row.withdrawn)
    spread = (row.median_bps, row.worst_bps, row.best_bps, row.mean_abs_bps)
    return [
        *(row.name or _ALL, row.symbol or _ALL, *counts, hits, _number(row.mean_bps), interval),
        *(_number(value) for value in (row.t, *spread, row.mean_score)),
    ]


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:+.2f}"
