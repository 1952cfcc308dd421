"""Kafka 4.1 in KRaft mode, run from the jars that Maven fetches: one broker, or a cluster of three."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Final, NoReturn, Self

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from tenacity import AsyncRetrying, stop_after_delay, wait_fixed

from tests.servers import ServerMissing, cache_folder, cached, freeze, install

_SOURCE = Path(__file__).parent / "kafka"
_CLUSTER: Final = "bWRwLXRlc3RzLWthZmthMQ"
"""A cluster's id is 16 bytes in base 64."""
_JAVA: Final = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")
START_SECONDS: Final = 240
"""A busy machine takes its time; a broker that ended is not waited for."""


@cache
def _jars() -> Path:
    """The folder with the broker's jars.

    Raises:
        ServerMissing: there is no Java 17 or later, or Maven could not fetch them.
    """
    if shutil.which("java") is None:
        raise ServerMissing(
            "Kafka runs on Java 17, which is not installed: apt-get install default-jre-headless"
        )
    with cached("kafka-4.1") as (folder, scratch):
        if scratch is not None:
            shutil.copy(_SOURCE / "pom.xml", scratch)
            command = ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=libs"]
            install(command, scratch, "Kafka")
    return folder / "libs"


def _free_ports(count: int) -> list[int]:
    """So many different loopback ports that nobody listens on now."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


class KafkaServer:
    """One broker, which is a controller too. Its ports and data stay over a restart.

    ``doors``: further ways in, each a port that the broker listens on and another one that it tells clients to come
    back to, where a test puts a :class:`~tests.servers.wire.Wire`. ``door_protocol``: Kafka's name of how they
    are secured. ``environment``: variables for its process. ``host``: where clients find it.
    """

    def __init__(
        self,
        *,
        doors: int = 0,
        door_protocol: str = "PLAINTEXT",
        options: dict[str, str] | None = None,
        node: int = 1,
        environment: dict[str, str] | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.host = host
        self._libs = _jars()
        self.node = node
        self.port, self.controller, *rest = _free_ports(2 + 2 * doors)
        self.doors = list(zip(rest[::2], rest[1::2], strict=True))
        self.voters = f"{node}@127.0.0.1:{self.controller}"
        self._door_protocol = door_protocol
        self._options = options or {}
        self._environment = {**os.environ, **(environment or {})}
        self._home: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stored(self, topic: str, partition: int) -> bytes:
        """The first file of a partition as it lies on the disk."""
        assert self._home is not None
        return (self._home / "data" / f"{topic}-{partition}" / f"{0:020}.log").read_bytes()

    def topic_id(self, topic: str, partition: int) -> str:
        """As it is written beside the records of a partition that has had one."""
        assert self._home is not None
        text = (self._home / "data" / f"{topic}-{partition}" / "partition.metadata").read_text()
        return dict(line.split(": ") for line in text.splitlines())["topic_id"]

    def __enter__(self) -> Self:
        self._home = Path(tempfile.mkdtemp(prefix="mdp-kafka-"))
        (self._home / "server.properties").write_text(
            "".join(f"{key}={value}\n" for key, value in self._properties().items())
        )
        self._format()
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        # What a clean stop would write is thrown away with the folder.
        self.kill9()
        if self._home is not None:
            shutil.rmtree(self._home)

    def start(self) -> None:
        """Start the broker, and wait until it takes clients."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        assert self._home is not None
        with (self._home / "log").open("ab") as log:
            command = self._java("kafka.Kafka", str(self._home / "server.properties"))
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self._home, env=self._environment
            )

    def wait(self) -> None:
        """Until the broker takes clients: it opens its ports when it has read its logs and is registered."""
        assert self._process is not None
        assert self._home is not None
        deadline = time.monotonic() + START_SECONDS
        local = [("127.0.0.1", listening) for listening, _ in self.doors]
        for address in ((self.host, self.port), *local):
            while True:
                try:
                    socket.create_connection(address, timeout=1).close()
                except OSError:
                    if self._process.poll() is not None or time.monotonic() > deadline:
                        text = (self._home / "log").read_text()[-3000:]
                        raise AssertionError(f"Kafka did not start: {text}") from None
                    time.sleep(0.02)
                else:
                    break

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill9(self) -> None:
        """End the process at once, as a power cut of it alone would."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Stop the process without ending it, until :meth:`thaw`."""
        freeze(self.pid)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(how)
            self._process.wait(timeout=30)
        self._process = None

    def _java(self, main: str, *arguments: str) -> list[str]:
        # Libraries unpack themselves there, and a process that is killed leaves them.
        return ["java", *_JAVA, f"-Djava.io.tmpdir={self._home}", "-cp", f"{self._libs}/*", main, *arguments]

    def _format(self) -> None:
        assert self._home is not None
        command = self._java("kafka.tools.StorageTool", "format", "-t", _CLUSTER, "-c")
        done = subprocess.run(
            [*command, str(self._home / "server.properties")], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise AssertionError(f"Kafka's storage was not formatted: {(done.stdout + done.stderr)[-2000:]}")

    def _properties(self) -> dict[str, str]:
        doors = list(enumerate(self.doors))
        protocols = {"CONTROLLER": "PLAINTEXT", "PLAINTEXT": "PLAINTEXT"}
        protocols |= {f"DOOR{i}": self._door_protocol for i, _ in doors}
        inside = f"PLAINTEXT://{self.bootstrap}"
        listeners = [inside, f"CONTROLLER://127.0.0.1:{self.controller}"]
        return {
            "process.roles": "broker,controller",
            "node.id": str(self.node),
            "controller.quorum.voters": self.voters,
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": ",".join(
                f"{name}:{protocol}" for name, protocol in protocols.items()
            ),
            "listeners": ",".join([*listeners, *(f"DOOR{i}://127.0.0.1:{at}" for i, (at, _) in doors)]),
            "advertised.listeners": ",".join(
                [inside, *(f"DOOR{i}://127.0.0.1:{to}" for i, (_, to) in doors)]
            ),
            "log.dirs": f"{self._home}/data",
            "num.partitions": "1",
            "offsets.topic.num.partitions": "3",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            # Tests let leases end after less than a second.
            "group.min.session.timeout.ms": "100",
            # A broker that was killed is missed, and one that comes back let in, after so long.
            "broker.session.timeout.ms": "2000",
            "broker.heartbeat.interval.ms": "200",
            "log.message.timestamp.type": "CreateTime",
            **self._options,
        }


