"""The URL of a Redis: one server, a cluster, or a master that Sentinels name.

    redis://[user:password@]host:port/db                        one server
    unix:///path                                                one server
    redis+cluster://[user:password@]host:port[,host:port...]    a cluster, by some of its nodes
    redis+sentinel://[user:password@]host:port,.../service[/db] the master of a service, by its Sentinels

With ``rediss`` in place of ``redis`` every connection is TLS. Options follow a ``?``: ``sync_replicas`` (how many
replicas must have a record before it counts as published), ``sentinel_username`` and ``sentinel_password``, and
any of redis-py's connections, such as ``ssl_ca_certs``, ``ssl_certfile`` and ``ssl_keyfile``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import unquote, urlsplit

from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection, parse_url

from market_data_core.errors import ConfigError
from market_data_core.redact import redact

Kind = Literal["server", "cluster", "sentinel"]
Address = tuple[str, int]

SCHEMES: Final = (
    *("redis", "rediss", "unix"),
    *("redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel"),
)
_KINDS: Final[dict[str, Kind]] = {"cluster": "cluster", "sentinel": "sentinel"}
_PORTS: Final[dict[Kind, int]] = {"server": 6379, "cluster": 6379, "sentinel": 26379}
_EXAMPLES: Final[dict[Kind, str]] = {
    "server": "redis://127.0.0.1:6379/0",
    "cluster": "redis+cluster://10.0.0.1:6379,10.0.0.2:6379",
    "sentinel": "redis+sentinel://10.0.0.1:26379,10.0.0.2:26379/mymaster",
}
_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_OF_SENTINELS: Final = ("sentinel_username", "sentinel_password")


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A URL taken apart. ``where`` is the URL without secrets; ``options`` are those of a connection and hold the
    password; ``addresses`` are empty for a Unix socket."""

    where: str
    kind: Kind
    tls: bool
    addresses: tuple[Address, ...]
    service: str
    user: str
    options: Mapping[str, Any]
    sentinel_options: Mapping[str, Any]
    sync_replicas: int

    @property
    def connection_class(self) -> type[Connection]:
        """What a connection to one server is made of; for ``unix://`` it only has the same methods."""
        if "path" in self.options:
            return UnixDomainSocketConnection  # type: ignore[return-value]
        return SSLConnection if self.tls else Connection


def parse(uri: str) -> RedisUrl:
    """Take ``uri`` apart.

    Raises:
        ConfigError: it is no URL of a Redis, has an option that there is not, or names a file that there is not.
    """
    where = redact(uri)
    scheme, _, rest = uri.partition("://")
    kind = _KINDS.get(scheme.partition("+")[2], "server")
    try:
        return _taken_apart(where, kind, scheme, rest)
    except ValueError as error:
        raise ConfigError(
            f"{where} is not the URL of a Redis {kind}, such as {_EXAMPLES[kind]}: {error}"
        ) from None


def _taken_apart(where: str, kind: Kind, scheme: str, rest: str) -> RedisUrl:
    if scheme not in SCHEMES:
        raise ValueError(f"it must start with one of {', '.join(f'{name}://' for name in SCHEMES)}")
    plain = scheme.partition("+")[0]
    rest, mark, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    user, at, hosts = authority.rpartition("@")
    service = ""
    if kind == "cluster" and path.strip("/") not in ("", "0"):
        raise ValueError(f"a cluster has only database 0, not {path!r}")
    if kind == "sentinel":
        service, _, path = path.partition("/")
        if not service:
            raise ValueError("the name of the service must follow the addresses of the Sentinels")
    addresses = () if plain == "unix" else tuple(_address(host, _PORTS[kind]) for host in hosts.split(","))
    if kind == "server" and len(addresses) > 1:
        raise ValueError("it names several servers: use redis+cluster:// or redis+sentinel://")
    server = f"{user}{at}{hosts.split(',')[0]}"
    options: dict[str, Any] = dict(parse_url(f"{plain}://{server}/{path}{mark}{query}"))
    options.pop("connection_class", None)
    replicas = str(options.pop("sync_replicas", "0"))
    if not replicas.isdecimal():
        raise ValueError(f"sync_replicas must be a whole number, not {replicas!r}")
    sentinel = {name.partition("_")[2]: options.pop(name) for name in _OF_SENTINELS if name in options}
    if sentinel and kind != "sentinel":
        raise ValueError("it gives a login for Sentinels, and names none")
    if plain != "unix" and kind != "server":
        options.pop("host", None)
        options.pop("port", None)
    if kind == "cluster":
        options.pop("db", None)
    _check(options, tls=plain == "rediss")
    return RedisUrl(
        where=where,
        kind=kind,
        tls=plain == "rediss",
        addresses=addresses,
        service=unquote(service),
        user=str(options.get("username") or "default"),
        options=options,
        sentinel_options=sentinel,
        sync_replicas=int(replicas),
    )


def _address(text: str, port: int) -> Address:
    parts = urlsplit(f"redis://{text}")
    if not parts.hostname and text:
        raise ValueError(f"{text!r} is no host:port")
    return unquote(parts.hostname or "localhost"), parts.port or port


def _check(options: Mapping[str, Any], *, tls: bool) -> None:
    known = _parameters(SSLConnection) | _parameters(UnixDomainSocketConnection) | {"max_connections"}
    for name in options:
        if name not in known:
            raise ValueError(f"there is no option {name}")
        if name.startswith("ssl_") and not tls:
            raise ValueError(f"{name} is of no use without TLS: begin it with rediss")
    for name in _FILES:
        if name in options and not Path(str(options[name])).is_file():
            raise ConfigError(f"{name}: there is no file {options[name]}: correct its path")


def _parameters(kind: type) -> set[str]:
    inits = [
        vars(base)["__init__"] for base in kind.__mro__ if base is not object and "__init__" in vars(base)
    ]
    return {name for init in inits for name in inspect.signature(init).parameters}
