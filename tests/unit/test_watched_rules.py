"""Rules that follow their file: replaced whole, or left as they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import structlog
from structlog.testing import LogCapture

from market_data_core.clock import ManualClock
from market_data_core.config_files import load
from market_data_core.config_signals import Features
from market_data_core.errors import ConfigError
from market_data_pipeline.inference.adapter import InferenceAdapter
from market_data_pipeline.inference.adapters import watched_rules
from market_data_pipeline.inference.adapters.watched_rules import WatchedRules
from market_data_pipeline.inference.decider import Decider
from market_data_pipeline.inference.engine import InferenceEngine
from market_data_pipeline.telemetry.exporter import exposition
from market_data_pipeline.telemetry.inference import InferenceMetrics
from market_data_pipeline.telemetry.metrics import Metrics
from tests.unit.rule_samples import FEATURES, every, table

SECOND: Final = 10**9
BARS: Final = table([0, 1, 2], {"rsi": [10, 50, 90], "momentum": [0.1, 0.2, 0.3]})


def _rule(condition: str, name: str = "r", more: str = "") -> str:
    return f"- {{name: {name}, condition: '{condition}', signal: 1, score: 0.5{more}}}\n"


HIGH, LOW = _rule("rsi > 70"), _rule("rsi < 30")


class Watch:
    """A file, its rules, and a clock that is moved from one look to the next."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "rules.yaml"
        self.file.write_text(HIGH)
        self.failures: list[str] = []
        self.clock = ManualClock()
        self.rules = WatchedRules(
            self.file,
            FEATURES,
            check=self._check,
            on_failure=lambda e: self.failures.append(str(e)),
            clock=self.clock,
        )

    def _check(self, features: Sequence[str]) -> None:
        if "volatility" in features:
            raise ConfigError("volatility needs other bars")

    def look(self, times: int = 1) -> bool:
        """Whether the rules were replaced at the last of so many looks, a second apart."""
        done = False
        for _ in range(times):
            self.clock.advance(SECOND)
            done = self.rules.refresh(self.clock.monotonic())
        return done

    def replace(self, text: str) -> None:
        """As careful editors and tools do: a new file under the old name."""
        other = self.file.with_suffix(".new")
        other.write_text(text)
        other.replace(self.file)

    @property
    def fired(self) -> list[int]:
        rows: list[int] = self.rules.decide(BARS, every(BARS)).row.tolist()
        return rows


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is logged, however a test before has set logging up."""
    capture = LogCapture()
    wrapper = structlog.make_filtering_bound_logger(0)
    monkeypatch.setattr(
        watched_rules, "log", structlog.wrap_logger(None, processors=[capture], wrapper_class=wrapper)
    )
    return capture.entries


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(tmp_path)


def test_nothing_happens_while_nothing_changes(watch: Watch) -> None:
    adapter: InferenceAdapter = watch.rules
    assert not any(watch.look() for _ in range(5))
    assert (watch.rules.generation, watch.fired, adapter.name, adapter.blocking) == (1, [2], "rules", False)
    os.utime(watch.file)
    assert not any(watch.look() for _ in range(5))
    assert watch.rules.generation == 1
    adapter.close()


@pytest.mark.parametrize("write", [Watch.replace, lambda w, text: w.file.write_text(text)])
def test_new_rules_count_once_the_file_is_left_alone(
    watch: Watch, write: Callable[[Watch, str], None]
) -> None:
    watch.look(3)
    write(watch, LOW)
    assert watch.fired == [2]
    assert [watch.look() for _ in range(4)] == [False, True, False, False]
    assert (watch.fired, watch.rules.generation, watch.failures) == ([0], 2, [])


def test_a_change_just_after_the_start_is_seen(watch: Watch) -> None:
    stat = watch.file.stat()
    watch.file.write_text(LOW)
    os.utime(watch.file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert any([watch.look(), watch.look(), watch.look()])
    assert watch.fired == [0]


def test_a_file_that_was_left_alone_for_a_second_counts_at_once(watch: Watch) -> None:
    watch.look(2)
    watch.replace(LOW)
    watch.clock.advance(watch.file.stat().st_mtime_ns - watch.clock.now())
    assert watch.look(), "and not at the next look, which may be at the next bar"
    assert watch.fired == [0]
    watch.replace(HIGH)
    os.utime(watch.file, ns=(0, watch.clock.now() + SECOND))
    assert not watch.look(), "it was written just now"
    assert watch.look()


def test_the_file_is_looked_at_once_a_second_at_most(watch: Watch) -> None:
    now = watch.clock.monotonic()
    watch.rules.refresh(now)
    watch.replace(LOW)
    for i in range(10):
        assert not watch.rules.refresh(now + i * SECOND // 10)
    assert not watch.rules.refresh(now + SECOND)
    assert not watch.rules.refresh(now + SECOND * 19 // 10)
    assert watch.rules.refresh(now + 2 * SECOND)


def test_what_the_new_rules_need_is_told(watch: Watch) -> None:
    assert (watch.rules.features, watch.rules.needs_previous) == (("price", "rsi"), False)
    watch.replace(_rule("momentum > 0", more=", trigger: edge, meta: {v: '{volume}'}"))
    assert watch.look(2)
    assert (watch.rules.features, watch.rules.needs_previous) == (("price", "momentum", "volume"), True)
    assert watch.rules.generation == 2


def test_a_file_being_written_is_left_alone(watch: Watch) -> None:
    whole = HIGH + LOW.replace("name: r,", "name: s,") + _rule("momentum > 0", "t")
    with watch.file.open("w") as file:
        for character in whole[:-1]:
            file.write(character)
            file.flush()
            assert not watch.look()
        assert (watch.fired, watch.failures, watch.rules.generation) == ([2], [], 1)
        file.write(whole[-1])
    assert [watch.look(), watch.look()] == [False, True]
    assert watch.fired == [0, 0, 1, 2, 2]


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("", "is empty"),
        ("[[[", "is not valid YAML"),
        (_rule("rssi > 70"), "column 1: 'rssi' is no feature; did you mean rsi?"),
        (HIGH + _rule("rsi >", "s"), "rule s: condition: column 6"),
        (HIGH + HIGH, "is the name of a rule above too"),
        (
            _rule("volatility > 1"),
            "rules.yaml: rule r: cannot be had from these bars: volatility needs other bars",
        ),
    ],
)
def test_broken_rules_change_nothing_and_are_said_once(
    watch: Watch, broken: str, says: str, logged: list[Any]
) -> None:
    watch.look(2)
    watch.replace(broken)
    assert not any(watch.look() for _ in range(10))
    assert (watch.fired, watch.rules.generation, watch.rules.features) == ([2], 1, ("price", "rsi"))
    assert len(watch.failures) == 1
    assert says in watch.failures[0]
    assert [(entry["log_level"], entry["problem"]) for entry in logged] == [("error", watch.failures[0])]

    watch.replace(broken + "\n# still")
    watch.look(3)
    assert len(watch.failures) == 2, "another content is another failure"

    watch.replace(LOW)
    assert watch.look(2)
    assert (watch.fired, watch.rules.generation) == ([0], 2)


def test_a_file_that_goes_away_changes_nothing_until_it_is_back(watch: Watch, logged: list[Any]) -> None:
    watch.look(2)
    watch.file.unlink()
    assert not any(watch.look() for _ in range(5))
    assert watch.failures == [
        f"{watch.file}: there is no such file; write it, or name another in inference.adapters.rules.file"
    ]
    assert watch.fired == [2]
    watch.file.write_text(HIGH)
    assert not watch.look(2), "they are the same rules"
    assert [entry["log_level"] for entry in logged] == ["error", "info"]
    assert logged[1]["event"] == "the rules file is again as it was"
    watch.file.unlink()
    watch.look()
    watch.file.write_text(LOW)
    assert watch.look(2)
    assert (watch.fired, len(watch.failures)) == ([0], 1), "gone for a moment is no failure"


def test_a_link_that_is_turned_to_another_file_is_a_change(watch: Watch, tmp_path: Path) -> None:
    # As a mounted ConfigMap is updated: the folder behind a link is another one.
    for name, text in (("one", HIGH), ("two", LOW)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rules.yaml").write_text(text)
    data = tmp_path / "data"
    data.symlink_to(tmp_path / "one")
    rules = WatchedRules(data / "rules.yaml", FEATURES)
    (tmp_path / "next").symlink_to(tmp_path / "two")
    (tmp_path / "next").replace(data)
    assert [rules.refresh(i * SECOND) for i in range(4)] == [False, True, False, False]
    assert rules.decide(BARS, every(BARS)).row.tolist() == [0]


def test_they_are_made_from_the_settings_and_checked_against_the_bars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    rules = WatchedRules.from_settings(load(None, environ={}))
    assert "the rules that come with mdp are used" in logged.pop()["event"]
    assert rules.features == ("price", "momentum", "volatility", "rsi")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "rules.yaml").write_text(_rule("ret_30s > 0"))
    WatchedRules.from_settings(load(None, environ={"MDP_INFERENCE__INTERVAL": "30s"}))
    (tmp_path / "configs" / "rules.yaml").write_text(_rule("vol_5m > 0"))
    five_minutes = load(None, environ={"MDP_INFERENCE__INTERVAL": "5m"})
    with pytest.raises(
        ConfigError, match=r"rule r: cannot be had from these bars: features\.windows: vol_5m has"
    ):
        WatchedRules.from_settings(five_minutes)
    assert logged == []


def test_what_cannot_be_used_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        WatchedRules(tmp_path / "none.yaml", FEATURES)
    (tmp_path / "rules.yaml").write_text("name: a")
    with pytest.raises(ConfigError, match="must hold a list of rules"):
        WatchedRules(tmp_path / "rules.yaml", FEATURES)


def test_every_reload_that_fails_is_counted_once(watch: Watch) -> None:
    metrics = Metrics()
    told = InferenceMetrics(metrics, "mdp.bars")
    decider = Decider(InferenceEngine(watch.rules), Features(), (watch.rules,), watch.clock, told)

    def look() -> str:
        for _ in range(3):
            watch.clock.advance(SECOND)
            decider.refresh()
        lines = exposition(metrics).decode().splitlines()
        return "".join(line for line in lines if line.startswith('errors_total{component="inference"'))

    assert look() == ""
    watch.replace(_rule("rsi >"))
    assert look() == 'errors_total{component="inference",reason="reload"} 1.0'
    watch.file.unlink()
    assert look().endswith(" 2.0")
    watch.replace(LOW)
    assert look().endswith(" 2.0"), "it can be used again"
    assert watch.fired == [0]
