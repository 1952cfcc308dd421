"""Dashboards, rules and alerts on a real Prometheus that scrapes a real pipeline."""

from __future__ import annotations

import json
import math
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
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml

from grafana.__main__ import FOLDER, rendered
from market_data_core.batch import BarBatch
from market_data_core.events import BarSeries, Signal
from market_data_core.protocols import Committed
from market_data_pipeline import embedded
from market_data_pipeline.consumers.exactly_once import Plan
from market_data_pipeline.telemetry import InferenceMetrics, Metrics, exporter
from tests.integration.conftest import missing
from tests.servers import ServerMissing, free_port
from tests.servers.prometheus import Prometheus, program, running
from tests.unit.test_telemetry import SEED, parsed

ROOT = Path(__file__).parents[2]
RULES = ROOT / "grafana" / "prometheus"
SECONDS = 40.0
BY_INFERENCE = (
    "features_update_duration_seconds",
    "inference_eval_duration_seconds",
    "signals_emitted_total",
)
"""Metrics that a process of inference has; here an exporter beside the pipeline is told what its engine tells."""


class Panel(NamedTuple):
    board: str
    title: str
    ref: str
    expr: str

    @property
    def query(self) -> str:
        """As Grafana sends it."""
        return self.expr.replace("$__rate_interval", "10s").replace("$instance", ".*")


def panels() -> list[Panel]:
    """Every query of every dashboard in the repository."""
    return [
        Panel(path.stem, panel["title"], target["refId"], target["expr"])
        for path in sorted(FOLDER.glob("*.json"))
        for panel in json.loads(path.read_text("utf-8"))["panels"]
        for target in panel["targets"]
    ]


@dataclass
class Pipeline:
    """``mdp stream run`` in a process of its own, and an inference that is only told."""

    port: int
    inference_port: int
    inference: InferenceMetrics

    def get(self, path: str, port: int | None = None) -> tuple[int, str]:
        try:
            url = f"http://127.0.0.1:{port or self.port}{path}"
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def ready(self) -> bool:
        try:
            return self.get("/readyz")[0] == 200
        except OSError:
            return False

    def infer(self) -> None:
        """One batch, as an inference consumer tells of it."""
        told = self.inference
        code = np.array([0, 1, 1], np.int32)
        told.features("1m", 3e-4, (BarSeries("p", "SPY", "1m"), BarSeries("p", "AAPL", "1m")), code)
        told.evaluated("rules", 0.002, 3)
        told.failed("rules", "timeout")
        signal_ = Signal("p", "SPY", 0, "up", 1.0, 0.9, {"adapter": "rules"})
        told.flushed(0, Plan([], [], [], 0, 0), Committed(BarBatch.empty(), [], signals=[signal_]), 0.004, 0)

    def samples(self) -> dict[str, float]:
        """The sum of the values of each sample name of both exporters."""
        found: dict[str, float] = {}
        for port in (self.port, self.inference_port):
            for name, values in parsed(self.get("/metrics", port)[1]).items():
                found[name] = found.get(name, 0.0) + sum(values.values())
        return found


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """A pipeline on the embedded servers of a home of its own."""
    folder = tmp_path_factory.mktemp("pipeline")
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("MDP_", "REDIS_URI", "DATABASE_URL"))}
    port, inference_port = free_port(), free_port()
    environ |= {"MDP_HOME": str(folder / "home"), "MDP_TELEMETRY__METRICS_PORT": str(port)}
    # Disorder and copies, so that late and duplicate events are there to be counted.
    environ |= {
        f"MDP_PRODUCERS__SYNTHETIC__{k}": v for k, v in (("DUPLICATE_RATIO", "0.05"), ("DISORDER_MS", "1500"))
    }
    command = [sys.executable, "-m", "market_data_pipeline.cli.app", "stream", "run", "--json"]
    command += ["--rate", "300", "--window", "500ms"]
    metrics = Metrics()
    inference = InferenceMetrics(metrics, "mdp.bars")
    inference.state("rules", "closed")
    said = folder / "run.err"
    try:
        with (
            said.open("wb") as err,
            exporter(metrics, inference_port),
            subprocess.Popen(
                command, env=environ, cwd=folder, stdout=subprocess.DEVNULL, stderr=err
            ) as process,
        ):
            try:
                found = Pipeline(port, inference_port, inference)
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
        {"targets": [f"127.0.0.1:{port}" for port in (pipeline.port, pipeline.inference_port)]}
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
    for args in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]):
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
    found = dict.fromkeys(panels(), 0)
    deadline = time.monotonic() + SECONDS
    while not all(found.values()) and time.monotonic() < deadline:
        pipeline.infer()
        time.sleep(0.5)
        for panel in (p for p, number in found.items() if not number):
            found[panel] = sum(map(math.isfinite, prometheus.values(panel.query)))
    print(f"\n{'dashboard':24} {'panel':34} series  query")
    for panel, number in found.items():
        print(f"{panel.board:24} {panel.title:34} {number:6}  {panel.expr}")
    assert [panel for panel, number in found.items() if not number] == []


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


def test_every_metric_of_the_seed_moves(pipeline: Pipeline) -> None:
    """In the running pipeline: counters and histograms go up, gauges and errors are there."""
    pipeline.infer()
    before = pipeline.samples()
    pipeline.infer()

    def still() -> set[str]:
        after = pipeline.samples()
        moving = [n for n, (kind, _) in SEED.items() if kind != "gauge" and n != "errors_total"]
        names = {f"{n}_count" if SEED[n][0] == "histogram" else n for n in moving}
        return {n for n in names if not after.get(n, 0) > before.get(n, 0)}

    deadline = time.monotonic() + SECONDS
    while still() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert still() == set()
    assert {"stream_consumer_lag_ms", "errors_total"} <= set(before)
    inference_only = pipeline.get("/metrics", pipeline.inference_port)[1]
    assert all(f"{name}" in inference_only for name in BY_INFERENCE)


def test_health(pipeline: Pipeline) -> None:
    code, body = pipeline.get("/readyz")
    assert (code, json.loads(body)) == (
        200,
        {
            "status": "ready",
            "checks": {"bus": "ok", "store": "ok", "group mdp-consumers on mdp.events": "ok"},
        },
    )
    code, body = pipeline.get("/healthz")
    assert (code, json.loads(body)["status"]) == (200, "ok")
    assert pipeline.get("/nothing")[0] == 404
