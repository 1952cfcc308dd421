"""The Kafka driver keeps the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from market_data_pipeline.streaming.kafka_bus import KafkaBus
from tests.conformance.delivery import DeliverySuite
from tests.conformance.harness import Capabilities, Harness
from tests.conformance.members import Link
from tests.conformance.ownership import OwnershipSuite
from tests.conformance.retention import RetentionSuite
from tests.conformance.static_members import StaticMembersSuite
from tests.servers.kafka import KafkaServer, delete_topics, running
from tests.servers.wire import Wire

DOORS = 6
"""Links of one test, each with a door of its own: a broker sends its clients back to the door they came through."""


class KafkaLink(Link):
    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self.bus = KafkaBus(f"kafka://127.0.0.1:{wire.port}")
        self._wire = wire

    def _cut(self) -> None:
        self._wire.cut(refuse=True)

    def heal(self) -> None:
        self._wire.mend()


class KafkaHarness(Harness):
    # Who reads does not take: an offset is read as often as one likes.
    can = Capabilities(steals=False, restarts=True)

    def __init__(self, server: KafkaServer) -> None:
        super().__init__()
        self.server = server
        # A group is of the whole server: for one that could not leave it, or does not, the next test would wait.
        self.group = f"g-{self.stem}"
        self.links: list[KafkaLink] = []

    async def link(self) -> Link:
        listening, told = self.server.doors[len(self.links)]
        link = KafkaLink(await self._stack.enter_async_context(Wire(listening, told)))
        await self._stack.enter_async_context(link.bus)
        self.links.append(link)
        return link

    async def remove(self, topic: str) -> None:
        await delete_topics(self.server, [topic])

    async def restart(self) -> None:
        for link in self.links:
            link.cuts += 1
        self.server.kill9()
        self.server.start()


@pytest.fixture(scope="session")
def server() -> Iterator[KafkaServer]:
    yield from running(doors=DOORS)


@pytest.fixture
async def harness(server: KafkaServer) -> AsyncIterator[Harness]:
    async with KafkaHarness(server) as harness:
        yield harness


class TestDelivery(DeliverySuite): ...


class TestOwnership(OwnershipSuite): ...


class TestRetention(RetentionSuite): ...


class TestStaticMembers(StaticMembersSuite): ...
