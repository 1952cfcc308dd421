"""``mdp stream``: the commands that move events. Each command's module imports what is heavy when it runs."""

from __future__ import annotations

import typer

from market_data_pipeline.cli import dlq
from market_data_pipeline.cli.infer import infer
from market_data_pipeline.cli.micro_batch import micro_batch
from market_data_pipeline.cli.migrate import migrate
from market_data_pipeline.cli.produce import produce
from market_data_pipeline.cli.repartition import repartition
from market_data_pipeline.cli.replay import replay
from market_data_pipeline.cli.run import run
from market_data_pipeline.cli.status import status
from market_data_pipeline.cli.tail import tail

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
app.command("run")(run)
app.command("produce")(produce)
app.command("micro-batch")(micro_batch)
app.command("infer")(infer)
app.command("replay")(replay)
app.command("tail")(tail)
app.command("status")(status)
app.command("repartition")(repartition)
app.command("migrate")(migrate)
app.add_typer(dlq.app, name="dlq")
