"""The frame of the command line: options, help, how a run ends, and what it says when it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from market_data_core import __version__
from market_data_core.errors import BusUnavailable, ConfigError, MdpError, StoreError
from market_data_pipeline.cli import app, context

PASSWORD = "hunter2-and-more"  # noqa: S105


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Mdp = Callable[..., Ended]


@pytest.fixture
def mdp(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Mdp:
    """Run a command in this process, in an empty folder with an empty environment."""
    for name in [name for name in os.environ if name.startswith("MDP_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("REDIS_URI", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("MDP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            app.main(list(args))
        out, err = capfd.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Adds a command ``probe`` that runs the given function."""

    def add(function: Callable[..., Any]) -> None:
        module = types.ModuleType("market_data_pipeline.cli.probe")
        probe = typer.Typer()
        probe.command()(function)
        module.app = probe  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(app.COMMANDS, "probe", app._Entry("probe", app.OPERATION, "A probe."))

    return add


def test_version(mdp: Mdp) -> None:
    assert mdp("--version") == Ended(0, f"mdp {__version__}\n", "")


def test_help_comes_in_groups_with_examples(mdp: Mdp) -> None:
    ended = mdp("--help")
    assert ended.code == 0
    for heading in ("Pipeline:", "Operation:", "Examples:", "mdp demo --duration 30s"):
        assert heading in ended.out
    for name in app.COMMANDS:
        assert f"  {name} " in ended.out
    assert mdp("-h").out == ended.out


def test_without_a_command_the_help_is_shown_and_that_is_wrong_usage(mdp: Mdp) -> None:
    ended = mdp()
    assert ended.code == 2
    assert ended.out == mdp("--help").out


@pytest.mark.parametrize("name", list(app.COMMANDS))
def test_every_command_of_the_table_is_there(mdp: Mdp, name: str) -> None:
    ended = mdp(name, "--help")
    assert (ended.code, ended.err) == (0, "")
    for option in ("--config", "--json", "--debug"):
        assert option in ended.out or "COMMAND" in ended.out


HEAVY = (
    "numpy",
    "pandas",
    "redis",
    "psycopg",
    "sqlalchemy",
    "alembic",
    "asyncio",
    "structlog",
    "pydantic",
    "rich",
    "yaml",
    "msgspec",
    "sklearn",
    "aiokafka",
    "pyarrow",
    "prometheus_client",
)


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["--nonsense"]])
def test_help_is_light(args: list[str]) -> None:
    code = (
        "import sys\nfrom market_data_pipeline.cli.app import main\n"
        f"try: main({args})\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("words", "expected"),
    [("mdp ", set(app.COMMANDS)), ("mdp config ", {"show", "validate"}), ("mdp dev st", {"status"})],
)
def test_shells_complete(words: str, expected: set[str]) -> None:
    environ = os.environ | {
        "_MDP_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    code = "from market_data_pipeline.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False
    )
    assert set(done.stdout.split()) == expected


def test_global_options_stand_anywhere(mdp: Mdp, command: Callable[..., None], tmp_path: Path) -> None:
    seen: list[context.Options] = []

    def probe(ctx: typer.Context) -> None:
        seen.append(context.options(ctx))

    command(probe)
    expected = context.Options(config=Path("c.yaml"), json=True, debug=True)
    assert mdp("--config", "c.yaml", "--json", "--debug", "probe").code == 0
    assert mdp("probe", "--config", "c.yaml", "--json", "--debug").code == 0
    assert mdp("--json", "probe", "--debug", "--config", "c.yaml").code == 0
    assert mdp("probe").code == 0
    assert seen == [expected, expected, expected, context.Options()]


def test_an_option_after_the_command_wins(mdp: Mdp, command: Callable[..., None]) -> None:
    seen: list[Path | None] = []

    def probe(ctx: typer.Context) -> None:
        seen.append(context.options(ctx).config)

    command(probe)
    assert mdp("--config", "a.yaml", "probe", "--config", "b.yaml").code == 0
    assert seen == [Path("b.yaml")]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["strem"], "mdp: no such command 'strem'. Did you mean 'stream', 'store'?; see `mdp --help`"),
        (["dev", "upp"], "mdp: no such command 'upp'. Did you mean 'up'?; see `mdp dev --help`"),
        (["config"], None),
        (["dev"], "mdp: missing command; see `mdp dev --help`"),
        (["--nonsense"], "mdp: no such option: --nonsense; see `mdp --help`"),
        (
            ["config", "show", "--chngd"],
            "mdp: no such option: --chngd (Possible options: --changed, --config); see `mdp config show --help`",
        ),
        (["config", "show", "--config"], "mdp: option '--config' requires an argument; see `mdp config show --help`"),
        (
            ["config", "show", "surplus"],
            "mdp: got unexpected extra argument(s) (surplus); see `mdp config show --help`",
        ),
        (
            ["--config", "nowhere.yaml", "config", "show"],
            "mdp: nowhere.yaml: there is no such file; name another with --config",
        ),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_sentence(mdp: Mdp, args: list[str], sentence: str | None) -> None:
    ended = mdp(*args)
    assert (ended.code, ended.out) == (2, "")
    if sentence is not None:
        assert ended.err == sentence + "\n"


