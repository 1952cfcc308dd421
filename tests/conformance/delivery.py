"""Publishing, delivery, acknowledgement and seeking."""

from __future__ import annotations

import asyncio
import random
import time
from bisect import bisect_right

import pytest

from market_data_core.errors import BusError
from market_data_core.partitioner import partition_of
from market_data_pipeline.streaming.bus import Record
from tests.conformance.harness import Harness
from tests.conformance.members import Member, owning, rounds, until


def texts(values: range) -> list[bytes]:
    return [str(v).encode() for v in values]


async def drained(member: Member, count: int, partition: int = 0) -> list[bytes]:
    """The values of a partition as soon as there are ``count``, and nothing after them."""
    await until([member], lambda: len(member.values(partition)) >= count)
    await until([member], lambda: partition in member.idle)
    return member.values(partition)


class DeliverySuite:
    async def test_records_are_delivered_in_the_order_of_publishing(self, harness: Harness) -> None:
        topic = await harness.topic()
        member = await harness.member(topic)
        await harness.publish(topic, range(250))
        assert await drained(member, 250) == texts(range(250))
        await harness.publish(topic, range(250, 260))
        assert await drained(member, 260) == texts(range(260))

    async def test_what_was_published_before_a_group_existed_is_delivered(self, harness: Harness) -> None:
        topic = await harness.topic()
        await harness.publish(topic, range(5))
        assert await drained(await harness.member(topic), 5) == texts(range(5))

    async def test_offsets_of_a_delivery_are_a_sequence_in_order(self, harness: Harness) -> None:
        topic = await harness.topic()
        member = await harness.member(topic)
        await harness.publish(topic, range(7))
        await drained(member, 7)
        offsets = member.deliveries[0].offsets
        listed = list(offsets)
        assert offsets[-1] == listed[-1]
        assert list(offsets[1:3]) == listed[1:3]
        assert bisect_right(offsets, listed[0]) == 1
        assert bisect_right(offsets, listed[-1]) == len(offsets)
        assert [r.offset for r in await harness.bus.read(topic, 0, None, 100)] == member.offsets[0]

    async def test_a_key_goes_to_the_partition_of_its_murmur2(self, harness: Harness) -> None:
        topic = await harness.topic(partitions=8)
        keys = [f"SYM{i}" for i in range(60)] + ["SPY", "BRK.B", "株式", "zażółć", "😀", "", "a" * 300]
        await harness.bus.publish(topic, [Record(key, b"x") for key in keys])
        found: list[str] = []
        for partition in range(8):
            some = [r.key for r in await harness.bus.read(topic, partition, None, 1000)]
            assert {partition_of(key, 8) for key in some} <= {partition}
            assert some == [key for key in keys if key in some]
            found += some
        assert sorted(found) == sorted(keys)

    async def test_a_named_partition_takes_records_of_any_key(self, harness: Harness) -> None:
        topic = await harness.topic(partitions=3)
        await harness.publish(topic, range(4), partition=2)
        assert len(await harness.bus.read(topic, 2, None, 100)) == 4
        with pytest.raises(BusError, match="partition"):
            await harness.publish(topic, [1], partition=3)

    async def test_publishing_nothing_does_nothing(self, harness: Harness) -> None:
        topic = await harness.topic()
        await harness.bus.publish(topic, [])
        assert await harness.bus.end_offset(topic, 0) is None

    async def test_values_and_keys_of_any_kind_arrive_as_they_are(self, harness: Harness) -> None:
        topic = await harness.topic()
        member = await harness.member(topic, max_records=3)
        values = [b"", b"\x00\xff\r\n$-1\r\n", "株".encode(), bytes(range(256)), b"x" * 1_000_000, b"", b"{}"]
        keys = ["", "a b", "株", "\N{GRINNING FACE}", "x" * 5000, "k\r\n", "0"]
        records = [Record(k, v) for k, v in zip(keys, values, strict=True)]
        await harness.bus.publish(topic, records)
        assert await drained(member, len(values)) == values
        stored = await harness.bus.read(topic, 0, None, 100)
        assert [(r.key, r.value, r.lane) for r in stored] == [(r.key, r.value, None) for r in records]

    async def test_lanes_come_with_their_records_and_not_when_there_are_none(self, harness: Harness) -> None:
        topic = await harness.topic()
        member = await harness.member(topic)
        await harness.publish(topic, range(3))
        await drained(member, 3)
        assert all(delivery.lanes is None for delivery in member.deliveries)
        lanes = [None, "replay-1", None, "株", ""]
        await harness.bus.publish(topic, [Record("k", b"v", lane) for lane in lanes])
        await drained(member, 8)
        assert member.lanes[0] == [None] * 3 + lanes
        assert [r.lane for r in await harness.bus.read(topic, 0, member.offsets[0][3], 100)] == lanes

    async def test_the_few_that_are_traced_say_so_and_no_others(self, harness: Harness) -> None:
        topic = await harness.topic()
        member = await harness.member(topic)
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        traces = [None, trace, None, None, trace[:-1] + "0"]
        lanes = [None, None, "replay-1", None, "replay-1"]
        records = [Record("k", b"v", lane, t) for lane, t in zip(lanes, traces, strict=True)]
        await harness.bus.publish(topic, records)
        await drained(member, 5)
        await harness.publish(topic, range(3))
        await drained(member, 8)
        offsets = member.offsets[0]
        found = {d.offsets[place]: t for d in member.deliveries for place, t in d.traces}
        assert found == {offsets[1]: traces[1], offsets[4]: traces[4]}
        assert member.lanes[0] == lanes + [None] * 3
        stored = await harness.bus.read(topic, 0, None, 100)
        assert [r.traceparent for r in stored] == traces + [None] * 3

    async def test_a_poll_takes_from_every_partition_and_not_too_much(self, harness: Harness) -> None:
        topic = await harness.topic(partitions=3)
        member = await harness.member(topic, max_records=10)
        for partition, count in ((0, 400), (1, 5), (2, 30)):
            await harness.publish(topic, range(count), partition=partition)
        await until([member], lambda: bool(member.values(1)) and len(member.values(2)) == 30)
        # Partition 0 has much more to give, and did not hold up the others.
        assert len(member.values(0)) < 200
        await until([member], lambda: len(member.values(0)) == 400)
        assert all(len(delivery.values) <= 10 for delivery in member.deliveries)
        per_poll = await member.step()
        assert len({d.partition for d in per_poll.deliveries}) == len(per_poll.deliveries)

    async def test_a_huge_backlog_of_one_partition_holds_up_no_other(self, harness: Harness) -> None:
        topic = await harness.topic(partitions=4)
        member = await harness.member(topic, max_records=100)
        await owning([member], 4)
        # What a read takes may be counted in bytes, compressed.
        rng = random.Random(3)
        await harness.bus.publish(topic, [Record("K", rng.randbytes(8192)) for _ in range(2400)], partition=0)
        await until([member], lambda: bool(member.values(0)))
        for round_ in range(3):
            for partition in (1, 2, 3):
                await harness.publish(topic, [round_], partition=partition)
            before = len(member.values(0))
            await until([member], lambda r=round_: all(len(member.values(p)) == r + 1 for p in (1, 2, 3)))  # type: ignore[misc]
            # What was read ahead of them may come first, and that is bounded.
            assert len(member.values(0)) - before < 700
        assert len(member.values(0)) < 2400
        await until([member], lambda: len(member.values(0)) == 2400)
        assert all(len(delivery.values) <= 100 for delivery in member.deliveries)

    async def test_a_poll_waits_for_records_and_no_longer(self, harness: Harness) -> None:
        topic = await harness.topic()
        member = await harness.member(topic)
        await until([member], lambda: 0 in member.idle)
        waiting = asyncio.create_task(member.step(timeout=10))
        began = time.monotonic()
        await asyncio.sleep(0)
        await harness.publish(topic, [1])
        await waiting
        if not member.values():
            await member.step(timeout=10)  # the read under way had ended just before
        assert member.values() == [b"1"]
        assert time.monotonic() - began < 5
        began = time.monotonic()
        assert (await member.step(timeout=0.1)).deliveries == []
        assert 0.09 < time.monotonic() - began < 5

    async def test_nothing_is_read_before_the_seek(self, harness: Harness) -> None:
        topic = await harness.topic()
        await harness.publish(topic, range(3))
        member = await harness.member(topic)
        member.seeking = False
        await until([member], lambda: member.owned == {0})
        for _ in range(5):
            assert (await member.step()).deliveries == []
        await member.seek(0, None)
        assert await drained(member, 3) == texts(range(3))

    async def test_seek_of_what_is_not_owned_is_refused(self, harness: Harness) -> None:
        topic = await harness.topic(partitions=2)
        member = await harness.member(topic)
        await until([member], lambda: member.owned == {0, 1})
        await member.release(1)
        with pytest.raises(BusError, match="not owned"):
            await member.consumer.seek(1, None)

    async def test_seek_begins_at_the_offset_itself(self, harness: Harness) -> None:
        topic = await harness.topic()
        await harness.publish(topic, range(500))
        offsets = [r.offset for r in await harness.bus.read(topic, 0, None, 1000)]
        member = await harness.member(topic)
        await drained(member, 500)
        for acknowledged, start in ((False, 100), (True, 321), (True, 0), (True, 499)):
            if acknowledged:
                await member.consumer.ack(0, offsets[-1])
            member.got.clear()
            await member.seek(0, offsets[start])
            assert await drained(member, 500 - start) == texts(range(start, 500))
            # What is new follows, and is not mixed with what is old.
        await harness.publish(topic, range(500, 510))
        assert (await drained(member, 11))[1:] == texts(range(500, 510))

    async def test_seek_to_nothing_begins_at_the_first_record(self, harness: Harness) -> None:
        topic = await harness.topic()
        await harness.publish(topic, range(120))
        member = await harness.member(topic)
        await drained(member, 120)
        await member.ack_all()
        member.got.clear()
        await member.seek(0, None)
        assert await drained(member, 120) == texts(range(120))

    async def test_seek_past_the_group_leaves_out_what_lies_between(self, harness: Harness) -> None:
        topic = await harness.topic()
        await harness.publish(topic, range(50))
        offsets = [r.offset for r in await harness.bus.read(topic, 0, None, 100)]
        member = await harness.member(topic)
        member.seeking = False
        await until([member], lambda: member.owned == {0})
        await member.seek(0, offsets[30])
        assert await drained(member, 20) == texts(range(30, 50))
        (status,) = await harness.bus.status([topic])
        assert status.groups[0].partitions[0].pending == 20

    async def test_seek_past_the_end_waits_for_what_comes(self, harness: Harness) -> None:
        topic = await harness.topic()
        await harness.publish(topic, range(5))
        end = await harness.bus.end_offset(topic, 0)
        assert end is not None
        member = await harness.member(topic)
        member.seeking = False
        await until([member], lambda: member.owned == {0})
        await member.seek(0, end + 1)
        await until([member], lambda: 0 in member.idle)
        await harness.publish(topic, range(5, 8))
        assert await drained(member, 3) == texts(range(5, 8))

    async def test_a_topic_made_anew_has_another_id_or_greater_offsets(self, harness: Harness) -> None:
        """A position of the one before would pass over records else."""
        topic = await harness.topic()
        await harness.publish(topic, range(3))
        before, end = await harness.bus.topic_id(topic), await harness.bus.end_offset(topic, 0)
        other = (await harness.link()).bus
        assert await other.topic_id(topic) == before
        await harness.remove(topic)
        await other.ensure_topic(topic, 1)
        await other.publish(topic, [Record("K", b"new")], partition=0)
        (first,) = await other.read(topic, 0, None, 10)
        assert first.value == b"new"
        assert end is not None
        assert first.offset > end or await other.topic_id(topic) not in ("", before)

    async def test_a_paused_partition_is_held_and_loses_nothing(self, harness: Harness) -> None:
        topic = await harness.topic(partitions=2)
        member = await harness.member(topic, max_records=10)
        await owning([member], 2)
        for partition in (0, 1):
            await harness.publish(topic, range(40), partition=partition)
        await until([member], lambda: bool(member.values(0)))
        member.consumer.pause(0)
        before = len(member.values(0))
        assert before < 40
        await until([member], lambda: len(member.values(1)) == 40)
        await until([member], lambda: 1 in member.idle)
        assert len(member.values(0)) == before
        assert 0 not in member.idle
        member.consumer.resume(0)
        assert await drained(member, 40) == texts(range(40))
        assert member.owned == {0, 1}

    async def test_seek_of_a_paused_partition_forgets_what_was_read_ahead(self, harness: Harness) -> None:
        topic = await harness.topic()
        await harness.publish(topic, range(100))
        member = await harness.member(topic, max_records=10)
        await until([member], lambda: len(member.values()) >= 10)
        member.consumer.pause(0)
        # A read may have been under way; its records wait for the end of the pause.
        await rounds([member], 5)
        member.got.clear()
        await member.seek(0, None)
        assert (await member.step()).deliveries == []
        member.consumer.resume(0)
        assert await drained(member, 100) == texts(range(100))

    async def test_caught_up_and_idle_tell_what_was_read_and_when(self, harness: Harness) -> None:
        topic = await harness.topic(partitions=2)
        member = await harness.member(topic, max_records=10)
        await owning([member], 2)
        began = time.monotonic_ns()
        await harness.publish(topic, range(95))
        await until([member], lambda: len(member.values(0)) == 95)
        deliveries = [d for d in member.deliveries if d.partition == 0]
        assert deliveries[-1].caught_up
        assert not any(d.caught_up for d in deliveries if len(d.values) == 10)
        assert began < deliveries[-1].polled_at < time.monotonic_ns()
        asked = time.monotonic_ns()
        await until([member], lambda: all(member.idle.get(p, 0) > asked for p in (0, 1)))
        assert max(member.idle.values()) < time.monotonic_ns()

    async def test_groups_do_not_know_of_each_other(self, harness: Harness) -> None:
        topic = await harness.topic()
        one = await harness.member(topic, "same-name", group="one")
        other = await harness.member(topic, "same-name", group="other")
        await harness.publish(topic, range(20))
        assert await drained(one, 20) == texts(range(20))
        await one.ack_all()
        await until([one, other], lambda: len(other.values()) == 20)
        (status,) = await harness.bus.status([topic])
        assert {g.group: g.partitions[0].pending for g in status.groups} == {"one": 0, "other": 20}

    async def test_ack_takes_what_was_delivered_off_what_is_pending(self, harness: Harness) -> None:
        topic = await harness.topic()
        member = await harness.member(topic, max_records=30)
        await harness.publish(topic, range(100))
        await drained(member, 100)
        for acked, pending in ((0, 99), (10, 89), (10, 89), (59, 40), (5, 40), (99, 0)):
            await member.consumer.ack(0, member.offsets[0][acked])
            (status,) = await harness.bus.status([topic])
            (part,) = status.groups[0].partitions
            assert (part.pending, part.lag, part.owner) == (pending, 0, "a")

    async def test_acks_at_the_same_time_as_polls_are_right(self, harness: Harness) -> None:
        topic = await harness.topic()
        member = await harness.member(topic, max_records=7)
        await until([member], lambda: member.owned == {0})
        rng = random.Random(5)

        async def publish() -> None:
            for start in range(0, 600, 20):
                await harness.publish(topic, range(start, start + 20))

        async def acknowledge() -> None:
            while len(member.values()) < 600:
                if member.offsets.get(0):
                    await member.consumer.ack(0, rng.choice(member.offsets[0]))
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(publish())
            tasks.create_task(acknowledge())
            tasks.create_task(acknowledge())
            tasks.create_task(until([member], lambda: len(member.values()) == 600))
        await member.ack_all()
        assert member.values() == texts(range(600))
        (status,) = await harness.bus.status([topic])
        assert status.groups[0].partitions[0].pending == 0

    async def test_an_ack_of_what_is_not_owned_is_no_error(self, harness: Harness) -> None:
        topic = await harness.topic()
        member = await harness.member(topic)
        await harness.publish(topic, range(3))
        await drained(member, 3)
        await member.release(0)
        await member.consumer.ack(0, member.offsets[0][-1])

    async def test_a_poll_that_is_cancelled_loses_nothing(self, harness: Harness) -> None:
        topic = await harness.topic()
        member = await harness.member(topic, max_records=10)
        await until([member], lambda: member.owned == {0})
        rng = random.Random(3)
        for start in range(0, 300, 10):
            await harness.publish(topic, range(start, start + 10))
            poll = asyncio.create_task(member.step(timeout=1))
            for _ in range(rng.randrange(30)):
                await asyncio.sleep(0)
            poll.cancel()
            await asyncio.wait({poll})
        assert await drained(member, 300) == texts(range(300))

    async def test_there_is_nothing_to_consume_of_an_unknown_topic(self, harness: Harness) -> None:
        consumer = harness.bus.consumer(f"{harness.stem}.none", "g", "a")
        with pytest.raises(BusError, match="there is no topic"):
            await consumer.poll(0.1)
        await consumer.close()
        with pytest.raises(BusError, match="there is no topic"):
            await harness.bus.publish(f"{harness.stem}.none", [Record("k", b"v")])
        assert await harness.bus.partitions(f"{harness.stem}.none") == 0
