"""The floor: aiokafka's ``getmany``, and nothing else, or with ``decode`` the same and one JSON object a record."""

from __future__ import annotations

import asyncio
import sys

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from benchmarks.peers.given import FIRST, LAST, given, mark

COUNT = 5000


async def main(decode: bool) -> None:
    told, read, decoder = given(), 0, msgspec.json.Decoder()
    consumer = AIOKafkaConsumer(bootstrap_servers=told.kafka, auto_offset_reset="earliest")
    await consumer.start()
    consumer.assign([TopicPartition(told.topic, 0)])
    await consumer.seek_to_beginning()
    while read < told.records:
        found = await consumer.getmany(timeout_ms=1000, max_records=COUNT)
        if not read:
            mark(FIRST)
        for records in found.values():
            read += len(records)
            if decode:
                for record in records:
                    decoder.decode(record.value)
    mark(LAST)
    await consumer.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:] == ["decode"]))
