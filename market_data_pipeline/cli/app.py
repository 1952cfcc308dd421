"""``mdp``: the table of commands, the global options, and how every run ends.

A command's module is imported when it is called, and help is plain text, so that ``mdp --help`` and shell
completion stay quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer
from typer.core import TyperGroup
from typer.main import get_command

from market_data_core import __version__
from market_data_core.errors import MdpError
from market_data_pipeline.cli import context

PIPELINE: Final = "Pipeline"
OPERATION: Final = "Operation"


class _Entry(NamedTuple):
    """One line of ``mdp --help``: where the command is, and under which heading."""

    module: str
    panel: str
    help: str
    group: bool = False


COMMANDS: Final = {
    "demo": _Entry(
        "demo", PIPELINE, "Watch the whole pipeline on the embedded services, then a checked summary."
    ),
    "stream": _Entry(
        "stream", PIPELINE, "Produce, make bars, replay, tail, look at lag and dead letters.", group=True
    ),
    "backfill": _Entry(
        "backfill", PIPELINE, "Make the bars of months of files, in many processes, resumable."
    ),
    "store": _Entry(
        "store", PIPELINE, "Migrate the database; read bars, signals and the job log.", group=True
    ),
    "features": _Entry("features", PIPELINE, "Rolling features of stored bars, as signals are made of."),
    "model": _Entry("model", PIPELINE, "Train a model on stored bars, and look at one.", group=True),
    "signals": _Entry(
        "signals", PIPELINE, "Judge stored signals by the bars that followed them.", group=True
    ),
    "dev": _Entry("dev", OPERATION, "Start, stop and look at the embedded Redis and PostgreSQL.", group=True),
    "config": _Entry("config", OPERATION, "Show and check the configuration.", group=True),
    "doctor": _Entry(
        "doctor", OPERATION, "Check the services and this machine, with a fix for each finding."
    ),
}

EPILOG: Final = """\b
Examples:
  mdp demo --duration 30s
  mdp stream run --config configs/streaming.yaml
  mdp stream replay --dataset trades.zip --preset lean --speed max
  mdp store bars --symbol SPY --interval 1m --format csv

\b
--config, --json and --debug may stand before or after the command."""


def _set_config(ctx: typer.Context, value: Path | None) -> None:
    if value is not None:
        context.options(ctx).config = value


def _set_json(ctx: typer.Context, value: bool) -> None:
    if value:
        context.options(ctx).json = True


def _set_debug(ctx: typer.Context, value: bool) -> None:
    if value:
        context.options(ctx).debug = True


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Configuration; without it MDP_CONFIG, or configs/streaming.yaml if it is there.",
        callback=_set_config,
        expose_value=False,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="One JSON object a line on stdout.",
        callback=_set_json,
        expose_value=False,
    ),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        help="Debug logs, and a traceback with an error.",
        callback=_set_debug,
        expose_value=False,
    ),
]


def _version(value: bool) -> None:
    if value:
        print(f"mdp {__version__}")
        raise typer.Exit


def _global_options(config: Config = None, json: Json = False, debug: Debug = False) -> None:
    """Carries the options that every command takes."""


class _Lazy(TyperGroup):
    """Lists commands from the table, and imports one when it is resolved."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        return TyperGroup(name=cmd_name, help=entry.help, rich_help_panel=entry.panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        self.commands = {name: self.get_command(ctx, name) for name in COMMANDS}  # for "did you mean"
        name, command, rest = super().resolve_command(ctx, args)
        return name, None if name is None or command is None else load(name), rest

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for panel in dict.fromkeys(entry.panel for entry in COMMANDS.values()):
            with formatter.section(panel):
                formatter.write_dl(
                    [(name, entry.help) for name, entry in COMMANDS.items() if entry.panel == panel]
                )


def load(name: str) -> Any:
    """The click command behind a name of the table, taking the global options at every level."""
    entry = COMMANDS[name]
    module = import_module(f"market_data_pipeline.cli.{entry.module}")
    command: Any = get_command(module.app)
    command.name, command.help = name, command.help or entry.help
    # Completion is installed for `mdp` as a whole.
    command.params = [p for p in command.params if p.name not in ("install_completion", "show_completion")]
    _add_global_options(command, _shared_params())
    return command


def _shared_params() -> list[Any]:
    carrier = typer.Typer(add_completion=False)
    carrier.command()(_global_options)
    return list(get_command(carrier).params)


def _add_global_options(command: Any, params: list[Any]) -> None:
    taken = {option for param in command.params for option in param.opts}
    command.params.extend(param for param in params if not taken.intersection(param.opts))
    command.rich_markup_mode = None
    for child in getattr(command, "commands", {}).values():
        _add_global_options(child, params)


app = typer.Typer(
    name="mdp",
    cls=_Lazy,
    epilog=EPILOG,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)


@app.callback(invoke_without_command=True)
def mdp(
    ctx: typer.Context,
    config: Config = None,
    json: Json = False,
    debug: Debug = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Stream processing for market data: ticks to OHLCV bars, features and signals, exactly once."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())
        raise typer.Exit(2)


def main(args: list[str] | None = None) -> None:
    """Entry point of ``mdp``: runs a command and turns what it raises into one sentence and an exit code."""
    debug = "--debug" in (sys.argv[1:] if args is None else args)
    try:
        code = get_command(app).main(args, prog_name="mdp", standalone_mode=False)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as ended:
        if not isinstance(ended, BrokenPipeError) and not isinstance(ended.__context__, BrokenPipeError):
            raise
        # `mdp stream tail | head`: the reader has what it wanted.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(context.INTERRUPTED)
    except typer.Abort:
        context.say("mdp: stopped")
        sys.exit(1)
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        sentence, code = explain(error, sys.argv[1:] if args is None else args)
        context.say(sentence)
        sys.exit(code)
    sys.exit(code if isinstance(code, int) else 0)


def explain(error: Exception, args: Sequence[str] = ()) -> tuple[str, int]:
    """One sentence for stderr, and the exit code. ``args``: what was typed after ``mdp``."""
    from market_data_core.redact import redact

    while isinstance(error, ExceptionGroup):
        error = _telling(error)
    if isinstance(error, MdpError):
        return f"mdp: {redact(_one_line(str(error)))}", error.exit_code
    if isinstance(error, typer.TyperException):
        return _usage(error, args), error.exit_code
    text = _one_line(str(error))
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"mdp: unexpected {redact(said)}; run it again with --debug and report the traceback", 1


def _telling(group: ExceptionGroup[Exception]) -> Exception:
    """Of several errors at once the one that mdp can explain, or the first."""
    known = group.subgroup(MdpError)
    return (known or group).exceptions[0]


def _usage(error: typer.TyperException, args: Sequence[str]) -> str:
    message = error.format_message().strip()
    if "\n" in message and "Usage:" in message:  # a group called without a command: the whole help
        return message
    where = getattr(getattr(error, "ctx", None), "command_path", None) or _called(args)
    sentence = _one_line(message).replace("Value error, ", "").rstrip(".")
    return f"mdp: {sentence[:1].lower()}{sentence[1:]}; see `{where} --help`"


def _called(args: Sequence[str]) -> str:
    """The command that was meant, for errors that do not know: they come before it is entered."""
    words = [word for i, word in enumerate(args) if word[:1] != "-" and (i == 0 or args[i - 1] != "--config")]
    if not words or words[0] not in COMMANDS:
        return "mdp"
    return " ".join(["mdp", *words[: 2 if COMMANDS[words[0]].group else 1]])


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    main()