def raising(error: BaseException) -> Callable[[], None]:
    def probe() -> None:
        raise error

    return probe


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (MdpError("a; b"), 1, "mdp: a; b"),
        (ConfigError("f: k: must be 1"), 2, "mdp: f: k: must be 1"),
        (StoreError(f"postgresql://u:{PASSWORD}@h/d\nrefuses"), 1, "mdp: postgresql://u:***@h/d refuses"),
        (
            ExceptionGroup("g", [ValueError("x"), ExceptionGroup("h", [BusUnavailable("gone; wait")])]),
            1,
            "mdp: gone; wait",
        ),
        (
            ExceptionGroup("g", [KeyError("x")]),
            1,
            "mdp: unexpected KeyError: 'x'; run it again with --debug and report the traceback",
        ),
        (
            RuntimeError(f"redis://:{PASSWORD}@h"),
            1,
            "mdp: unexpected RuntimeError: redis://:***@h; run it again with --debug and report the traceback",
        ),
        (KeyboardInterrupt(), 130, ""),
        (typer.Exit(3), 3, ""),
        (typer.Abort(), 1, "mdp: stopped"),
    ],
)
def test_what_a_command_raises_becomes_one_sentence(
    mdp: Mdp, command: Callable[..., None], error: BaseException, code: int, sentence: str
) -> None:
    command(raising(error))
    ended = mdp("probe")
    assert (ended.code, ended.out, ended.err) == (code, "", sentence + "\n" if sentence else "")


def test_debug_shows_the_traceback(mdp: Mdp, command: Callable[..., None]) -> None:
    command(raising(MdpError("a; b")))
    ended = mdp("probe", "--debug")
    assert ended.code == 1
    assert "Traceback (most recent call last)" in ended.err
    assert ended.err.endswith("mdp: a; b\n")


# --- signals -------------------------------------------------------------------------------------------------

WAITER = """
import asyncio, sys, typer
from market_data_pipeline.cli import context

async def main(how):
    try:
        print("ready", flush=True)
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        if how == "returns":
            return
        if how == "hangs":
            print("hanging", flush=True)
            await asyncio.Event().wait()
        raise
    finally:
        print("given back", flush=True)

try:
    context.run(main(sys.argv[1]))
except typer.Exit as ended:
    sys.exit(ended.exit_code)
"""


