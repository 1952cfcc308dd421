"""The manifests of deploy/kubernetes: valid for Kubernetes, and true of this product."""

from __future__ import annotations

import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from market_data_core import __version__
from market_data_core.config import Settings
from market_data_core.config_files import load
from market_data_pipeline.cli.app import app
from market_data_pipeline.consumers.exactly_once import ConsumerSettings
from market_data_pipeline.telemetry import Metrics
from tests.extras import without

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
RELEASE = "1.30"


def objects() -> list[Any]:
    files = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
    return [found for path in files for found in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


OBJECTS = {f"{made['kind']} {made['metadata']['name']}": made for made in objects()}
PODS = {
    name: made["spec"]["template"]["spec"]
    for name, made in OBJECTS.items()
    if "template" in made.get("spec", {})
}
SERVING = {name: pod for name, pod in PODS.items() if name.startswith("Deployment")}


def container(pod: Any) -> Any:
    (found,) = pod["containers"]
    return found


def environ(pod: Any) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container(pod)["env"]}


def test_everything_is_there() -> None:
    assert sorted(OBJECTS) == [
        "ConfigMap mdp-config",
        "Deployment mdp-infer",
        "Deployment mdp-micro-batch",
        "Deployment mdp-produce",
        "Job mdp-store-upgrade",
        "PersistentVolumeClaim mdp-spool",
        "PodDisruptionBudget mdp-infer",
        "PodDisruptionBudget mdp-micro-batch",
        "ScaledObject mdp-infer",
        "ScaledObject mdp-micro-batch",
    ]
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))
    files = {path.name for path in FOLDER.glob("*.yaml")}
    # The schema is brought up before the rest, by itself.
    assert set(kustomization["resources"]) == files - {"kustomization.yaml", "store-upgrade.yaml"}


@without("kubernetes_validate")
@pytest.mark.parametrize("name", OBJECTS)
def test_the_schema_of_kubernetes_holds(name: str) -> None:
    kubernetes_validate: Any = import_module("kubernetes_validate")
    if OBJECTS[name]["kind"] != "ScaledObject":  # of KEDA, which that schema does not know
        kubernetes_validate.validate(OBJECTS[name], RELEASE, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_commands_parse(name: str) -> None:
    one = container(PODS[name])
    assert one["command"] == ["mdp"]
    command: Any = get_command(app)
    context = command.make_context("mdp", list(one["args"]))
    args = list(one["args"])
    while hasattr(command, "resolve_command"):
        word, command, args = command.resolve_command(context, args)
        context = command.make_context(word, list(args), parent=context)
    assert command.name == one["args"][1]


@pytest.mark.parametrize("name", PODS)
def test_settings_are_those_of_the_product(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = OBJECTS["ConfigMap mdp-config"]["data"]
    for file, text in config.items():
        assert text == (ROOT / "configs" / file).read_text(encoding="utf-8")
        (tmp_path / file).write_text(text, encoding="utf-8")
    secrets = {"redis-uri": "redis://u:p@r:6379/0", "database-url": "postgresql://u:p@d/x"}
    for file, text in secrets.items():
        (tmp_path / file).write_text(text, encoding="utf-8")
    for variable, written in environ(PODS[name]).items():
        here = re.sub("/etc/mdp/|/run/secrets/mdp/", f"{tmp_path}/", written)
        monkeypatch.setenv(variable, here)
    settings = load()
    assert settings.bus.redis.uri.reveal() == secrets["redis-uri"]
    assert settings.store.url.reveal() == secrets["database-url"]
    assert settings.telemetry.metrics_host == "0.0.0.0"  # noqa: S104 - the kubelet asks from outside of the pod
    assert settings.producers.spool.path == "/var/spool/mdp"


@pytest.mark.parametrize("name", SERVING)
def test_probes_ask_pages_that_are_served(name: str) -> None:
    one = container(SERVING[name])
    (port,) = one["ports"]
    assert one["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": port["name"]}
    assert one["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": port["name"]}
    assert environ(SERVING[name])["MDP_METRICS_PORT"] == str(port["containerPort"])
    args = one["args"]
    if "produce" in args:
        assert args[args.index("--metrics-port") + 1] == str(port["containerPort"])
    # The loop may be stuck for this long before a restart: longer than /healthz itself forgives.
    live = one["livenessProbe"]
    assert live["periodSeconds"] * live["failureThreshold"] > 10


@pytest.mark.parametrize("name", SERVING)
def test_a_pod_has_the_time_to_drain(name: str) -> None:
    drain = {field.name: field.default for field in fields(ConsumerSettings)}["drain_seconds"]
    lease = yaml.safe_load(OBJECTS["ConfigMap mdp-config"]["data"]["production.yaml"])["bus"]["redis"][
        "lease_ms"
    ]
    assert SERVING[name]["terminationGracePeriodSeconds"] > drain + lease / 1000


@pytest.mark.parametrize("name", PODS)
def test_pods_can_do_little(name: str) -> None:
    pod, one = PODS[name], container(PODS[name])
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(one["resources"]) == {"requests", "limits"}
    assert {m["name"] for m in one["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert one["image"] == f"mdp:{__version__.partition('.dev')[0]}"


def test_no_secret_stands_in_a_manifest() -> None:
    assert not [name for name in OBJECTS if name.startswith("Secret")]
    text = "".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.yaml"))
    assert not re.search(r"://[^/\s]*:[^/\s]*@", text)


@pytest.mark.parametrize("name", [name for name in OBJECTS if name.startswith("ScaledObject")])
def test_scaling_goes_by_a_metric_that_exists(name: str) -> None:
    spec = OBJECTS[name]["spec"]
    assert f"Deployment {spec['scaleTargetRef']['name']}" in SERVING
    config = yaml.safe_load(OBJECTS["ConfigMap mdp-config"]["data"]["production.yaml"])
    assert spec["minReplicaCount"] <= spec["maxReplicaCount"] <= config["bus"]["redis"]["partitions"]
    (trigger,) = spec["triggers"]
    query = trigger["metadata"]["query"]
    (metric,) = re.findall(r"\b\w+(?=\{)", query)
    metrics = Metrics(10)
    metrics.lag_records.replace("t/g", {("mdp.events", "g", "c"): 1.0})
    (found,) = [m for m in metrics.registry.collect() if m.name == metric]
    labels = dict(re.findall(r'(\w+)="([^"]*)"', query))
    assert set(labels) | {"consumer"} == set(found.samples[0].labels)
    settings = Settings()
    assert (labels["topic"], labels["group"]) in {
        (settings.bus.redis.stream, settings.bus.redis.consumer_group),
        (settings.bus.redis.bars_stream, settings.inference.group),
    }


@pytest.mark.parametrize("name", [name for name in OBJECTS if name.startswith("PodDisruptionBudget")])
def test_disruption_budgets_select_pods(name: str) -> None:
    wanted = OBJECTS[name]["spec"]["selector"]["matchLabels"]
    labels = [
        made["spec"]["template"]["metadata"]["labels"]
        for made in OBJECTS.values()
        if "template" in made.get("spec", {})
    ]
    assert labels.count(wanted) == 1
