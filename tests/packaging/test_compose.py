"""The compose file, the image, the configuration, Prometheus and Grafana agree on names and ports.

The file is read as compose reads it, as far as it goes: merge keys by YAML, and ``${NAME:-default}`` here.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from typer.main import get_command

from market_data_core.config import Settings
from market_data_core.config_files import load
from market_data_pipeline.cli import app

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.observability.yml"
TEXT = FILE.read_text("utf-8")
PASSWORDS = {"REDIS_PASSWORD": "r3dis", "POSTGRES_PASSWORD": "p0stgres", "GRAFANA_PASSWORD": "gr4fana"}
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*)|:\?([^}]*))\}")

STACK: dict[str, Any] = yaml.safe_load(_VARIABLE.sub(lambda m: PASSWORDS.get(m[1], m[2]), TEXT))
SERVICES: dict[str, dict[str, Any]] = STACK["services"]
PIPELINE = {name: service for name, service in SERVICES.items() if service["image"].startswith("mdp:")}
WORKERS = {name: service for name, service in PIPELINE.items() if name != "migrate"}
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
IMAGE_ENVIRONMENT = dict(re.findall(r"^(?:ENV)? +(\w+)=(\S+)", DOCKERFILE.rpartition("\nFROM ")[2], re.M))
PROMETHEUS = ROOT / "grafana" / "prometheus"


def published(service: str) -> int:
    """The port of a server inside of its container."""
    (port,) = SERVICES[service]["ports"]
    return int(port.rpartition(":")[2])


def settings_of(service: str) -> Settings:
    """The configuration as a container of ``service`` reads it."""
    environ = IMAGE_ENVIRONMENT | {k: str(v) for k, v in SERVICES[service]["environment"].items()}
    return load(ROOT / "configs" / Path(environ["MDP_CONFIG"]).name, environ=environ)


def test_the_stack_is_what_was_promised() -> None:
    servers = {"redis", "timescaledb", "kafka", "prometheus", "grafana"}
    assert SERVICES.keys() == servers | {"migrate", "produce", "micro-batch", "infer"}
    assert SERVICES["kafka"]["profiles"] == ["kafka"]
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "always"


def test_images_are_pinned() -> None:
    for name, service in SERVICES.items():
        if name not in PIPELINE:
            assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+(-[\w.]+)?", service["image"]), name
    assert re.search(r"^ARG PYTHON=3\.\d+\.\d+$", DOCKERFILE, re.M)


def test_nothing_listens_beyond_this_machine() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", ()):
            assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), name


def test_no_password_has_a_default() -> None:
    used = [use for use in _VARIABLE.findall(TEXT) if "PASSWORD" in use[0]]
    assert {name for name, _, _ in used} == PASSWORDS.keys()
    for name, default, message in used:
        assert not default, name
        assert ".env.example" in message, name
    example = (ROOT / ".env.example").read_text("utf-8")
    assert dict(re.findall(r"^(\w+)=(.*)$", example, re.M)) == dict.fromkeys(PASSWORDS, "")
    secrets = r"(?:PASSWORD|requirepass)\S*:? +(?!\$\{)[\w\"']"
    assert not [line for line in TEXT.splitlines() if re.search(secrets, line) and "#" not in line]


def test_every_volume_and_every_file_that_is_mounted_is_there() -> None:
    mounts = [mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", ())]
    assert {mount for mount in mounts if not mount.startswith(".")} == STACK["volumes"].keys()
    for mount in mounts:
        assert not mount.startswith(".") or (ROOT / mount).is_dir(), mount


def test_every_service_is_looked_after() -> None:
    for name, service in SERVICES.items():
        assert "restart" in service, name
        assert "test" in service.get("healthcheck", ()) or name in PIPELINE, name
    assert "/healthz" in DOCKERFILE.partition("HEALTHCHECK")[2]
    assert SERVICES["migrate"]["healthcheck"] == {"disable": True}


def test_workers_wait_for_the_schema_and_for_kafka_where_there_is_one() -> None:
    for name, service in WORKERS.items():
        waits = service["depends_on"]
        assert waits["migrate"] == {"condition": "service_completed_successfully"}, name
        assert waits["kafka"] == {"condition": "service_healthy", "required": False}, name
    assert SERVICES["migrate"]["command"] == ["store", "upgrade"]
    for service in SERVICES.values():
        assert service.get("depends_on", {}).keys() <= SERVICES.keys()


@pytest.mark.parametrize("name", list(PIPELINE))
def test_commands_can_be_parsed(name: str) -> None:
    command: Any = get_command(app.app)
    arguments, parent, called = list(PIPELINE[name]["command"]), None, "mdp"
    while True:
        context = command.make_context(called, list(arguments), parent=parent)
        if not hasattr(command, "resolve_command"):
            break
        called, command, arguments = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        parent = context
    assert context.command_path == " ".join(["mdp", *PIPELINE[name]["command"][:2]])


@pytest.mark.parametrize("name", list(PIPELINE))
def test_the_configuration_names_the_servers_of_the_stack(name: str) -> None:
    settings = settings_of(name)
    redis, store = urlsplit(settings.bus.redis.uri.reveal()), urlsplit(settings.store.url.reveal())
    assert (redis.hostname, redis.port, redis.password) == (
        "redis",
        published("redis"),
        PASSWORDS["REDIS_PASSWORD"],
    )
    database = SERVICES["timescaledb"]["environment"]
    assert (store.hostname, store.port) == ("timescaledb", published("timescaledb"))
    assert store.username == database["POSTGRES_USER"]
    assert store.password == database["POSTGRES_PASSWORD"]
    assert store.path == f"/{database['POSTGRES_DB']}"
    listeners = SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")
    assert f"PLAINTEXT://{settings.bus.kafka.bootstrap}" in listeners


def test_topics_and_groups_are_those_of_every_configuration() -> None:
    def topics(settings: Settings) -> tuple[str, ...]:
        redis = settings.bus.redis
        groups = (redis.consumer_group, settings.inference.group)
        return (redis.stream, redis.bars_stream, redis.signals_stream, *groups)

    usual = topics(load(ROOT / "configs" / "streaming.yaml", environ={}))
    assert (
        usual
        == topics(Settings())
        == ("mdp.events", "mdp.bars", "mdp.signals", "mdp-consumers", "mdp-inference")
    )
    assert {topics(settings_of(name)) for name in PIPELINE} == {usual}


def test_prometheus_asks_every_worker_on_its_port() -> None:
    config = yaml.safe_load((PROMETHEUS / "compose.yml").read_text("utf-8"))
    (job,) = config.pop("scrape_configs")
    ((targets,),) = (entry.values() for entry in job["static_configs"])
    ports = {name: settings_of(name).telemetry.metrics_port for name in WORKERS}
    assert sorted(targets) == sorted(f"{name}:{port}" for name, port in ports.items())
    assert {settings_of(name).telemetry.metrics_host for name in WORKERS} == {"0.0.0.0"}  # noqa: S104
    assert SERVICES["produce"]["command"][-2:] == ["--metrics-port", str(ports["produce"])]
    assert re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.M) == [str(port) for port in set(ports.values())]
    assert set(ports.values()) == {Settings().telemetry.metrics_port}

    alone = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))
    (own,) = alone.pop("scrape_configs")
    assert (config, job["job_name"]) == (alone, own["job_name"])
    assert own["static_configs"] == [{"targets": [f"127.0.0.1:{Settings().telemetry.metrics_port}"]}]
    started = dict(option.split("=", 1) for option in SERVICES["prometheus"]["command"])
    assert started["--config.file"] == "/etc/prometheus/compose.yml"
    assert "./grafana/prometheus:/etc/prometheus:ro" in SERVICES["prometheus"]["volumes"]


def test_grafana_finds_its_dashboards_and_they_find_prometheus() -> None:
    grafana = SERVICES["grafana"]
    mounted = dict(mount.split(":")[:2] for mount in grafana["volumes"])
    folder = ROOT / "grafana" / "provisioning"
    (boards,) = yaml.safe_load((folder / "dashboards" / "mdp.yml").read_text("utf-8"))["providers"]
    assert mounted["./grafana/dashboards"] == boards["options"]["path"]
    assert mounted["./grafana/provisioning"] == "/etc/grafana/provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text("utf-8"))["datasources"]
    variable = source["url"].removeprefix("${").removesuffix("}")
    assert grafana["environment"][variable] == f"http://prometheus:{published('prometheus')}"
    for path in (ROOT / "grafana" / "dashboards").glob("*.json"):
        board = json.loads(path.read_text("utf-8"))
        named = {panel["datasource"]["uid"] for panel in board["panels"] if "datasource" in panel}
        assert named == {source["uid"]}, path.name
    step = yaml.safe_load((PROMETHEUS / "compose.yml").read_text("utf-8"))["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == step


def test_the_builder_gets_what_the_dockerfile_copies_and_nothing_secret() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M)
        for source in line.split()[:-1]
    }
    assert "*" in lines
    assert copied == let_in
    assert all((ROOT / source).exists() for source in copied)


def test_the_container_is_not_root_and_cannot_become_it() -> None:
    assert re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.M) == [("10001", "10001")]
    for name, service in PIPELINE.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_docker_reads_the_file() -> None:
    """Where docker and its compose are; the daemon is not asked."""
    docker = shutil.which("docker")
    compose = [docker or "docker", "compose", "--file", str(FILE), "--profile", "kafka"]
    if (
        docker is None
        or subprocess.run([*compose, "version"], capture_output=True, check=False).returncode != 0
    ):
        pytest.skip("docker compose is not installed")
    environ = {"PATH": "/usr/bin:/bin:/usr/local/bin", "HOME": str(ROOT)}
    none = subprocess.run(
        [*compose, "--env-file", "/dev/null", "config", "--quiet"],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert none.returncode != 0
    assert "copy .env.example to .env" in none.stderr
    done = subprocess.run(
        [*compose, "config", "--quiet"], env=environ | PASSWORDS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
