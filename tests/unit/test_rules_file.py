"""rules.yaml: what may stand in it, and the one sentence for everything that may not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from market_data_core.config_files import load
from market_data_core.errors import ConfigError
from market_data_pipeline.inference.rule import OWN_META
from market_data_pipeline.inference.rules_file import (
    MAX_BYTES,
    MAX_RULES,
    check_rules,
    load_rules,
    locate,
    problems_of,
    rules_of,
)
from tests.unit.rule_samples import FEATURES

FILE = Path("rules.yaml")
GOOD: dict[str, Any] = {"name": "a", "condition": "rsi > 70", "signal": 1.0, "score": 0.5}
MISTAKES = yaml.safe_load((Path(__file__).parent / "rules_mistakes.yaml").read_text("utf-8"))


def _yaml(*rules: dict[str, Any]) -> bytes:
    return yaml.safe_dump(list(rules)).encode()


@pytest.mark.parametrize("mistake", MISTAKES, ids=[str(m.get("rule", m.get("without"))) for m in MISTAKES])
def test_one_sentence_names_the_file_the_rule_the_key_and_the_fix(mistake: dict[str, Any]) -> None:
    rule = {**GOOD, **mistake.get("rule", {})}
    rule.pop(mistake.get("without"), None)
    assert check_rules(_yaml(rule), FILE, FEATURES) == ((), [f"rules.yaml: {mistake['says']}"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty; begin each rule with `- name:`, or write [] for none"),
        ("name: a", "must hold a list of rules; begin each rule with `- name:`, or write [] for none"),
        ("- 5", "rule number 1: must hold keys and values (got 5); known are name, condition, "),
        ("[[[", "line 1, column 4: is not valid YAML (expected the node content, but found '<stream end>')"),
        ("- {name: a, name: b}", "line 1, column 13: is not valid YAML (the key 'name' is there twice)"),
        ("- !!python/name:os.system", "line 1, column 3: is not valid YAML (a tag such as !name is not"),
        ("- !!timestamp x", "line 1, column 3: is not valid YAML (a tag such as !name is not understood)"),
        ("? [a]\n: b", "line 1, column 3: is not valid YAML (found unhashable key)"),
        ("- " + "9" * 5000, "line 1, column 3: is not valid YAML (a number is too long)"),
        ("[" * 10_000, "line 1, column 33: is not valid YAML (it is nested too deeply)"),
        ("- " * 5_000, "is nested too deeply; take out some of its lists"),
        ("- a\0", "is not valid YAML"),
        ("[" + "[]," * (MAX_RULES + 1) + "]", "has 1001 rules, more than 1000; split it"),
    ],
)
def test_a_file_that_is_no_list_of_rules(text: str, says: str) -> None:
    rules, problems = check_rules(text.encode(), FILE, FEATURES)
    assert rules == ()
    assert problems[0].startswith(f"rules.yaml: {says}")


def test_a_file_that_is_no_text() -> None:
    with pytest.raises(ConfigError, match=r"^rules\.yaml: is not UTF-8 text; save it as UTF-8$"):
        rules_of(b"\xff\xfe", FILE, FEATURES)


def test_every_problem_is_found_and_the_first_is_raised() -> None:
    content = _yaml({**GOOD, "score": 2}, {**GOOD, "condition": "rssi > 1", "meta": {"n": "{x}"}}, GOOD)
    problems = check_rules(content, FILE, FEATURES)[1]
    assert [p.split(": ")[2] for p in problems] == ["score", "condition", "meta.n", "name"]
    assert problems[-1] == "rules.yaml: rule a: name: is the name of a rule above too; take another"
    with pytest.raises(
        ConfigError, match=r"score: must be .* \(and 3 more: mdp config validate lists them\)$"
    ):
        rules_of(content, FILE, FEATURES)


def test_the_rules_that_come_along_are_the_five_of_the_seed() -> None:
    rules = load_rules(Path("configs/rules.yaml"), ("momentum", "volatility", "rsi"))
    assert [(r.name.text, r.condition.text, r.signal, r.score) for r in rules] == [
        ("price_momentum_up", "momentum > 0.01", 1.0, 0.8),
        ("price_momentum_down", "momentum < -0.01", -1.0, 0.8),
        ("high_volatility", "volatility > 0.3", 0.0, 0.9),
        ("rsi_overbought", "rsi > 70", -1.0, 0.7),
        ("rsi_oversold", "rsi < 30", 1.0, 0.7),
    ]
    assert all((r.edge, r.cooldown_ns, r.symbols, r.meta) == (False, 0, None, ()) for r in rules)


def test_everything_that_can_be_written() -> None:
    content = b"""
    - name: "hot_{symbol}"
      condition: >
        rsi > 70
        and momentum > 0
      signal: -1
      score: 1
      trigger: edge
      cooldown: 5m
      symbols: [SPY, "BRK*", ON]
      meta: {note: "rsi {rsi:.1f}", rsi: "{rsi}", strength: 3, strong: true, volume: "{volume}", who: ~}
    """
    (rule,) = rules_of(content, FILE, FEATURES)
    assert (rule.edge, rule.cooldown_ns, rule.signal, rule.score) == (True, 300 * 10**9, -1.0, 1.0)
    assert rule.condition.features == ("rsi", "momentum")
    assert rule.said == ("rsi", "volume")
    assert [rule.concerns(s) for s in ("SPY", "BRK.A", "ON", "SPYX", "XBRK")] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert dict(rule.meta)["strength"] == 3
    assert not {name for name, _ in rule.meta} & set(OWN_META)


def test_no_rules_are_written_as_an_empty_list() -> None:
    assert rules_of(b"[]", FILE, FEATURES) == ()


# --- where the file is -----------------------------------------------------------------------------------------


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    fifo, large = tmp_path / "fifo", tmp_path / "large"
    os.mkfifo(fifo)
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    for path, says in (
        (fifo, "is not a file; name one in inference.adapters.rules.file"),
        (tmp_path, "is not a file; name one in inference.adapters.rules.file"),
        (Path("/dev/zero"), "is not a file; name one in inference.adapters.rules.file"),
        (large, "is larger than 1,048,576 bytes; split it"),
        (
            tmp_path / "none",
            "there is no such file; write it, or name another in inference.adapters.rules.file",
        ),
        (large / "below", "cannot be read (Not a directory); name another in inference.adapters.rules.file"),
        (
            tmp_path / "a\0b",
            "cannot be read (its name is no path); name another in inference.adapters.rules.file",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            load_rules(path, FEATURES)
        assert str(caught.value) == f"{path}: {says}"


def test_the_default_name_falls_back_to_the_rules_that_come_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path.cwd()
    monkeypatch.chdir(tmp_path)
    settings = load(None, environ={})
    assert locate(settings).samefile(root / "configs" / "rules.yaml")
    assert problems_of(settings) == []
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "rules.yaml").touch()
    assert locate(settings) == Path("configs/rules.yaml")


def test_any_other_name_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load(None, environ={"MDP_INFERENCE__ADAPTERS__RULES__FILE": "my/rules.yaml"})
    assert locate(settings) == Path("my/rules.yaml")
    assert problems_of(settings) == [
        "my/rules.yaml: there is no such file; write it, or name another in inference.adapters.rules.file"
    ]
    disabled = {"MDP_INFERENCE__ADAPTERS__RULES__ENABLED": "false"}
    assert problems_of(load(None, environ=disabled)) == []


def test_rules_may_use_what_is_configured_and_what_is_always_there(tmp_path: Path) -> None:
    rules, config = tmp_path / "rules.yaml", tmp_path / "streaming.yaml"
    condition = "vwap_1m > price and own > 0 and retuns > returns"
    rules.write_bytes(
        _yaml({**GOOD, "condition": condition}, {**GOOD, "name": "b", "condition": "volum > 1"})
    )
    config.write_text(
        f"inference: {{adapters: {{rules: {{file: {rules}}}}}}}\n"
        "features: {windows: [{name: vwap_1m, horizon: 60s}, {name: own, horizon: 60s, kind: vol}]}"
    )
    assert problems_of(load(config, environ={})) == [
        f"{rules}: rule a: condition: column 33: 'retuns' is no feature; did you mean returns or log_return?",
        f"{rules}: rule b: condition: column 1: 'volum' is no feature; did you mean volume?",
    ]
    rules.write_bytes(_yaml({**GOOD, "condition": "own > 0"}, {**GOOD, "name": "b"}))
    assert problems_of(load(config, environ={"MDP_INFERENCE__INTERVAL": "30s"})) == [
        f"{rules}: rule a: cannot be had from these bars: features.windows: own has a horizon of 60s, which holds "
        "2 bars of 30s, and it needs 3; lengthen it or take shorter bars"
    ]
