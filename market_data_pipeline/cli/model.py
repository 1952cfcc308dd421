"""``mdp model``: train a model on stored bars, and look at one."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from market_data_pipeline.cli import context

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_core.config import Settings
    from market_data_pipeline.features.definitions import Feature
    from market_data_pipeline.features.table import FeatureTable
    from market_data_pipeline.inference.model_card import ModelCard
    from market_data_pipeline.inference.training_bars import Range
    from market_data_pipeline.inference.validation import FoldScore

app = typer.Typer(help="Train a model on stored bars, and look at one.", no_args_is_help=True)


class Kind(StrEnum):
    """The baselines."""

    LOGISTIC = "logistic"
    FOREST = "forest"


@app.command()
def train(
    ctx: typer.Context,
    symbol: Annotated[
        list[str], typer.Option("--symbols", metavar="A,B", help="Symbols; may be given again.")
    ],
    start: Annotated[
        str, typer.Option("--from", metavar="T", help="First time, RFC 3339 or YYYY-MM-DD (UTC).")
    ],
    end: Annotated[str, typer.Option("--to", metavar="T", help="End, exclusive, in the same form.")],
    horizon: Annotated[str, typer.Option("--horizon", metavar="D", help="How far ahead is predicted.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The model, a .skops file.")],
    provider: Annotated[
        str | None, typer.Option("--provider", metavar="P", help="Only this provider's bars.")
    ] = None,
    interval: Annotated[
        str | None,
        typer.Option(
            "--interval",
            metavar="D",
            help="Length of the bars (default: inference.interval, or the windows').",
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            "--features",
            metavar="A,B",
            help="What it sees (default: features.windows without prices and volumes, and a few more).",
        ),
    ] = None,
    model: Annotated[
        Kind, typer.Option("--model", help="Logistic regression, or gradient-boosted trees.")
    ] = Kind.LOGISTIC,
    folds: Annotated[int, typer.Option("--folds", min=2, max=100, help="Spans to validate on.")] = 5,
    dead_band: Annotated[
        float, typer.Option("--dead-band", metavar="BPS", min=0, help="Returns within it have no side.")
    ] = 0.0,
    flat: Annotated[
        bool, typer.Option("--flat", help="Predict returns within the dead band as 0, else leave them out.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of what is random.")] = 0,
) -> None:
    """Train a baseline to predict the sign of the return over --horizon, and score it on what came after.

    Each fold is trained on the past alone: rows whose label looks into the fold's test are left out. The model that
    is written is then trained on all rows. Its card, FILE.card.json, says on what, and how the folds did.

    \b
    mdp model train --symbols SPY,IBM --from 2013-10-07 --to 2013-10-08 --horizon 60s --out signal.skops
    mdp model train --symbols SPY --from 2013-10-07 --to 2013-10-08 --horizon 5m --features rsi --out rsi.skops
    """
    from market_data_core.clock import SystemClock
    from market_data_core.errors import UsageError
    from market_data_core.events import format_interval, parse_interval
    from market_data_pipeline.cli import spans
    from market_data_pipeline.features.definitions import baseline_names, definitions
    from market_data_pipeline.inference import model_card, model_files, training, validation
    from market_data_pipeline.inference.training_bars import Range

    settings = context.settings(ctx)
    _writable(out)
    model_files.need_ml()
    try:
        length = parse_interval(
            interval or settings.inference.interval or f"{settings.micro_batch.window_ms}ms"
        )
    except ValueError as error:
        raise UsageError(f"--interval: {error}") from None
    ahead = round((context.seconds("--horizon", horizon) or 0) * 1e9)
    if ahead < length:
        raise UsageError(f"--horizon: must be at least one bar, {format_interval(length)} (got {horizon!r})")
    since, until = spans.span(start, end)
    symbols = spans.names(symbol)
    if not symbols or since is None or until is None:
        raise UsageError("--symbols: name a symbol")
    wanted = baseline_names(settings.features) if features is None else tuple(features.split(","))
    defined = definitions(settings.features, length, filter(None, wanted))
    if not defined:
        raise UsageError("--features: name a feature, as in --features returns,rsi")

    bars = Range(tuple(symbols), provider, length, since, until)
    target = training.Target(ahead, dead_band / 1e4, three=flat)
    tables = context.run(_read(settings, bars, defined))
    rows = training.samples(tables, [feature.name for feature in defined], target)
    scores = validation.validate(model.value, rows, ahead, folds, seed)
    _print_folds(ctx, scores)
    digest, trusted = model_files.save_skops(training.fit(model.value, rows, seed), out)
    card = model_card.describe(
        out,
        digest,
        kind=model.value,
        features=defined,
        bars=bars,
        target=target,
        rows=rows,
        scores=scores,
        seed=seed,
        trusted=trusted,
        created=SystemClock().now(),
    )
    model_files.write_whole(model_card.card_path(out), model_card.encode_card(card))
    _print_written(ctx, out, card)


@app.command()
def show(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The model.")],
) -> None:
    """What a model is: its card, whether the card is of this file, and the types in it. Nothing of it is executed.

    Exit code 1 when the card is of another file.

    \b
    mdp model show signal.skops
    """
    import msgspec

    from market_data_pipeline.inference.model_card import read_card
    from market_data_pipeline.inference.model_files import SKOPS, read_model, types_in, untrusted_types

    context.settings(ctx)
    data, digest = read_model(file)
    skops = file.suffix.lower() == SKOPS
    types = types_in(file, data) if skops else None
    untrusted = untrusted_types(file, data) if skops else None
    card = read_card(file)
    about = None if card is None else msgspec.to_builtins(card)
    same = None if card is None else card.sha256 == digest
    if context.options(ctx).json:
        told = {"file": str(file), "sha256": digest, "card_matches": same, "types": types}
        context.emit(told | {"untrusted": untrusted, "card": about})
    else:
        rows: list[tuple[str, str]] = [("file", str(file)), ("sha256 of the file", digest)]
        if about is None:
            rows.append(("card", "there is none"))
        else:
            rows += [(name, _cell(value)) for name, value in about.items() if name != "scores"]
            rows += [(f"mean {name}", _cell(value)) for name, value in about["scores"]["mean"].items()]
        if types is None or untrusted is None:
            rows.append(("types", "a pickle tells them only when it is run"))
        else:
            rows += [("types", ", ".join(types)), ("not trusted", ", ".join(untrusted) or "none")]
        context.table(None, ("what", "value"), rows)
    if same is False:
        context.fail(f"{file} is not the file that its card is of: train it again, or remove the card")


def _writable(out: Path) -> None:
    """Say what is wrong with ``out`` before anything is computed."""
    from market_data_core.errors import UsageError
    from market_data_pipeline.inference.model_files import SKOPS

    if out.suffix != SKOPS:
        raise UsageError(f"--out: must end with {SKOPS} (got {str(out)!r})")
    if not out.parent.is_dir():
        raise UsageError(f"--out: there is no folder {str(out.parent)!r}: make it first")


async def _read(settings: Settings, bars: Range, features: Sequence[Feature]) -> list[FeatureTable]:
    from market_data_pipeline.inference.training_bars import read_tables

    async with await context.open_store(settings) as store:
        return await read_tables(store, bars, features)


def _print_folds(ctx: typer.Context, scores: list[FoldScore]) -> None:
    from market_data_pipeline.inference.validation import SCORES, means, row

    if context.options(ctx).json:
        for number, score in enumerate(scores, 1):
            context.emit({"fold": number, **row(score)})
        context.emit({"fold": "mean", **means(scores)})
        return
    columns = ("fold", "train", "test", "start", "end", *SCORES)
    cells: list[list[Any]] = [
        [str(number), *(row(score)[name] for name in columns[1:])] for number, score in enumerate(scores, 1)
    ]
    cells.append(["mean", None, None, None, None, *means(scores).values()])
    context.table(None, columns, [[_rounded(cell) for cell in line] for line in cells])


def _print_written(ctx: typer.Context, out: Path, card: ModelCard) -> None:
    if context.options(ctx).json:
        written = {"model": str(out), "sha256": card.sha256, "rows": card.rows, "classes": card.classes}
        context.emit(written | {"trusted": card.trusted})
        return
    counts = ", ".join(f"{count} of {label}" for label, count in card.classes.items())
    lines = [f"{out} is trained on {card.rows} rows ({counts}); to use it:", ""]
    lines += [
        "inference:",
        f"  interval: {card.interval}",
        "  adapters:",
        "    sklearn:",
        "      enabled: true",
    ]
    lines += [f"      model_path: {out}", f"      sha256: {card.sha256}"]
    if card.trusted:
        lines.append(f"      trusted: [{', '.join(card.trusted)}]")
    context.console().print("\n".join(lines), markup=False)


def _rounded(cell: object) -> object:
    return round(cell, 4) if isinstance(cell, float) else cell


def _cell(value: object) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value)
