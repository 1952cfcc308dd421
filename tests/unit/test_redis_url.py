"""URLs of Redis, taken apart and refused."""

from __future__ import annotations

import pytest

from market_data_core.config_redis import RedisBus
from market_data_core.errors import ConfigError
from market_data_core.redact import SecretUrl
from market_data_pipeline.streaming.redis_url import SCHEMES, parse


@pytest.mark.parametrize(
    ("uri", "kind", "tls", "addresses", "service", "user", "db"),
    [
        ("redis://h", "server", False, [("h", 6379)], "", "default", None),
        ("redis://u:p%40@h:1/3", "server", False, [("h", 1)], "", "u", 3),
        ("rediss://[::1]:1/", "server", True, [("::1", 1)], "", "default", None),
        ("unix:///tmp/r.sock?db=2", "server", False, [], "", "default", 2),
        (
            "redis+cluster://u:p%40@a:1,b,[::1]:3",
            "cluster",
            False,
            [("a", 1), ("b", 6379), ("::1", 3)],
            "",
            "u",
            None,
        ),
        ("rediss+cluster://a:1/0", "cluster", True, [("a", 1)], "", "default", None),
        (
            "redis+sentinel://:p@a:1,b/main",
            "sentinel",
            False,
            [("a", 1), ("b", 26379)],
            "main",
            "default",
            None,
        ),
        ("rediss+sentinel://u:p@a/main/2", "sentinel", True, [("a", 26379)], "main", "u", 2),
    ],
)
def test_every_form_is_understood(
    uri: str,
    kind: str,
    tls: bool,
    addresses: list[tuple[str, int]],
    service: str,
    user: str,
    db: int | None,
) -> None:
    url = parse(uri)
    assert (url.kind, url.tls, list(url.addresses), url.service, url.user) == (
        kind,
        tls,
        addresses,
        service,
        user,
    )
    assert url.options.get("db") == db
    if "p%40" in uri:
        assert url.options["password"] == "p@"  # noqa: S105
        assert "p%40" not in url.where


def test_options_are_told_apart() -> None:
    url = parse(
        "redis+sentinel://:a@h/s?sync_replicas=2&sentinel_password=b&socket_timeout=3&sentinel_username=c"
    )
    assert url.sync_replicas == 2
    assert dict(url.sentinel_options) == {"password": "b", "username": "c"}
    assert dict(url.options) == {"password": "a", "socket_timeout": 3.0}
    assert "b" not in url.where.partition("sentinel_password=")[2].partition("&")[0]


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("http://h", "must start with one of redis://"),
        ("redis+other://h", "must start with"),
        ("unix+cluster:///x", "must start with"),
        ("redis://a:1,b:2/0", r"use redis\+cluster:// or redis\+sentinel://"),
        ("redis+cluster://a:1/3", "only database 0"),
        ("redis+sentinel://a:1", "name of the service"),
        ("redis://h?sentinel_password=x", "names none"),
        ("redis://h?sync_replicas=-1", "whole number"),
        ("redis://h?no_such=1", "no option no_such"),
        ("redis://h?ssl_ca_certs=/x", "begin it with rediss"),
        ("rediss://h?ssl_ca_certs=/no/such.pem", "there is no file /no/such.pem"),
        ("redis://h:port/0", "not the URL"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(uri: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        parse(uri)
    assert "\n" not in str(caught.value)


def test_the_settings_take_every_form_and_say_how_to_connect() -> None:
    for scheme in SCHEMES:
        uri = f"{scheme}://h:1/x"
        assert RedisBus(uri=SecretUrl(uri)).address.reveal() == uri
    given = RedisBus(uri=SecretUrl("rediss://:p@h:1/0?db=2"), tls_ca="/etc/my ca.pem", sync_replicas=1)
    assert given.address.reveal() == "rediss://:p@h:1/0?db=2&ssl_ca_certs=%2Fetc%2Fmy+ca.pem&sync_replicas=1"
    assert ":p@" not in str(given.address)
