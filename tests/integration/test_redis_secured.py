"""Redis over TLS, with users of few rights, and behind a Sentinel."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from market_data_core.config_redis import RedisBus as Section
from market_data_core.errors import BusError, BusUnavailable, ConfigError
from market_data_core.redact import SecretUrl
from market_data_pipeline.streaming import redis_wire
from market_data_pipeline.streaming.bus import Record
from market_data_pipeline.streaming.redis_bus import RedisBus
from tests.conformance.members import PATIENCE, GroupRecord, Link, Member, until
from tests.integration.conftest import missing
from tests.servers import ServerMissing, free_port
from tests.servers.certificates import Authority
from tests.servers.redis import VERSIONS, RedisServer, running
from tests.servers.redis_cluster import RedisCluster
from tests.servers.redis_sentinel import SERVICE, SentinelService

PASSWORD = "s3cret-of-tests"  # noqa: S105
PAGE = Path(__file__).parents[2] / "docs" / "redis.md"
_numbers = itertools.count(1)


class Direct(Link):
    def __init__(self, bus: RedisBus) -> None:
        super().__init__()
        self.bus = bus

    def heal(self) -> None:
        raise NotImplementedError

    def _cut(self) -> None:
        raise NotImplementedError


@contextmanager
def offered() -> Iterator[None]:
    """Skip on a laptop what needs a server that is not there."""
    try:
        yield
    except ServerMissing as reason:
        missing(reason)


def records(values: range) -> list[Record]:
    return [Record("K", str(v).encode()) for v in values]


def texts(values: range) -> list[bytes]:
    return [str(v).encode() for v in values]


def member(bus: RedisBus, topic: str, *, positions: dict[int, int] | None = None) -> Member:
    consumer = bus.consumer(topic, "g", "a", max_records=100, lease_ms=20_000)
    return Member("a", consumer, Direct(bus), GroupRecord(), positions)


async def everything(bus: RedisBus, topic: str) -> None:
    """All that a worker and an operator do."""
    assert await bus.ensure_topic(topic, 2) == 2
    await bus.publish(topic, records(range(30)), partition=1)
    one = member(bus, topic)
    await until([one], lambda: len(one.values(1)) == 30)
    end = await bus.end_offset(topic, 1)
    assert end is not None
    await one.consumer.ack(1, end, keep_from=one.offsets[1][10])
    # Past the end, as after a loss of data: the stream and the group are made to go on from there.
    await one.seek(1, end + 5)
    await until([one], lambda: 1 in one.idle)
    (status,) = await bus.status([topic])
    assert status.groups[0].partitions[1].owner == "a"
    assert (await bus.trim(topic, retention_ms=10**12, max_records=25)).expired == 5
    assert len(await bus.newest(topic, 1, 100)) == 25
    assert await bus.delete(topic, 1, [end]) == 1
    assert topic in [known.topic for known in await bus.status()]
    await one.close()
    assert (await bus.ping())["server"].startswith("Redis")


# --- users -------------------------------------------------------------------------------------------------------


def rule(password: str) -> list[str]:
    """The line of the documentation, as it is there."""
    lines = [
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("ACL SETUSER mdp ")
    ]
    assert len(lines) == 1
    return lines[0].replace("PASSWORD", password).split()


@pytest.fixture(scope="module", params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    yield from running(request.param, password=PASSWORD)


async def test_the_documented_rule_is_what_a_worker_needs(server: RedisServer) -> None:
    with server.client() as client:
        client.execute_command(*rule("pw"))
        client.execute_command("ACL LOG", "RESET")
        async with RedisBus(f"redis://mdp:pw@127.0.0.1:{server.port}/0") as bus:
            await everything(bus, f"mdp.u{next(_numbers)}")
        log = [(entry["reason"], entry["object"]) for entry in client.acl_log()]
    # What it goes without: a name for the library's own statistics, and settings of the server.
    assert {what for _, what in log} <= {"client|setinfo", "client", "config|get", "config"}


async def test_the_documented_rule_is_enough_on_a_cluster() -> None:
    with offered(), RedisCluster(1, password=PASSWORD) as cluster:
        with cluster.nodes[0].client() as client:
            client.execute_command(*rule("pw"))
        async with RedisBus(f"redis+cluster://mdp:pw@127.0.0.1:{cluster.nodes[0].port}") as bus:
            await everything(bus, "mdp.c")
        for wrong in ("mdp:pw2@", "nobody:pw@", ""):
            async with RedisBus(f"redis+cluster://{wrong}127.0.0.1:{cluster.nodes[0].port}") as bus:
                for call in (bus.ping(), bus.ensure_topic("mdp.c", 1)):
                    with pytest.raises(BusError, match="user or password") as caught:
                        await call
                    assert not caught.value.retriable


async def test_a_command_that_is_forbidden_is_named_with_the_rule_to_add(server: RedisServer) -> None:
    topic = f"mdp.u{next(_numbers)}"
    uri = f"redis://mdp:pw@127.0.0.1:{server.port}/0"
    with server.client() as client:
        client.execute_command(*rule("pw"), "-xadd", "-zadd")
        async with RedisBus(uri) as bus:
            await bus.ensure_topic(topic, 1)
            with pytest.raises(BusError, match=r"command XADD: ACL SETUSER mdp \+xadd ") as caught:
                await bus.publish(topic, records(range(1)))
            assert not caught.value.retriable
            client.execute_command("ACL SETUSER", "mdp", "+xadd")
            await bus.publish(topic, records(range(1)))
            # Also what a script may not do.
            one = member(bus, topic)
            with pytest.raises(BusError, match=r"user mdp .*ACL SETUSER mdp") as caught:
                await one.step()
            assert not caught.value.retriable
            with pytest.raises(BusError, match=r"a key that is needed: ACL SETUSER mdp ~mdp\* ~{mdp\* "):
                await bus.partitions("elsewhere")
            await one.close()


# --- TLS ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    with offered():
        return Authority(tmp_path_factory.mktemp("tls"))
    raise AssertionError


def tls_options(authority: Authority, *, ask: str = "no") -> list[str]:
    own = authority.sign("server")
    files = (
        "--tls-cert-file",
        own.certificate,
        "--tls-key-file",
        own.key,
        "--tls-ca-cert-file",
        authority.file,
    )
    return ["--tls-port", str(free_port()), "--tls-auth-clients", ask, *map(str, files)]


@pytest.fixture(scope="module")
def secured(authority: Authority) -> Iterator[RedisServer]:
    with offered(), RedisServer("7", options=tls_options(authority, ask="yes")) as server:
        yield server


async def test_tls_by_the_settings(secured: RedisServer, authority: Authority) -> None:
    own = authority.sign("client")
    port = secured.option("--tls-port")
    given = Section(
        uri=SecretUrl(f"rediss://localhost:{port}/0"),
        tls_ca=str(authority.file),
        tls_cert=str(own.certificate),
        tls_key=str(own.key),
    )
    async with RedisBus(given.address) as bus:
        await everything(bus, f"mdp.t{next(_numbers)}")


async def _refused(uri: str, told: str) -> bool:
    """Whether one of many tries is refused with ``told``. Redis hangs up right behind the alert that tells why, and the
    one may overtake the other."""
    for _ in range(100):
        async with RedisBus(uri) as bus:
            with pytest.raises(BusError) as refused:
                await bus.partitions("t")
        if told in str(refused.value):
            return True
    return False


async def test_what_is_wrong_with_tls_is_told(
    secured: RedisServer, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_wire, "TIMEOUT", 1.0)
    port, plain = secured.option("--tls-port"), secured.port
    stranger = Authority(tmp_path, "stranger")
    own = authority.sign("client")
    files = f"ssl_certfile={own.certificate}&ssl_keyfile={own.key}"
    trusted = f"ssl_ca_certs={authority.file}"
    for uri, told in (
        (
            f"rediss://localhost:{port}?{files}&ssl_ca_certs={stranger.file}",
            "is not trusted .*bus.redis.tls_ca",
        ),
        (f"rediss://localhost:{port}?{files}", "is not trusted"),
        (f"rediss://127.0.0.2:{port}?{files}&{trusted}", "cannot be reached|is not trusted .*127.0.0.2"),
        (f"rediss://localhost:{plain}?{files}&{trusted}", "that this port speaks TLS"),
    ):
        async with RedisBus(uri) as bus:
            with pytest.raises(BusError, match=told):
                await bus.partitions("t")
    told = "asks for a certificate of ours: set bus.redis.tls_cert"
    assert await _refused(f"rediss://localhost:{port}?{trusted}", told)
    with pytest.raises(ConfigError, match="there is no file nowhere"):
        RedisBus("rediss://localhost?ssl_ca_certs=nowhere.pem")
    with pytest.raises(ConfigError, match="without TLS"):
        RedisBus(f"redis://localhost?{trusted}")


async def test_a_cluster_over_tls(authority: Authority) -> None:
    options = [*tls_options(authority), "--tls-cluster", "yes"]
    with offered(), RedisCluster(1, options=options) as cluster:
        port = cluster.nodes[0].option("--tls-port")
        uri = f"rediss+cluster://localhost:{port}?ssl_ca_certs={quote(str(authority.file))}"
        async with RedisBus(uri) as bus:
            await everything(bus, "mdp.tc")
        async with RedisBus(uri.partition("?")[0]) as bus:
            with pytest.raises(BusError, match="is not trusted"):
                await bus.partitions("t")


# --- Sentinel ----------------------------------------------------------------------------------------------------


@pytest.fixture
def service(tmp_path: Path) -> Iterator[SentinelService]:
    with offered(), SentinelService(tmp_path, PASSWORD) as service:
        yield service


async def publish(bus: RedisBus, topic: str, values: range) -> int:
    """Until the bus has taken them; how often it had not."""
    deadline = time.monotonic() + PATIENCE
    for refused in itertools.count():
        try:
            await bus.publish(topic, records(values))
        except BusUnavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.02)
        else:
            return refused
    raise AssertionError


async def test_a_master_that_dies_is_followed_by_who_the_sentinel_names(service: SentinelService) -> None:
    async with RedisBus(f"{service.uri}&sync_replicas=1") as safe, RedisBus(service.uri) as bus:
        await safe.ensure_topic("t", 1)
        one = member(bus, "t", positions={})
        await safe.publish("t", records(range(50)))
        await until([one], lambda: len(one.values()) == 50, ack=True)
        # On return the replica has them too.
        await safe.publish("t", records(range(50, 80)))
        service.master.kill9()
        assert await publish(bus, "t", range(80, 100)) > 0
        await until([one], lambda: set(one.values()) == set(texts(range(100))), ack=True)
        assert list(dict.fromkeys(one.values())) == texts(range(100))
        # The old master comes back as a replica, and nobody takes it for the master.
        service.master.start()
        await publish(bus, "t", range(100, 110))
        await until([one], lambda: set(one.values()) == set(texts(range(110))))
        await one.close()


async def test_what_is_wrong_with_sentinels_is_told(service: SentinelService) -> None:
    for uri, told in (
        (service.uri.replace(f"/{SERVICE}/", "/other/"), "No master found for 'other'"),
        (
            service.uri.replace("sentinel_password=", "sentinel_password=x"),
            "No master found|user or password",
        ),
        (service.uri.replace(f"://:{PASSWORD}@", "://:wrong@"), "user or password"),
    ):
        async with RedisBus(uri) as bus:
            with pytest.raises(BusError, match=told) as caught:
                await bus.ping()
        assert PASSWORD not in str(caught.value)


async def test_a_replica_is_not_taken_for_a_master(service: SentinelService) -> None:
    """As behind a name that is given to another server: the connection is opened anew, and leads to the master."""
    server = service.master
    async with RedisBus(server.uri) as bus:
        await bus.ensure_topic("t", 1)
        await bus.publish("t", records(range(3)))
        with server.client() as client:
            client.execute_command("REPLICAOF", "127.0.0.1", free_port())
            with pytest.raises(BusUnavailable, match="replica"):
                await bus.publish("t", records(range(1)))
            client.execute_command("REPLICAOF", "NO", "ONE")
        await bus.publish("t", records(range(3, 4)))
