"""The memory driver keeps the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from market_data_pipeline.streaming.memory_bus import MemoryBus
from tests.conformance.delivery import DeliverySuite
from tests.conformance.harness import Capabilities, Harness
from tests.conformance.members import Link
from tests.conformance.ownership import OwnershipSuite
from tests.conformance.retention import RetentionSuite
from tests.conformance.static_members import StaticMembersSuite


class MemoryLink(Link):
    bus: MemoryBus

    def __init__(self, name: str) -> None:
        super().__init__()
        self.bus = MemoryBus(f"memory://{name}")

    def _cut(self) -> None:
        self.bus.cut()

    def heal(self) -> None:
        self.bus.heal()


class MemoryHarness(Harness):
    # It hands records to owners only, and there is no server.
    can = Capabilities(steals=False, restarts=False)

    async def link(self) -> Link:
        link = MemoryLink(self.stem)
        await self._stack.enter_async_context(link.bus)
        return link

    async def remove(self, topic: str) -> None:
        MemoryBus(f"memory://{self.stem}").remove(topic)


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    async with MemoryHarness() as harness:
        yield harness


class TestDelivery(DeliverySuite): ...


class TestOwnership(OwnershipSuite): ...


class TestRetention(RetentionSuite): ...


class TestStaticMembers(StaticMembersSuite): ...
