"""Where a Kafka cluster is and how to log in, as one URL: what the configuration writes and the driver reads."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from market_data_core.errors import ConfigError
from market_data_core.redact import redact

_PORT: Final = 9092
_PARAMETERS: Final = {"mechanism", "ca", "cert", "key", "replication_factor", "compression"}
_COMPRESSIONS: Final = ("zstd", "lz4", "snappy", "gzip", "none")


@dataclass(frozen=True, slots=True)
class Address:
    """Parsed from ``kafka://[user:password@]host:port[,host:port...][?mechanism=...]``; ``kafkas://`` is TLS.

    Parameters: ``mechanism`` of SASL (PLAIN, SCRAM-SHA-256, SCRAM-SHA-512), the PEM files ``ca``, ``cert`` and ``key``,
    ``replication_factor`` of topics that are created (0: three, or as many as there are brokers), and the
    ``compression`` of what is published (zstd, lz4, snappy, gzip, none).
    """

    brokers: tuple[str, ...]
    user: str
    password: str
    mechanism: str
    tls: bool
    ca: str
    cert: str
    key: str
    replication_factor: int
    compression: str

    @classmethod
    def parse(cls, uri: str) -> Address:
        """
        Raises:
            ConfigError: it is not such a URL.
        """
        parts = urlsplit(uri if "://" in uri else f"kafka://{uri}")
        login, _, hosts = parts.netloc.rpartition("@")
        user, _, password = login.partition(":")
        given = dict(parse_qsl(parts.query))
        brokers = tuple(_broker(host.strip()) for host in hosts.split(",") if host.strip())
        factor = given.get("replication_factor", "0")
        if parts.scheme not in ("kafka", "kafkas") or not brokers or not factor.isdecimal():
            raise ConfigError(
                f"{redact(uri)} is not the URL of a Kafka cluster, such as kafka://127.0.0.1:9092"
            )
        compression = given.get("compression", "zstd")
        if compression not in _COMPRESSIONS:
            raise ConfigError(
                f"{redact(uri)} has the compression {compression}: use {', '.join(_COMPRESSIONS)}"
            )
        if unknown := given.keys() - _PARAMETERS:
            raise ConfigError(f"{redact(uri)} has the unknown parameter {min(unknown)}: remove it")
        return cls(
            brokers=brokers,
            user=unquote(user),
            password=unquote(password),
            mechanism=given.get("mechanism", "SCRAM-SHA-512"),
            tls=parts.scheme == "kafkas",
            ca=given.get("ca", ""),
            cert=given.get("cert", ""),
            key=given.get("key", ""),
            replication_factor=int(factor),
            compression=compression,
        )

    def __str__(self) -> str:
        return ",".join(self.brokers)

    def __repr__(self) -> str:
        return f"Address({self})"

    def options(self) -> dict[str, Any]:
        """What every client of aiokafka is told.

        Raises:
            ConfigError: a TLS file cannot be used.
        """
        protocol = ("SASL_" if self.user else "") + ("SSL" if self.tls else "PLAINTEXT")
        out: dict[str, Any] = {
            "bootstrap_servers": list(self.brokers),
            "security_protocol": protocol,
        }
        if self.user:
            out |= {
                "sasl_mechanism": self.mechanism,
                "sasl_plain_username": self.user,
                "sasl_plain_password": self.password,
            }
        if self.tls:
            out["ssl_context"] = self._tls()
        return out

    def _tls(self) -> ssl.SSLContext:
        for name, file in (("ca", self.ca), ("cert", self.cert), ("key", self.key)):
            if file and not Path(file).is_file():
                raise ConfigError(f"bus.kafka.tls_{name}: there is no file {file}: correct the path")
        try:
            context = ssl.create_default_context(cafile=self.ca or None)
            if self.cert:
                context.load_cert_chain(self.cert, self.key or None)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(
                f"the TLS files of bus.kafka cannot be used ({error}): give PEM files"
            ) from None
        return context


def _broker(host: str) -> str:
    name, colon, port = host.rpartition(":")
    if not colon or (name.count("[") != name.count("]")):
        return f"{host}:{_PORT}"
    if not port.isdecimal():
        raise ConfigError(f"{redact(host)} is not a broker's host:port, such as 127.0.0.1:9092")
    return f"{name}:{port}"
