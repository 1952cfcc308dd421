"""``mdp features``: the rolling features of stored bars."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from market_data_pipeline.cli import context
from market_data_pipeline.cli.store_formats import BatchFormat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.features.table import FeatureTable

app = typer.Typer(help="Rolling features of stored bars, as signals are made of.")


@app.command()
def features(
    ctx: typer.Context,
    symbol: Annotated[
        list[str], typer.Option("--symbol", metavar="S", help="Symbol; may be given again, or as A,B.")
    ],
    start: Annotated[
        str, typer.Option("--from", metavar="T", help="First time, RFC 3339 or YYYY-MM-DD (UTC).")
    ],
    end: Annotated[str, typer.Option("--to", metavar="T", help="End, exclusive, in the same form.")],
    provider: Annotated[
        str | None, typer.Option("--provider", metavar="P", help="Only this provider's.")
    ] = None,
    interval: Annotated[
        str | None,
        typer.Option(
            "--interval",
            metavar="D",
            help="Length of the bars (default: inference.interval, or the windows').",
        ),
    ] = None,
    names: Annotated[
        str | None,
        typer.Option("--names", metavar="A,B", help="Which features (default: those of features.windows)."),
    ] = None,
    format: Annotated[BatchFormat | None, typer.Option("--format", help="How to print rows.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write there, not to stdout.")
    ] = None,
) -> None:
    """Features of stored bars, ordered by symbol and time: the very numbers that live inference sees.

    ts is the start of a bar, at its end: when its features are known. Too little history leaves a feature empty.

    \b
    mdp features --symbol SPY --from 2013-10-07 --to 2013-10-08 --format csv
    mdp features --symbol SPY,IBM --interval 1m --from 2013-10-07 --to 2013-10-08 --names rsi,skewness
    """
    from market_data_core.errors import UsageError
    from market_data_core.events import format_interval, parse_interval
    from market_data_pipeline.cli import spans, store_formats
    from market_data_pipeline.features.definitions import definitions
    from market_data_pipeline.features.offline import OfflineFeatures

    settings = context.settings(ctx)
    length = settings.micro_batch.window_ms * 10**6
    if interval is not None or settings.inference.interval:
        try:
            length = parse_interval(interval or settings.inference.interval)
        except ValueError as error:
            raise UsageError(f"--interval: {error}") from None
    since, until = spans.span(start, end)
    symbols = spans.names(symbol)
    if not symbols or since is None or until is None:
        raise UsageError("--symbol: name a symbol, as in --symbol SPY")
    wanted = [w.name for w in settings.features.windows] if names is None else names.split(",")
    chosen = store_formats.chosen(ctx, format)
    offline = OfflineFeatures(
        definitions(settings.features, length, filter(None, wanted)), length, by_symbol=True
    )
    rows = _Features(offline.names)

    async def show() -> None:
        async with await context.open_store(settings) as client:
            pages = client.bar_pages(
                symbols,
                interval=format_interval(length),
                provider=provider,
                start=since - offline.reach * length,
                end=until,
            )
            with store_formats.writer(chosen, output, rows) as write:
                async for page in pages:
                    for table in offline.tables(page):
                        asked = (table.ts >= since).nonzero()[0]
                        if len(asked):
                            write(table.take(asked))

    context.run(show())


class _Features:
    """Features as rows: the key of the bar, when it was known, and a column for each feature."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self.columns = ("provider", "symbol", "interval", "ts", "at", *names)

    def rows(self, batch: FeatureTable) -> list[tuple[Any, ...]]:
        import math

        from market_data_core.codecs import format_times

        names = [tuple(batch.series[code]) for code in batch.code.tolist()]
        values = [
            [None if math.isnan(value) else value for value in batch.columns[name].tolist()]
            for name in self._names
        ]
        columns = zip(names, format_times(batch.ts), format_times(batch.at), *values, strict=True)
        return [(*series, *rest) for series, *rest in columns]

    def schema(self) -> Any:
        import pyarrow as pa

        from market_data_pipeline.cli.store_formats import series_fields

        times = [pa.field(name, pa.timestamp("ns", tz="UTC")) for name in ("ts", "at")]
        return pa.schema([*series_fields(), *times, *(pa.field(name, pa.float64()) for name in self._names)])

    def arrays(self, batch: FeatureTable) -> list[Any]:
        import pyarrow as pa

        from market_data_pipeline.cli.store_formats import series_arrays

        columns = series_arrays(batch.series, batch.code)
        columns += [pa.array(times).cast(pa.timestamp("ns", tz="UTC")) for times in (batch.ts, batch.at)]
        columns += [pa.array(batch.columns[name], from_pandas=True) for name in self._names]
        return columns
