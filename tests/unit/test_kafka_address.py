"""The URL of a Kafka cluster: written by the configuration, read by the driver, and never with its password printed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_core.config_files import load
from market_data_core.config_kafka import KafkaBus
from market_data_core.errors import ConfigError
from market_data_core.redact import redact
from market_data_pipeline.streaming.kafka_address import Address

TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(
    lambda text: text == text.strip()
)


@given(
    TEXTS,
    TEXTS,
    st.sampled_from(["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]),
    st.booleans(),
    st.sampled_from(["zstd", "lz4", "snappy", "gzip", "none"]),
)
def test_what_is_configured_reaches_the_driver(
    user: str, password: str, mechanism: str, tls: bool, compression: str
) -> None:
    section = KafkaBus.model_validate(
        {
            "bootstrap": "a.example:9092, b.example:9093",
            "username": user,
            "password": password,
            "sasl_mechanism": mechanism,
            "tls": tls,
            "replication_factor": 2,
            "compression": compression,
        }
    )
    address = Address.parse(section.url.reveal())
    assert address.brokers == ("a.example:9092", "b.example:9093")
    assert (address.user, address.password, address.mechanism) == (user, password, mechanism)
    assert (address.tls, address.replication_factor, address.compression) == (tls, 2, compression)
    secret = section.url.reveal().partition("://")[2].partition("@")[0].partition(":")[2]
    assert f":{secret}@" not in redact(section.url.reveal())
    assert repr(address) == "Address(a.example:9092,b.example:9093)"


@pytest.mark.parametrize(
    ("uri", "brokers"),
    [
        ("localhost", ("localhost:9092",)),
        ("h:1,i:2", ("h:1", "i:2")),
        ("kafka://[::1]:9092", ("[::1]:9092",)),
        ("kafkas://u:p@h:1", ("h:1",)),
    ],
)
def test_short_forms(uri: str, brokers: tuple[str, ...]) -> None:
    assert Address.parse(uri).brokers == brokers


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "redis://h:1",
        "kafka://h:x",
        "kafka://h:1?colour=red",
        "kafka://h:1?replication_factor=x",
        "kafka://h:1?compression=bz2",
    ],
)
def test_what_is_none_of_kafka_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError):
        Address.parse(uri)


def test_a_type_and_a_variable_are_enough(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("p@ss:word/?\n")
    environ = {
        "MDP_BUS__TYPE": "kafka",
        "KAFKA_BOOTSTRAP": "k1:9092,k2:9092",
        "KAFKA_USERNAME": "mdp",
        "KAFKA_PASSWORD_FILE": str(secret),
    }
    settings = load(None, environ=environ)
    address = Address.parse(settings.bus.kafka.url.reveal())
    assert (address.brokers, address.password) == (("k1:9092", "k2:9092"), "p@ss:word/?")
    printed = f"{settings!r} {settings.model_dump()} {settings.model_dump_json()} {settings.bus.kafka.url}"
    assert "p@ss" not in printed
    assert address.options()["security_protocol"] == "SASL_PLAINTEXT"


def test_a_tls_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    section = KafkaBus(bootstrap="h:1", tls=True, tls_ca=str(tmp_path / "ca.pem"))
    with pytest.raises(ConfigError, match=r"bus\.kafka\.tls_ca: there is no file .*ca\.pem"):
        Address.parse(section.url.reveal()).options()
