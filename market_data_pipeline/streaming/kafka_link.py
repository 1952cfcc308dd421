"""The way to a Kafka cluster: connections, and requests to the right broker.

Requests are those of :mod:`aiokafka.protocol`, sent by its :class:`~aiokafka.AIOKafkaClient`, which knows the brokers
and negotiates versions. After an error of a connection the client is made anew, so that brokers that have moved are
found again by the addresses that were configured.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final

from aiokafka import AIOKafkaClient, TopicPartition
from aiokafka import errors as kafka
from aiokafka.client import CoordinationType
from aiokafka.conn import create_conn

from market_data_core.errors import BusNotReady, BusUnavailable
from market_data_pipeline.streaming.kafka_address import Address
from market_data_pipeline.streaming.kafka_errors import explain

TIMEOUT: Final = 5.0
"""Seconds that one request may take, beyond what the broker waits on purpose."""
RETRY_MS: Final = 20

_BROKEN: Final = kafka.KafkaConnectionError | kafka.NodeNotReadyError | kafka.RequestTimedOutError | OSError


class KafkaLink:
    """Requests over connections of its own, opened on first use. May be used concurrently."""

    def __init__(self, address: Address, *, name: str = "mdp", timeout: float = TIMEOUT) -> None:
        self.address = address
        self.where = str(address)
        self._name = name
        self._timeout = timeout
        self._client: Any = None
        self._users: dict[Any, int] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._opening = asyncio.Lock()
        self._topics: set[str] = set()
        self._closed = False

    async def send(self, node: int, request: Any) -> Any:
        """The broker's response, whatever codes it holds.

        Raises:
            BusUnavailable, BusError: the connection failed, and the request may have been done.
        """
        async with self._using() as client:
            return await client.send(node, request)

    async def coordinator(self, group: str) -> int:
        """The broker that coordinates ``group``."""
        async with self._using() as client:
            return int(await client.coordinator_lookup(CoordinationType.GROUP, group))

    async def ask(self, request: Any) -> Any:
        """As :meth:`send`, to any broker that answers; for what may be asked twice."""
        nodes = await self.brokers()
        for node in nodes[:-1]:
            with suppress(BusUnavailable):
                return await self.send(node, request)
        return await self.send(nodes[-1], request)

    async def brokers(self) -> list[int]:
        """The brokers that are known to be up.

        Raises:
            BusNotReady: one answers, and says that none is up: it has just come back, or was too busy to say that it
                lives.
        """
        async with self._using() as client:
            found = [broker.nodeId for broker in client.cluster.brokers()]
            if not found:
                # Its cause is what has the client made anew, and so the brokers looked for again.
                raise BusNotReady(
                    f"Kafka at {self.where} tells of no broker that is up: wait until it has started"
                ) from kafka.NodeNotReadyError()
            return found

    def leader_now(self, topic: str, partition: int) -> int | None:
        """The broker that leads a partition, as far as it is known without asking."""
        if self._client is None:
            return None
        leader = self._client.cluster.leader_for_partition(TopicPartition(topic, partition))
        return None if leader in (None, -1) else int(leader)

    async def leaders(self, topic: str, partitions: Iterable[int]) -> dict[int, list[int]]:
        """The partitions of ``topic`` by the broker that leads them.

        Raises:
            BusUnavailable: one of them has no leader now.
        """
        wanted = list(partitions)
        if any(self.leader_now(topic, p) is None for p in wanted):
            await self.refresh(topic)
        out: dict[int, list[int]] = {}
        for partition in wanted:
            leader = self.leader_now(topic, partition)
            if leader is None:
                raise BusUnavailable(
                    f"partition {partition} of {topic} has no leader in Kafka at {self.where}"
                )
            out.setdefault(leader, []).append(partition)
        return out

    async def refresh(self, topic: str) -> None:
        """Learn anew who leads the partitions of ``topic``, which exists: Kafka creates one that is asked about."""
        async with self._using() as client, asyncio.timeout(self._timeout):
            self._topics.add(topic)
            if not await client.set_topics(self._topics) or not await client.force_metadata_update():
                raise kafka.KafkaConnectionError("no broker answers")

    @asynccontextmanager
    async def _using(self) -> AsyncIterator[Any]:
        """The client, and the end of it after an error of a connection, when nobody else uses it any more: one that
        is closed would connect again for whoever still does."""
        client = await self.client()
        self._users[client] = self._users.get(client, 0) + 1
        try:
            with self.translated():
                yield client
        except BusUnavailable as error:
            if isinstance(error.__cause__, _BROKEN) and self._client is client:
                self._client = None
            raise
        finally:
            self._users[client] -= 1
            if not self._users[client]:
                del self._users[client]
                if self._client is not client:
                    await self._end(client)

    async def client(self) -> AIOKafkaClient:
        """The client, connected.

        Raises:
            BusUnavailable: no broker can be reached.
            BusError: it refuses the login.
        """
        async with self._opening:
            if self._closed:
                raise BusUnavailable(f"the connection to Kafka at {self.where} is closed")
            if self._client is None:
                client = AIOKafkaClient(
                    client_id=self._name,
                    request_timeout_ms=int(self._timeout * 1000),
                    retry_backoff_ms=RETRY_MS,
                    **self.address.options(),
                )
                with self.translated():
                    try:
                        await client.bootstrap()
                        if self._topics:
                            await client.set_topics(self._topics)
                    except BaseException as error:
                        await self._end(client)
                        if isinstance(error, kafka.KafkaConnectionError):
                            await self.knock()
                        raise
                self._client = client
            return self._client

    async def knock(self) -> None:
        """Why nobody lets us in: aiokafka tells only its log.

        Raises:
            aiokafka's exception or OSError of the last broker that was tried.
        """
        options = self.address.options()
        options.pop("bootstrap_servers")
        last: BaseException | None = None
        for broker in self.address.brokers:
            host, _, port = broker.rpartition(":")
            try:
                connection = await create_conn(
                    host.strip("[]"), int(port), request_timeout_ms=int(self._timeout * 1000), **options
                )
            except (OSError, kafka.KafkaError, TimeoutError) as error:
                last = error
            else:
                connection.close()
        if last is not None:
            raise last

    async def _end(self, client: AIOKafkaClient) -> None:
        """Close ``client`` in a task of its own: it waits for a task that it cancels, and takes a cancellation that is
        meant for whoever closes it for the end of that one."""
        task = asyncio.create_task(client.close(), name="close a client of Kafka")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        await asyncio.shield(task)

    async def close(self) -> None:
        self._closed = True
        client, self._client = self._client, None
        if client is not None and client not in self._users:
            await self._end(client)
        await asyncio.gather(*self._ending, return_exceptions=True)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raise what goes wrong inside as BusUnavailable or BusError."""
        try:
            yield
        except (kafka.KafkaError, OSError, TimeoutError) as error:
            raise explain(error, self.where) from error
