"""Who sets a value, who wins, and who never sees it."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_core.config_files import Given, check, keys, load
from market_data_core.errors import ConfigError
from market_data_core.redact import SecretUrl, redact

PASSWORD = "hunter2-and-more"  # noqa: S105


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mdp.yaml"
    path.write_text(
        "micro_batch: {window_ms: 3000, allow_late_ms: 100}\nbus: {redis: {uri: 'redis://file'}}",
        encoding="utf-8",
    )
    return path


def test_later_sources_win_and_each_value_knows_its_own(file: Path) -> None:
    settings = load(
        file,
        environ={
            "MDP_MICRO_BATCH__ALLOW_LATE_MS": "1s",
            "REDIS_URI": "redis://env",
            "MDP_TELEMETRY__METRICS_PORT": "9200",
        },
        given=[
            Given("--metrics-port", "telemetry.metrics_port", 9300),
            Given("--group", "bus.redis.consumer_group", None),
        ],
    )
    assert (settings.micro_batch.window_ms, settings.source("micro_batch.window_ms")) == (3000, str(file))
    assert (settings.micro_batch.allow_late_ms, settings.source("micro_batch.allow_late_ms")) == (
        1000,
        "environment variable MDP_MICRO_BATCH__ALLOW_LATE_MS",
    )
    assert (settings.bus.redis.uri.reveal(), settings.source("bus.redis.uri")) == (
        "redis://env",
        "environment variable REDIS_URI",
    )
    assert (settings.telemetry.metrics_port, settings.source("telemetry.metrics_port")) == (
        9300,
        "--metrics-port",
    )
    assert (settings.micro_batch.max_batch_size, settings.source("micro_batch.max_batch_size")) == (
        5000,
        "default",
    )
    assert settings.bus.redis.consumer_group == "mdp-consumers"


def test_every_key_has_a_variable_that_sets_it() -> None:
    settings = load(None, environ={})
    for key in keys():
        value: object = settings
        for part in key.path.split("."):
            value = getattr(value, part)
        if key.path in ("version", "datasets") or not isinstance(value, str | int | float):
            continue
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if text:  # the default, said once more
            assert (
                load(None, environ={key.variable: text}).source(key.path)
                == f"environment variable {key.variable}"
            )


def test_lists_come_from_a_variable_as_yaml() -> None:
    settings = load(None, environ={"MDP_PRODUCERS__SYNTHETIC__SYMBOLS": "[A, B]"})
    assert settings.producers.synthetic.symbols == ("A", "B")


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        (
            {"MDP_MICRO_BATCH__WINDO_MS": "1"},
            "environment: MDP_MICRO_BATCH__WINDO_MS: is no key of the configuration; "
            "did you mean MDP_MICRO_BATCH__WINDOW_MS?",
        ),
        (
            {"MDP_MICRO_BATCH__WINDOW_MS": "0"},
            "environment variable MDP_MICRO_BATCH__WINDOW_MS: micro_batch.window_ms: must be at least 1 (got 0); "
            "set it to e.g. 2000",
        ),
        (
            {"REDIS_URI": "redis://a", "REDIS_URI_FILE": "/b"},
            "environment: REDIS_URI and REDIS_URI_FILE are both set; unset one of them",
        ),
        (
            {"DATABASE_URL_FILE": "/nowhere/secret"},
            "environment: DATABASE_URL_FILE: cannot read /nowhere/secret (No such file or directory); "
            "name a readable file",
        ),
    ],
)
def test_a_wrong_variable_is_named(environ: dict[str, str], sentence: str) -> None:
    assert check(None, environ=environ)[1] == [sentence]


def test_an_option_is_named_as_the_user_wrote_it() -> None:
    _, problems = check(None, environ={}, given=[Given("--window", "micro_batch.window_ms", "2 parsecs")])
    assert problems == [
        "--window: micro_batch.window_ms: must be a whole number of milliseconds or a duration such as 500ms or 2s "
        "(got '2 parsecs'); set it to e.g. 2000"
    ]


def test_an_option_reaches_into_a_file_that_has_something_else_there(tmp_path: Path) -> None:
    file = tmp_path / "mdp.yaml"
    file.write_text("micro_batch: 5", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mdp\.yaml: micro_batch: must hold keys and values \(got 5\)"):
        load(file, environ={}, given=[Given("--window", "micro_batch.window_ms", "2s")])


def test_secrets_from_files(tmp_path: Path) -> None:
    secret = tmp_path / "url"
    secret.write_text("postgresql://u:p@h/d\n", encoding="utf-8")
    settings = load(None, environ={"DATABASE_URL_FILE": str(secret)})
    assert settings.store.url.reveal() == "postgresql://u:p@h/d"
    assert settings.source("store.url") == "environment variable DATABASE_URL_FILE"


def test_expansion(tmp_path: Path) -> None:
    file, secret = tmp_path / "mdp.yaml", tmp_path / "password"
    secret.write_text("s3cret\n", encoding="utf-8")
    file.write_text(
        "bus: {redis: {uri: 'redis://:${PW}@${HOST:-localhost}:${PORT:-6379}/0', stream: '${EMPTY:-a}'}}\n"
        "micro_batch: {window_ms: '${WINDOW}'}\n"
        "producers: {synthetic: {provider: '$${x}'}, spool: {path: '$HOME/a'}}",
        encoding="utf-8",
    )
    settings = load(file, environ={"PW_FILE": str(secret), "PORT": "6380", "EMPTY": "", "WINDOW": "5s"})
    assert settings.bus.redis.uri.reveal() == "redis://:s3cret@localhost:6380/0"
    assert settings.bus.redis.stream == "a"
    assert settings.micro_batch.window_ms == 5000
    assert settings.producers.synthetic.provider == "${x}"
    assert settings.producers.spool.path == "$HOME/a", "only ${NAME} is a variable"


def test_the_file_is_found_without_being_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(None, environ={}).file is None
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "streaming.yaml").write_text("micro_batch: {window_ms: 1000}", encoding="utf-8")
    (tmp_path / "own.yaml").write_text("micro_batch: {window_ms: 4000}", encoding="utf-8")
    assert load(None, environ={}).micro_batch.window_ms == 1000
    assert load(None, environ={"MDP_CONFIG": "own.yaml"}).micro_batch.window_ms == 4000
    assert (
        load(Path("configs/streaming.yaml"), environ={"MDP_CONFIG": "own.yaml"}).micro_batch.window_ms == 1000
    )


def test_an_installed_driver_is_a_bus_type(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    entry = metadata.EntryPoint(name="nats", value="x:y", group="mdp.buses")
    monkeypatch.setattr(metadata, "entry_points", lambda group: metadata.EntryPoints([entry]))
    assert load(None, environ={"MDP_BUS__TYPE": "nats"}).bus.type == "nats"


# --- secrets -----------------------------------------------------------------------------------------------------

URLS = [
    f"redis://:{PASSWORD}@h:6379/0",
    f"postgresql://u:{PASSWORD}@h/d?sslmode=require",
    f"postgresql://u:{PASSWORD}/with@and#chars@h/d",
    f"postgresql://h/d?user=u&password={PASSWORD}&x=1",
    f"host=h password={PASSWORD} dbname=d",
    f"host=h sslpassword='{PASSWORD} x' dbname=d",
    f'{{"password": "{PASSWORD}"}}',
]


@pytest.mark.parametrize("url", URLS)
def test_redaction_hides_the_password_and_keeps_the_rest_readable(url: str) -> None:
    hidden = redact(f"cannot connect to {url}, sorry")
    assert PASSWORD not in hidden
    assert "***" in hidden
    assert hidden.startswith("cannot connect to ")


@given(st.text(string.ascii_letters + string.digits + "@:/?#%&=+-._~!$*,;", min_size=12, max_size=40))
def test_no_password_however_odd_survives(password: str) -> None:
    assert password not in redact(f"redis://user:{password}@host:6379/0")


def test_text_without_secrets_is_left_alone() -> None:
    text = "configs/x.yaml: line 3: see https://example.com/a?b=c and redis://host:6379/0, at 10:30"
    assert redact(text) == text


def test_settings_never_print_a_secret(tmp_path: Path) -> None:
    environ = {"REDIS_URI": f"redis://:{PASSWORD}@h/0", "DATABASE_URL": f"postgresql://u:{PASSWORD}@h/d"}
    settings = load(None, environ=environ)
    printed = f"{settings} {settings!r} {settings.model_dump()} {settings.model_dump_json()}"
    assert PASSWORD not in printed
    assert settings.bus.redis.uri == SecretUrl(f"redis://:{PASSWORD}@h/0")


@pytest.mark.parametrize(
    "text",
    [
        f"bus: {{redis: {{uri: 'http://u:{PASSWORD}@h'}}}}",
        f"store: {{url: 'mysql://u:{PASSWORD}@h'}}",
        f"store: {{url: 'postgresql://u:{PASSWORD}@h', pool_size: 0}}",
        f"store: {{url: ['postgresql://u:{PASSWORD}@h']}}",
        f"store: 'postgresql://u:{PASSWORD}@h'",
        f"bus: {{redis: {{uri: 'redis://u:{PASSWORD}@h', stream: mdp.bars}}}}",
        f"datasets: {{d: {{path: 'https://u:{PASSWORD}@h/x', kind: trade}}}}",
        f"store: {{url: 'postgresql://u:{PASSWORD}@h'",
        f"store: {{uri: 'postgresql://u:{PASSWORD}@h'}}",
    ],
)
def test_no_message_holds_a_secret(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mdp.yaml"
    file.write_text(text, encoding="utf-8")
    settings, problems = check(file, environ={})
    assert settings is None
    assert problems
    assert not [problem for problem in problems if PASSWORD in problem]
    with pytest.raises(ConfigError) as caught:
        load(file, environ={})
    assert PASSWORD not in str(caught.value)
    assert PASSWORD not in repr(caught.value)
