"""The configuration of the Kafka driver: where the brokers are, and how to log in."""

from __future__ import annotations

import re
from typing import Final, Literal, Self
from urllib.parse import quote, urlencode

from pydantic import field_validator, model_validator

from market_data_core.config_section import Count, KeyProblem, Section, key
from market_data_core.redact import SecretText, SecretUrl

_BROKERS: Final = re.compile(r"[^\s,/@?]+(,\s*[^\s,/@?]+)*\Z")


class KafkaBus(Section):
    bootstrap: str = key(
        "",
        "Brokers to ask first, as host:port,host:port; needed while bus.type is kafka.",
        example="127.0.0.1:9092",
    )
    replication_factor: Count = key(
        0,
        "Copies of a topic that does not exist yet; 0: three, or as many as there are brokers.",
        ge=0,
        le=32,
    )
    compression: Literal["zstd", "lz4", "snappy", "gzip", "none"] = key(
        "zstd", "How batches of records are compressed, for brokers or readers that do not take zstd."
    )
    username: str = key("", "User for SASL; empty: no login.", example="mdp")
    password: SecretText = key(SecretText(""), "Password of that user.", example="a password")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = key(
        "SCRAM-SHA-512", "How the user logs in."
    )
    tls: bool = key(False, "Whether connections are encrypted.", example="true")
    tls_ca: str = key(
        "",
        "PEM file of the authority that signed the brokers' certificates. Empty: the system's.",
        example="ca.pem",
    )
    tls_cert: str = key("", "PEM file of a certificate to show to the brokers.", example="client.pem")
    tls_key: str = key(
        "", "PEM file of that certificate's key, if it is not in tls_cert.", example="client.key"
    )

    @field_validator("bootstrap")
    @classmethod
    def _brokers(cls, value: str) -> str:
        if value and not _BROKERS.match(value):
            raise ValueError("must be brokers as host:port,host:port")
        return value

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if bool(self.username) != bool(self.password):
            given, missing = ("username", "password") if self.username else ("password", "username")
            raise KeyProblem(missing, f"must be given beside {given}")
        for name in ("tls_ca", "tls_cert", "tls_key"):
            if getattr(self, name) and not self.tls:
                raise KeyProblem("tls", f"must be true while {name} is given")
        if self.tls_key and not self.tls_cert:
            raise KeyProblem("tls_cert", "must be given beside tls_key")
        return self

    @property
    def url(self) -> SecretUrl:
        """All of this as the driver takes it."""
        login = f"{quote(self.username, safe='')}:{quote(self.password.reveal(), safe='')}@"
        parameters = {
            "mechanism": self.sasl_mechanism if self.username else "",
            "ca": self.tls_ca,
            "cert": self.tls_cert,
            "key": self.tls_key,
            "replication_factor": str(self.replication_factor or ""),
            "compression": self.compression,
        }
        query = urlencode({name: value for name, value in parameters.items() if value})
        scheme = "kafkas" if self.tls else "kafka"
        return SecretUrl(
            f"{scheme}://{login if self.username else ''}{self.bootstrap}{'?' * bool(query)}{query}"
        )