class KafkaCluster:
    """Three brokers: a topic of three replicas takes records as long as two of them live.

    ``doors``, ``environment``: of each broker, as :class:`KafkaServer` has them.
    """

    def __init__(self, *, doors: int = 0, environment: dict[str, str] | None = None) -> None:
        options = {
            "offsets.topic.replication.factor": "3",
            "offsets.topic.num.partitions": "3",
            "transaction.state.log.replication.factor": "3",
            "transaction.state.log.min.isr": "2",
            "min.insync.replicas": "2",
            "default.replication.factor": "3",
        }
        self.brokers = [
            KafkaServer(doors=doors, options=options, node=node, environment=environment)
            for node in (1, 2, 3)
        ]
        voters = ",".join(broker.voters for broker in self.brokers)
        for broker in self.brokers:
            broker.voters = voters
        self._stack = ExitStack()

    @property
    def bootstrap(self) -> str:
        return ",".join(broker.bootstrap for broker in self.brokers)

    def __enter__(self) -> Self:
        # None of them is up before a second one is.
        with ThreadPoolExecutor(3) as pool, ExitStack() as stack:
            for broker in pool.map(lambda broker: broker.__enter__(), self.brokers):
                stack.push(broker.__exit__)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def kill9(self) -> None:
        """End all that run."""
        for broker in self.brokers:
            broker.kill9()

    def start(self) -> None:
        """Start all that do not run, and wait until each takes clients, which none does before a second one runs."""
        down = [broker for broker in self.brokers if not broker.alive]
        for broker in down:
            broker.launch()
        for broker in down:
            broker.wait()


def available() -> None:
    """Skip the test on a laptop without Java or Maven; fail it in CI."""
    try:
        _jars()
    except ServerMissing as reason:
        _missing(reason)


async def delete_topics(server: KafkaServer, topics: Sequence[str] | None = None) -> None:
    """Delete ``topics``, or all that tests have made, until they are gone; Kafka forgets how far groups had read."""
    admin = AIOKafkaAdminClient(bootstrap_servers=server.bootstrap)
    await admin.start()
    try:
        if topics is None:
            topics = [t for t in await admin.list_topics() if not t.startswith("__consumer")]
        await admin.delete_topics(list(topics))
        async for attempt in AsyncRetrying(wait=wait_fixed(0.02), stop=stop_after_delay(30), reraise=True):
            with attempt:
                assert set(topics).isdisjoint(await admin.list_topics())
    finally:
        await admin.close()


def running(*, doors: int = 0) -> Iterator[KafkaServer]:
    """The body of a fixture: a broker while the fixture lives. On a laptop without Java or Maven the test is skipped;
    in CI it fails."""
    available()
    with KafkaServer(doors=doors) as server:
        yield server


def running_cluster() -> Iterator[KafkaCluster]:
    """As :func:`running`, for three brokers."""
    available()
    with KafkaCluster() as cluster:
        yield cluster


def _missing(reason: ServerMissing) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(str(reason))
    pytest.skip(str(reason))


def warm_cache() -> None:
    """Fetch the jars now; a CI job calls this before its tests."""
    _jars()
    print(cache_folder())


if __name__ == "__main__":
    warm_cache()
