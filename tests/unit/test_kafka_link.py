"""The way to a Kafka cluster, where no broker is needed to try it."""

from __future__ import annotations

import pytest
from aiokafka import AIOKafkaClient

from market_data_core.errors import BusNotReady
from market_data_pipeline.streaming.kafka_address import Address
from market_data_pipeline.streaming.kafka_link import KafkaLink


class Fenced(KafkaLink):
    """Reaches a cluster that tells of no broker, as one does that starts, or that was too busy to say that it lives."""

    made = 0

    async def client(self) -> AIOKafkaClient:
        self.made += 1
        return AIOKafkaClient(**self.address.options())


async def test_a_cluster_without_a_broker_is_not_ready_and_is_asked_anew() -> None:
    link = Fenced(Address.parse("127.0.0.1:1"))
    for asked in (1, 2):
        with pytest.raises(BusNotReady, match="no broker that is up"):
            await link.brokers()
        assert link.made == asked
    await link.close()
