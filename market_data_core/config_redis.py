"""The section of the Redis driver, and of the topics that every driver has."""

from __future__ import annotations

from typing import Final, Self
from urllib.parse import urlencode

from pydantic import field_validator, model_validator

from market_data_core.config_section import Count, Duration, KeyProblem, Milliseconds, Section, Topic, key
from market_data_core.events import parse_interval
from market_data_core.redact import SecretUrl

_SCHEMES: Final = (
    *("redis://", "rediss://", "unix://", "redis+cluster://", "rediss+cluster://"),
    *("redis+sentinel://", "rediss+sentinel://"),
)


class RedisBus(Section):
    uri: SecretUrl = key(
        SecretUrl(""),
        "Server, as redis://[user:password@]host:port/db, redis+cluster://host:port,... or "
        "redis+sentinel://host:port,.../service; rediss in place of redis for TLS. Empty: the embedded Redis.",
        example="redis://127.0.0.1:6379/0",
    )
    tls_ca: str = key(
        "",
        "File of the authorities that sign the server's certificate. Empty: those of this machine.",
        example="/etc/mdp/redis-ca.pem",
    )
    tls_cert: str = key(
        "", "File of the certificate to show to the server.", example="/etc/mdp/redis-client.pem"
    )
    tls_key: str = key("", "File of the key of tls_cert.", example="/etc/mdp/redis-client.key")
    sync_replicas: Count = key(
        0, "Replicas that must have a record before it counts as published; 0 waits for none.", ge=0, le=5
    )
    stream: Topic = key("mdp.events", "Topic of market events.")
    signals_stream: Topic = key("mdp.signals", "Topic of signals.")
    bars_stream: Topic = key("mdp.bars", "Topic of finished and amended bars.")
    consumer_group: str = key(
        "mdp-consumers", "Consumer group of the micro-batcher.", min_length=1, max_length=200
    )
    partitions: Count = key(1, "Partitions of a topic that does not exist yet.", ge=1, le=1024)
    retention: Duration = key("1h", "How long records that every group is done with are kept.")
    max_records: Count = key(
        5_000_000,
        "Hard cap of a partition; past it the oldest records go, read or not, and are counted.",
        unit="records",
        ge=1000,
    )
    lease_ms: Milliseconds = key(
        10_000, "How long a worker that died keeps its partitions.", unit="ms", ge=1000, le=600_000
    )

    @field_validator("uri")
    @classmethod
    def _scheme(cls, value: SecretUrl) -> SecretUrl:
        if value and not value.reveal().startswith(_SCHEMES):
            raise ValueError(
                "must start with redis://, rediss://, unix://, redis+cluster:// or redis+sentinel://"
            )
        return value

    @model_validator(mode="after")
    def _tls(self) -> Self:
        for name in ("tls_ca", "tls_cert", "tls_key"):
            if getattr(self, name) and not self.uri.reveal().startswith("rediss"):
                raise KeyProblem(name, "must not be given without TLS: begin uri with rediss")
        if bool(self.tls_cert) != bool(self.tls_key):
            missing = "tls_key" if self.tls_cert else "tls_cert"
            raise KeyProblem(missing, "must be given too, since a certificate is of no use without its key")
        if self.sync_replicas and not self.uri:
            raise KeyProblem(
                "sync_replicas", "must not be given for the embedded Redis, which has no replicas"
            )
        return self

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = {
            "stream": self.stream,
            "signals_stream": self.signals_stream,
            "bars_stream": self.bars_stream,
        }
        seen: dict[str, str] = {}
        for name, topic in names.items():
            if topic in seen:
                pair = sorted(
                    (name, seen[topic]), key=lambda key: topic == type(self).model_fields[key].default
                )
                raise KeyProblem(pair[0], f"must not be the same topic as {pair[1]}, which is {topic!r} too")
            seen[topic] = name
        return self

    @property
    def address(self) -> SecretUrl:
        """``uri`` with the other keys that say how to connect, as options of the URL."""
        options = {
            "ssl_ca_certs": self.tls_ca,
            "ssl_certfile": self.tls_cert,
            "ssl_keyfile": self.tls_key,
            "sync_replicas": self.sync_replicas or "",
        }
        query = urlencode({name: value for name, value in options.items() if value})
        if not (self.uri and query):
            return self.uri
        uri = self.uri.reveal()
        return SecretUrl(f"{uri}{'&' if '?' in uri else '?'}{query}")

    @property
    def retention_ms(self) -> int:
        return parse_interval(self.retention) // 1_000_000
