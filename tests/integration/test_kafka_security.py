"""Logging in to Kafka with SASL over TLS, and what is said when it does not work."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from market_data_core.config_kafka import KafkaBus as KafkaSection
from market_data_core.errors import BusError, BusUnavailable
from market_data_pipeline.streaming.bus import Record
from market_data_pipeline.streaming.drivers import open_bus
from tests.servers import ServerMissing
from tests.servers.kafka import KafkaServer
from tests.servers.wire import Wire

WORD = 'p@ss/w:rd?&"'


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate for 127.0.0.1 that vouches for itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    if shutil.which("openssl") is None:
        reason = "certificates for the test are made with openssl, which is not installed"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=127.0.0.1",
    ]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    text = (folder / "key.pem").read_text() + (folder / "cert.pem").read_text()
    (folder / "both.pem").write_text(text)
    return folder


@pytest.fixture(scope="module")
def server(authority: Path) -> Iterator[KafkaServer]:
    quoted = WORD.replace('"', '\\\\"')
    login = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_mdp="{quoted}";'
    options = {
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.door0.plain.sasl.jaas.config": login,
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(authority / "both.pem"),
    }
    try:
        secured = KafkaServer(doors=1, door_protocol="SASL_SSL", options=options)
    except ServerMissing as reason:
        pytest.fail(str(reason)) if os.environ.get("CI") == "true" else pytest.skip(str(reason))
    with secured:
        yield secured


@pytest.fixture
async def port(server: KafkaServer) -> AsyncIterator[int]:
    listening, told = server.doors[0]
    async with Wire(listening, told) as wire:
        yield wire.port


def section(port: int, authority: Path, **changes: object) -> KafkaSection:
    given: dict[str, object] = {
        "bootstrap": f"127.0.0.1:{port}",
        "username": "mdp",
        "password": WORD,
        "sasl_mechanism": "PLAIN",
        "tls": True,
        "tls_ca": str(authority / "cert.pem"),
    }
    return KafkaSection.model_validate(given | changes)


async def test_records_go_over_tls_with_a_login(port: int, authority: Path) -> None:
    async with open_bus("kafka", section(port, authority).url) as bus:
        await bus.ensure_topic("secured", 1)
        await bus.publish("secured", [Record("K", b"1")])
        async with bus.consumer("secured", "g", "m") as member:
            while not (await member.poll(1)).assigned:
                pass
            await member.seek(0, None)
            while not (poll := await member.poll(1)).deliveries:
                pass
        assert poll.deliveries[0].values == [b"1"]


async def test_a_wrong_password_is_no_outage(port: int, authority: Path) -> None:
    wrong = section(port, authority, **{"password": "geheim"})
    async with open_bus("kafka", wrong.url) as bus:
        with pytest.raises(BusError, match=r"refuses the login.*bus\.kafka\.password") as caught:
            await bus.partitions("secured")
        assert not caught.value.retriable
        assert "geheim" not in str(caught.value)


async def test_a_certificate_nobody_vouches_for_is_refused(port: int, authority: Path) -> None:
    async with open_bus("kafka", section(port, authority, tls_ca="").url) as bus:
        with pytest.raises(BusUnavailable, match="certificate"):
            await bus.partitions("secured")