@pytest.mark.parametrize(
    ("how", "sent", "code"),
    [
        ("raises", signal.SIGINT, 130),
        ("returns", signal.SIGINT, 130),
        ("raises", signal.SIGTERM, 143),
        ("returns", signal.SIGTERM, 0),
    ],
)
def test_a_signal_ends_a_command_cleanly(how: str, sent: signal.Signals, code: int) -> None:
    with subprocess.Popen([sys.executable, "-c", WAITER, how], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(sent)
        assert process.stdout.read() == "given back\n"
        assert process.wait(10) == code


def test_a_second_ctrl_c_does_not_wait() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITER, "hangs"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "hanging\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stdout.read() == ""


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(
        "import itertools, sys, types, typer\n"
        "from market_data_pipeline.cli import app, context\n"
        "probe = typer.Typer()\n"
        "@probe.command()\n"
        "def endless(): [context.emit({'n': n}) for n in itertools.count()]\n"
        "sys.modules['market_data_pipeline.cli.endless'] = types.SimpleNamespace(app=probe)\n"
        "app.COMMANDS['endless'] = app._Entry('endless', 'x', 'y')\n"
        "app.main(['endless'])\n"
    )
    pipeline = f'set -o pipefail; "{sys.executable}" "{script}" | head -n 2'
    done = subprocess.run(["bash", "-c", pipeline], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr[-300:]) == (0, '{"n":0}\n{"n":1}\n', "")


def test_json_has_no_nan() -> None:
    code = "from market_data_pipeline.cli import context; context.emit({'a': float('nan'), 'b': [1.5, None]})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"a": None, "b": [1.5, None]}


# --- mdp config, mdp dev, mdp doctor -------------------------------------------------------------------------


def test_config_show_says_where_each_value_comes_from(
    mdp: Mdp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text("micro_batch: {window_ms: 5s}\ndatasets: {d: {path: x, preset: lean}}")
    monkeypatch.setenv("DATABASE_URL", f"postgresql://u:{PASSWORD}@h/d")
    ended = mdp("config", "show", "--config", "own.yaml", "--json")
    rows = {row["key"]: row for row in map(json.loads, ended.out.splitlines())}
    assert rows["micro_batch.window_ms"] == {
        "key": "micro_batch.window_ms",
        "value": 5000,
        "source": "own.yaml",
    }
    assert rows["store.url"]["value"] == "postgresql://u:***@h/d"
    assert rows["store.url"]["source"] == "environment variable DATABASE_URL"
    assert rows["bus.codec"]["source"] == "default"
    assert rows["datasets.d.preset"] == {"key": "datasets.d.preset", "value": "lean", "source": "own.yaml"}

    table = mdp("config", "show", "--config", "own.yaml", "--changed")
    assert table.code == 0
    assert "5000" in table.out
    assert "bus.codec" not in table.out
    assert PASSWORD not in ended.out + ended.err + table.out + table.err


def test_config_validate_names_everything_that_is_wrong(mdp: Mdp, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("micro_batch: {window_ms: 0, max_batch_size: 0}")
    ended = mdp("config", "validate", "own.yaml")
    assert (ended.code, ended.out) == (2, "")
    assert [line.split(": ")[2] for line in ended.err.splitlines()] == [
        "micro_batch.window_ms",
        "micro_batch.max_batch_size",
    ]
    (tmp_path / "own.yaml").write_text("micro_batch: {window_ms: 1}")
    assert mdp("config", "validate", "--config", "own.yaml") == Ended(0, "own.yaml: valid\n", "")


def test_config_validate_reads_the_rules_too(mdp: Mdp, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "rules.yaml").write_text(
        "- {name: a, condition: rssi > 70, signal: 1, score: 2}\n- {name: b, condition: rsi >, signal: 1, score: 1}"
    )
    (tmp_path / "own.yaml").write_text("version: 1")
    says = [
        "configs/rules.yaml: rule a: score: must be at most 1.0 (got 2); set it to e.g. 0.7",
        "configs/rules.yaml: rule b: condition: column 6: the end cannot stand here after '>'",
    ]
    ended = mdp("config", "validate", "own.yaml")
    assert (ended.code, ended.out, ended.err) == (2, "", "".join(f"mdp: {text}\n" for text in says))
    ended = mdp("config", "validate", "own.yaml", "--json")
    assert json.loads(ended.out) == {"valid": False, "problems": says}


def test_dev_starts_shows_and_stops(mdp: Mdp) -> None:
    assert mdp("dev", "status").code == 1
    try:
        up = [json.loads(line) for line in mdp("dev", "up", "--json").out.splitlines()]
        assert [row["service"] for row in up] == ["redis", "postgres"]
        assert all(row["result"].startswith("started in") for row in up)
        assert mdp("dev", "up").out.count("already running") == 2
        status = mdp("dev", "status", "--json")
        assert status.code == 0
        assert [json.loads(line)["pid"] for line in status.out.splitlines()] == [row["pid"] for row in up]
    finally:
        down = mdp("dev", "down")
    assert (down.code, down.out) == (0, "redis: stopped\npostgres: stopped\n")
    assert mdp("dev", "down").out == "redis: was not running\npostgres: was not running\n"


def test_doctor_finds_the_embedded_services_well(mdp: Mdp) -> None:
    try:
        ended = mdp("doctor", "--json")
    finally:
        mdp("dev", "down")
    findings = {row["check"]: row for row in map(json.loads, ended.out.splitlines())}
    for check in ("configuration", "redis", "redis durability", "postgres", "schema", "postgres durability"):
        assert findings[check]["state"] == "ok", findings[check]
    assert findings["timescaledb"]["state"] == "warn"
    assert all(row["fix"] for row in findings.values() if row["state"] != "ok")
    assert ended.code == 0


def test_doctor_says_what_is_broken_and_exits_1(mdp: Mdp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URI", f"redis://:{PASSWORD}@127.0.0.1:1/0")
    monkeypatch.setenv("DATABASE_URL", f"postgresql://u:{PASSWORD}@127.0.0.1:1/d")
    ended = mdp("doctor", "--json")
    findings = {row["check"]: row for row in map(json.loads, ended.out.splitlines())}
    assert ended.code == 1
    assert findings["redis"]["state"] == "fail"
    assert findings["postgres"]["state"] == "fail"
    assert all(row["fix"] for row in findings.values() if row["state"] == "fail")
    assert PASSWORD not in ended.out + ended.err
    assert mdp("doctor", "--config", "nowhere.yaml").code == 1
