"""Dashboards, rules and alerts on a real Prometheus that scrapes a real pipeline."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.image import imread

from grafana.__main__ import FOLDER, rendered
from grafana.boards import BOARDS
from grafana.pages import Panel, pages
from grafana.preview import counted, table
from grafana.preview import main as preview
from grafana.prometheus_api import PrometheusApi
from market_data_pipeline import embedded
from market_data_pipeline.telemetry import InferenceMetrics, Metrics, exporter
from tests.integration.conftest import missing
from tests.servers import ServerMissing, free_port
from tests.servers.prometheus import Prometheus, program, running
from tests.unit.test_telemetry import SPECIFIED, Samples, parsed

ROOT = Path(__file__).parents[2]
RULES = ROOT / "grafana" / "prometheus"
SECONDS = 40.0
RULE = """\
- name: always
  condition: "close > 0"
  signal: 1.0
  score: 0.9
"""


@dataclass
class Pipeline:
    """``mdp stream run`` in a process of its own; and an exporter that is told of a model that fails, since the rules
    that the pipeline goes by need no breaker."""

    port: int
    other_port: int
    model: InferenceMetrics

    def get(self, path: str) -> tuple[int, str]:
        try:
            url = f"http://127.0.0.1:{self.port}{path}"
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def ready(self) -> bool:
        try:
            return self.get("/readyz")[0] == 200
        except OSError:
            return False

    def samples(self) -> Samples:
        return parsed(self.get("/metrics")[1])


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """A pipeline on the embedded servers of a home of its own."""
    folder = tmp_path_factory.mktemp("pipeline")
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("MDP_", "REDIS_URI", "DATABASE_URL"))}
    port, other_port = free_port(), free_port()
    environ |= {"MDP_HOME": str(folder / "home"), "MDP_TELEMETRY__METRICS_PORT": str(port)}
    # Disorder and copies, so that late and duplicate events are there to be counted.
    environ |= {
        f"MDP_PRODUCERS__SYNTHETIC__{k}": v for k, v in (("DUPLICATE_RATIO", "0.05"), ("DISORDER_MS", "1500"))
    }
    command = [sys.executable, "-m", "market_data_pipeline.cli.app", "stream", "run", "--json"]
    command += ["--rate", "300", "--window", "500ms"]
    rules = folder / "rules.yaml"
    rules.write_text(RULE, "utf-8")
    environ |= {"MDP_INFERENCE__ADAPTERS__RULES__FILE": str(rules)}
    metrics = Metrics()
    model = InferenceMetrics(metrics, "mdp.bars")
    model.state("sklearn", "closed")
    said = folder / "run.err"
    try:
        with (
            said.open("wb") as err,
            exporter(metrics, other_port),
            subprocess.Popen(
                command, env=environ, cwd=folder, stdout=subprocess.DEVNULL, stderr=err
            ) as process,
        ):
            try:
                found = Pipeline(port, other_port, model)
                deadline = time.monotonic() + SECONDS
                while not found.ready():
                    assert process.poll() is None, said.read_text()
                    assert time.monotonic() < deadline, said.read_text()
                    time.sleep(0.1)
                yield found
                process.send_signal(signal.SIGINT)
                assert process.wait(20) == 130, said.read_text()
            finally:
                process.kill()
    finally:
        for service in embedded.services(folder / "home"):
            service.stop()


@pytest.fixture(scope="module")
def prometheus(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus with the configuration of the repository, only faster, and on the pipeline's ports."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((RULES / "prometheus.yml").read_text("utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES / name) for name in config["rule_files"]]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [
        {"targets": [f"127.0.0.1:{port}" for port in (pipeline.port, pipeline.other_port)]}
    ]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config), "utf-8")
    try:
        with running(path, folder) as server:
            yield server
    except ServerMissing as reason:
        missing(reason)


def test_rules_are_right() -> None:
    """promtool finds no mistake, and every alert fires when it should and not otherwise."""
    try:
        promtool = program("promtool")
    except ServerMissing as reason:
        missing(reason)
    tests = ["alerts_test.yml", "alerts_session_test.yml"]
    for args in (["check", "config", "prometheus.yml"], ["test", "rules", *tests]):
        done = subprocess.run([promtool, *args], cwd=RULES, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_its_test_and_its_runbook() -> None:
    rules = yaml.safe_load((RULES / "alerts.yml").read_text("utf-8"))["groups"]
    alerts = {rule["alert"] for group in rules for rule in group["rules"]}
    fired = re.findall(r'alertname="(\w+)"', (RULES / "alerts_test.yml").read_text("utf-8"))
    runbook = re.findall(
        r"^### (Mdp\w+)$", (ROOT / "docs" / "operations.md").read_text("utf-8"), re.MULTILINE
    )
    assert alerts == set(fired) == set(runbook)


def test_dashboards_are_what_the_builder_makes() -> None:
    assert {p.name: p.read_text("utf-8") for p in FOLDER.glob("*.json")} == rendered(), (
        "run python -m grafana"
    )
    titles = [json.loads(text)["title"] for text in rendered().values()]
    assert titles == [
        "Streaming Overview",
        "Micro-batch Performance",
        "Store Operations",
        "Feature Computation",
        "Inference Engine",
        "Error Monitoring",
    ]


def test_every_panel_returns_data(pipeline: Pipeline, prometheus: Prometheus) -> None:
    """``python -m grafana.preview --table`` lists them, for whoever wants to see."""
    api = PrometheusApi(prometheus.url, "10s")
    deadline = time.monotonic() + SECONDS
    found: dict[tuple[Panel, str], int] = {}
    while True:
        for panel, expr, number in counted(api):
            found[panel, expr] = max(number, found.get((panel, expr), 0))
        if all(found.values()) or time.monotonic() > deadline:
            break
        pipeline.model.failed("sklearn", "timeout")
        time.sleep(0.5)
    rows = [(panel, expr, number) for (panel, expr), number in found.items()]
    print(f"\n{table(rows)}")
    assert [(panel.board, panel.title, expr) for panel, expr, number in rows if not number] == []
    assert len(table(rows).splitlines()) == len(rows) + 2


def test_every_dashboard_can_be_seen(pipeline: Pipeline, prometheus: Prometheus, tmp_path: Path) -> None:
    """No hole and no overlap in any, and a picture of it with what Prometheus has."""
    assert {page.name: page.faults() for page in pages()} == {name: [] for name in BOARDS}
    out = Path(os.environ.get("MDP_PREVIEW", tmp_path))
    given = ["--prometheus", prometheus.url, "--out", str(out), "--seconds", "60", "--rate-interval", "10s"]
    # One of each kind of panel is in these; MDP_PREVIEW=FOLDER draws all of them there.
    drawn = tuple(BOARDS) if "MDP_PREVIEW" in os.environ else ("inference-engine",)
    assert preview([*given, "--only", *drawn]) == 0
    for name in drawn:
        picture = imread(out / f"{name}.png")
        assert picture.shape[1] == 1440
        assert len(np.unique(picture[..., 0])) > 50, "an empty page"


def test_rules_and_alerts_are_evaluated(prometheus: Prometheus) -> None:
    """Prometheus evaluates every rule without an error; nothing fires on a pipeline at work."""

    def rules() -> list[dict[str, Any]]:
        return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]

    deadline = time.monotonic() + SECONDS
    while any(rule["health"] == "unknown" for rule in rules()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert {(rule["name"], rule["health"], rule.get("lastError", "")) for rule in rules()} == {
        (rule["name"], "ok", "") for rule in rules()
    }
    for rule in rules():
        prometheus.values(rule["query"])
    assert [r["name"] for r in rules() if r["type"] == "alerting" and r["state"] == "firing"] == []


def test_every_metric_of_the_specification_moves(pipeline: Pipeline) -> None:
    """In the running pipeline: counters and histograms go up, lag and errors are there; labels fit."""
    names = {name: f"{name}_count" if kind == "histogram" else name for name, (kind, _) in SPECIFIED.items()}
    moving = set(names.values()) - {"stream_consumer_lag_ms", "errors_total"}
    before: Samples = {}

    def total(samples: Samples, name: str) -> float:
        return sum(samples.get(name, {}).values())

    def missing_or_still() -> set[str]:
        after = pipeline.samples()
        return {n for n in moving if not total(after, n) > total(before, n)} | (names.values() - after.keys())

    for _ in range(2):
        deadline = time.monotonic() + SECONDS
        while missing_or_still() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert missing_or_still() == set()
        before = pipeline.samples()
    for name, (_, labels) in SPECIFIED.items():
        assert {frozenset(dict(key)) for key in before[names[name]]} == {frozenset(labels)}, name
    assert before["signals_emitted_total"].keys() == {(("adapter", "rules"), ("name", "always"))}
    assert {dict(key)["window"] for key in before["features_update_duration_seconds_count"]} == {"500ms"}


def test_health(pipeline: Pipeline) -> None:
    groups = ("group mdp-consumers on mdp.events", "group mdp-inference on mdp.bars")
    code, body = pipeline.get("/readyz")
    checks = dict.fromkeys(("bus", "store", *groups), "ok")
    assert (code, json.loads(body)) == (200, {"status": "ready", "checks": checks})
    code, body = pipeline.get("/healthz")
    assert (code, json.loads(body)["status"]) == (200, "ok")
    assert pipeline.get("/nothing")[0] == 404
