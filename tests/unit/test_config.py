"""What a configuration may say, and the one sentence for everything it may not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from market_data_core.config import Settings
from market_data_core.config_files import check, keys, load
from market_data_core.errors import ConfigError

SEED = """
version: 1
bus:
  type: "redis"
  redis:
    uri: ${REDIS_URI:-redis://redis:6379/0}
    stream: "mdp.events"
    signals_stream: "mdp.signals"
    consumer_group: "mdp-consumers"
producers:
  synthetic:
    enabled: true
    symbols: ["SPY", "AAPL", "MSFT"]
    tick_rate: 1.0
    price_volatility: 0.02
micro_batch:
  window_ms: 2000
  max_batch_size: 5000
  allow_late_ms: 500
  flush_timeout_ms: 1000
features:
  windows:
    - { name: "vwap_1m",  horizon: "60s" }
    - { name: "ret_30s",  horizon: "30s" }
    - { name: "vol_5m",   horizon: "300s" }
inference:
  adapters:
    rules:
      enabled: true
      file: "configs/rules.yaml"
    sklearn:
      enabled: false
      model_path: ""
telemetry:
  metrics_port: 9101
  log_level: INFO
"""

MISTAKES = yaml.safe_load((Path(__file__).parent / "config_mistakes.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "streaming.yaml"


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake["text"][:60] for mistake in MISTAKES])
def test_one_sentence_names_the_file_the_key_and_the_fix(file: Path, mistake: dict[str, str]) -> None:
    file.write_text(mistake["text"], encoding="utf-8")
    settings, problems = check(file, environ={})
    assert settings is None
    assert problems == [f"{file}: {mistake['says']}"]


def test_the_seed_loads_unchanged(file: Path) -> None:
    file.write_text(SEED, encoding="utf-8")
    settings = load(file, environ={})
    assert settings.bus.redis.uri.reveal() == "redis://redis:6379/0"
    assert settings.producers.synthetic.symbols == ("SPY", "AAPL", "MSFT")
    assert [w.horizon_ns for w in settings.features.windows] == [60 * 10**9, 30 * 10**9, 300 * 10**9]
    ours, seeds = Settings().model_dump(), settings.model_dump()
    ours["bus"]["redis"]["uri"] = seeds["bus"]["redis"]["uri"]
    assert seeds == ours, "our defaults are the seed's values"


@pytest.mark.parametrize("name", ["streaming", "market_data"])
def test_the_files_that_come_along_load_with_an_empty_environment(name: str) -> None:
    assert load(Path("configs", f"{name}.yaml"), environ={}).version == 1


def test_the_production_file_wants_both_servers() -> None:
    file = Path("configs/production.yaml")
    with pytest.raises(ConfigError, match=r"bus\.redis\.uri: environment variable REDIS_URI is not set"):
        load(file, environ={})
    settings = load(file, environ={"REDIS_URI": "redis://r", "DATABASE_URL": "postgres://u:p@h/d"})
    assert settings.store.url.reveal() == "postgresql://u:p@h/d"


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(
        ConfigError, match=r"^nowhere\.yaml: there is no such file; name another with --config$"
    ):
        load(Path("nowhere.yaml"), environ={})


def test_a_file_that_is_no_text(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00v")
    with pytest.raises(ConfigError, match="is not UTF-8 text; save it as UTF-8"):
        load(file, environ={})


def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)"):
        load(tmp_path, environ={})


def test_of_many_problems_the_first_is_said_and_the_rest_counted(file: Path) -> None:
    file.write_text("micro_batch: {window_ms: 0, max_batch_size: 0, allow_late_ms: -1}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"window_ms: .*\(and 2 more: mdp config validate lists them\)$"):
        load(file, environ={})
    assert len(check(file, environ={})[1]) == 3


def test_words_that_older_yaml_takes_for_something_else_stay_words(file: Path) -> None:
    file.write_text(
        "producers: {synthetic: {symbols: [ON, NO, Y, 1:30, 0x1F, 2013-10-07, 1_000]}}", encoding="utf-8"
    )
    symbols = load(file, environ={}).producers.synthetic.symbols
    assert symbols == ("ON", "NO", "Y", "1:30", "0x1F", "2013-10-07", "1_000")


def test_a_section_whose_keys_are_all_commented_out_has_defaults(file: Path) -> None:
    file.write_text("bus:\nmicro_batch:\n  # window_ms: 5000\n", encoding="utf-8")
    assert load(file, environ={}).model_dump() == Settings().model_dump()


@pytest.mark.parametrize(
    ("text", "ms"), [("500ms", 500), ("2s", 2000), ("1m", 60_000), ("1h", 3_600_000), (250, 250)]
)
def test_milliseconds_may_be_durations(file: Path, text: object, ms: int) -> None:
    file.write_text(f"micro_batch: {{window_ms: {text}}}", encoding="utf-8")
    assert load(file, environ={}).micro_batch.window_ms == ms


def test_every_key_is_described_and_has_a_default_or_is_required() -> None:
    found = list(keys())
    assert {"bus.redis.uri", "micro_batch.window_ms", "store.url", "datasets"} <= {key.path for key in found}
    for key in found:
        assert key.info.description, key.path
        assert not key.info.is_required(), key.path
        if key.path.endswith("_ms"):
            assert key.unit == "ms", key.path


def test_relative_paths_are_found_from_the_working_directory_then_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    (project / "configs").mkdir(parents=True)
    (project / "configs" / "rules.yaml").touch()
    file = project / "configs" / "streaming.yaml"
    file.write_text("version: 1", encoding="utf-8")
    settings = load(file, environ={})
    monkeypatch.chdir(tmp_path)
    assert settings.locate("configs/rules.yaml") == project / "configs" / "rules.yaml"
    assert settings.locate("rules.yaml") == project / "configs" / "rules.yaml"
    assert settings.locate("other.yaml") == Path("other.yaml")
    (tmp_path / "rules.yaml").touch()
    assert settings.locate("rules.yaml") == Path("rules.yaml")
