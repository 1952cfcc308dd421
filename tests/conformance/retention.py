"""Reading outside of groups, what operators see, and what is removed when."""

from __future__ import annotations

import time

import pytest

from market_data_core.errors import BusError
from market_data_pipeline.streaming.bus import Record, TrimResult
from tests.conformance.harness import Harness
from tests.conformance.members import PATIENCE, Member, until

ALWAYS = 10**12
"""A retention in ms that keeps everything."""


async def kept(harness: Harness, topic: str) -> list[bytes]:
    return [r.value for r in await harness.bus.read(topic, 0, None, 10_000)]


async def aged(harness: Harness, topic: str) -> None:
    """Until every record of the topic is older than the server's present millisecond."""
    await harness.bus.ensure_topic(f"{harness.stem}.clock", 1)
    newest = (await harness.bus.newest(topic, 0, 1))[0].timestamp_ms
    deadline = time.monotonic() + PATIENCE
    while True:
        await harness.bus.publish(f"{harness.stem}.clock", [Record("tick", b"")])
        if (await harness.bus.newest(f"{harness.stem}.clock", 0, 1))[0].timestamp_ms > newest:
            return
        assert time.monotonic() < deadline


async def delivered(harness: Harness, topic: str, count: int, *, group: str | None = None) -> Member:
    member = await harness.member(topic, group=group)
    await until([member], lambda: len(member.values()) == count)
    return member


def texts(values: range) -> list[bytes]:
    return [str(v).encode() for v in values]


class RetentionSuite:
    async def test_trim_removes_what_every_group_acknowledged(self, harness: Harness) -> None:
        topic = await harness.topic()
        await harness.publish(topic, range(300))
        one = await delivered(harness, topic, 300, group="one")
        other = await delivered(harness, topic, 300, group="other")
        await aged(harness, topic)
        await one.consumer.ack(0, one.offsets[0][199])
        assert await harness.bus.trim(topic, retention_ms=0, max_records=10_000) == TrimResult(0, 0)
        await other.consumer.ack(0, other.offsets[0][99])
        assert await harness.bus.trim(topic, retention_ms=0, max_records=10_000) == TrimResult(100, 0)
        assert await kept(harness, topic) == texts(range(100, 300))
        await other.ack_all()
        assert await harness.bus.trim(topic, retention_ms=0, max_records=10_000) == TrimResult(100, 0)
        assert await kept(harness, topic) == texts(range(200, 300))

    async def test_trim_keeps_what_was_not_delivered(self, harness: Harness) -> None:
        topic = await harness.topic()
        await harness.publish(topic, range(20))
        member = await delivered(harness, topic, 20)
        await member.ack_all()
        await member.close()
        await harness.publish(topic, range(20, 30))
        await aged(harness, topic)
        assert await harness.bus.trim(topic, retention_ms=0, max_records=10_000) == TrimResult(20, 0)
        assert await kept(harness, topic) == texts(range(20, 30))

    async def test_trim_keeps_what_a_new_owner_would_read(self, harness: Harness) -> None:
        topic = await harness.topic()
        await harness.publish(topic, range(50))
        member = await delivered(harness, topic, 50)
        await aged(harness, topic)
        offsets = member.offsets[0]
        await member.consumer.ack(0, offsets[-1], keep_from=offsets[10])
        assert await harness.bus.trim(topic, retention_ms=0, max_records=10_000) == TrimResult(10, 0)
        await member.consumer.ack(0, offsets[-1], keep_from=offsets[45])
        assert await harness.bus.trim(topic, retention_ms=0, max_records=10_000) == TrimResult(35, 0)
        await member.seek(0, offsets[45])
        await until([member], lambda: len(member.values()) == 55)
        assert member.values()[50:] == texts(range(45, 50))

    async def test_trim_keeps_what_is_young(self, harness: Harness) -> None:
        topic = await harness.topic()
        await harness.publish(topic, range(20))
        member = await delivered(harness, topic, 20)
        await member.ack_all()
        assert await harness.bus.trim(topic, retention_ms=ALWAYS, max_records=10_000) == TrimResult(0, 0)
        assert await harness.bus.trim(topic, retention_ms=60_000, max_records=10_000) == TrimResult(0, 0)

    async def test_trim_without_groups_goes_by_age(self, harness: Harness) -> None:
        topic = await harness.topic(partitions=2)
        await harness.publish(topic, range(20))
        await harness.publish(topic, range(5), partition=1)
        await aged(harness, topic)
        assert (await harness.bus.trim(topic, retention_ms=ALWAYS, max_records=10_000)).expired == 0
        assert (await harness.bus.trim(topic, retention_ms=0, max_records=10_000)).expired >= 20
        assert await kept(harness, topic) == []

    async def test_the_hard_cap_removes_the_oldest_and_counts_what_was_needed(self, harness: Harness) -> None:
        topic = await harness.topic()
        await harness.publish(topic, range(1000))
        member = await harness.member(topic)
        await until([member], lambda: len(member.values()) >= 700)
        await member.consumer.ack(0, member.offsets[0][299])
        # 300 are done with and young, so 150 of those go first without harm; then 250 that somebody needs.
        assert await harness.bus.trim(topic, retention_ms=ALWAYS, max_records=850) == TrimResult(150, 0)
        assert await kept(harness, topic) == texts(range(150, 1000))
        assert await harness.bus.trim(topic, retention_ms=ALWAYS, max_records=450) == TrimResult(150, 250)
        assert await kept(harness, topic) == texts(range(550, 1000))
        assert await harness.bus.trim(topic, retention_ms=ALWAYS, max_records=450) == TrimResult(0, 0)

    async def test_a_reader_of_what_the_hard_cap_removed_goes_on_after_it(self, harness: Harness) -> None:
        topic = await harness.topic()
        await harness.publish(topic, range(200))
        first = await harness.member(topic, "a", max_records=50)
        await until([first], lambda: len(first.values()) >= 100)
        await first.close()
        assert (await harness.bus.trim(topic, retention_ms=ALWAYS, max_records=20)).forced == 180
        second = await harness.member(topic, "b")
        await until([second], lambda: len(second.values()) == 20)
        assert second.values() == texts(range(180, 200))
        await second.ack_all()
        (status,) = await harness.bus.status([topic])
        assert status.groups[0].partitions[0].pending == 0

    async def test_delete_removes_single_records(self, harness: Harness) -> None:
        topic = await harness.topic()
        await harness.publish(topic, range(10))
        offsets = [r.offset for r in await harness.bus.read(topic, 0, None, 100)]
        assert await harness.bus.delete(topic, 0, [offsets[2], offsets[5], offsets[9]]) == 3
        assert await harness.bus.delete(topic, 0, [offsets[2], offsets[3]]) == 1
        assert await harness.bus.delete(topic, 0, []) == 0
        assert await kept(harness, topic) == [b"0", b"1", b"4", b"6", b"7", b"8"]
        assert await harness.bus.end_offset(topic, 0) == offsets[8]
        member = await harness.member(topic)
        await until([member], lambda: len(member.values()) == 6)

    async def test_reads_are_ranges(self, harness: Harness) -> None:
        topic = await harness.topic()
        assert await harness.bus.read(topic, 0, None, 10) == []
        assert await harness.bus.newest(topic, 0, 10) == []
        assert await harness.bus.end_offset(topic, 0) is None
        before = time.time() * 1000
        await harness.publish(topic, range(50))
        stored = await harness.bus.read(topic, 0, None, 1000)
        assert [r.value for r in stored] == texts(range(50))
        assert all(before - 1000 <= r.timestamp_ms <= time.time() * 1000 + 1000 for r in stored)
        assert await harness.bus.read(topic, 0, stored[20].offset, 5) == stored[20:25]
        assert await harness.bus.read(topic, 0, stored[48].offset, 5) == stored[48:]
        assert await harness.bus.read(topic, 0, stored[-1].offset + 1, 5) == []
        assert await harness.bus.newest(topic, 0, 3) == stored[-3:]
        assert await harness.bus.newest(topic, 0, 1000) == stored
        assert await harness.bus.end_offset(topic, 0) == stored[-1].offset

    async def test_status_tells_lag_owner_and_age(self, harness: Harness) -> None:
        topic = await harness.topic(partitions=2)
        member = await harness.member(topic, max_records=10)
        await until([member], lambda: member.owned == {0, 1})
        await harness.publish(topic, range(30))
        await harness.publish(topic, range(7), partition=1)
        await until([member], lambda: len(member.values(0)) == 30 and len(member.values(1)) == 7)
        await member.close()
        await harness.publish(topic, range(25))
        await aged(harness, topic)
        (status,) = await harness.bus.status([topic])
        assert (status.topic, status.partitions, status.records) == (topic, 2, 62)
        (group,) = status.groups
        assert (group.group, group.members) == (harness.group, [])
        zero, one = group.partitions
        assert (zero.partition, zero.owner, zero.lag, zero.pending) == (0, None, 25, 30)
        assert 0 < zero.lag_ms <= zero.oldest_pending_ms < 60_000
        assert (one.partition, one.lag, one.lag_ms, one.pending) == (1, 0, 0, 7)
        assert topic in [s.topic for s in await harness.bus.status()]

    async def test_status_of_what_does_not_exist_is_empty(self, harness: Harness) -> None:
        (status,) = await harness.bus.status([f"{harness.stem}.none"])
        assert (status.partitions, status.records, status.groups) == (0, 0, [])
        topic = await harness.topic()
        (status,) = await harness.bus.status([topic])
        assert (status.partitions, status.records, status.groups) == (1, 0, [])

    async def test_a_topic_keeps_its_number_of_partitions(self, harness: Harness) -> None:
        topic = await harness.topic(partitions=3)
        other = (await harness.link()).bus
        assert await other.ensure_topic(topic, 7) == 3
        assert await harness.bus.partitions(topic) == 3
        assert await other.partitions(topic) == 3

    @pytest.mark.parametrize("name", ["", ".", "..", "a b", "a{b}", "a/b", "ä", "x" * 250])
    async def test_names_no_driver_takes_are_refused(self, harness: Harness, name: str) -> None:
        with pytest.raises(BusError, match="cannot be a topic"):
            await harness.bus.ensure_topic(name, 1)

    @pytest.mark.parametrize("partitions", [0, -1, 4097])
    async def test_numbers_of_partitions_no_topic_can_have_are_refused(
        self, harness: Harness, partitions: int
    ) -> None:
        with pytest.raises(BusError, match="partitions"):
            await harness.bus.ensure_topic(f"{harness.stem}.x", partitions)

    async def test_topics_that_would_share_records_are_refused(self, harness: Harness) -> None:
        await harness.bus.ensure_topic(f"{harness.stem}.a", 4)
        with pytest.raises(BusError, match="rename one"):
            await harness.bus.ensure_topic(f"{harness.stem}.a.2", 1)
        assert await harness.bus.ensure_topic(f"{harness.stem}.a.4", 1) == 1

    async def test_offsets_are_written_and_read_back(self, harness: Harness) -> None:
        topic = await harness.topic()
        await harness.publish(topic, range(3))
        for record in await harness.bus.read(topic, 0, None, 10):
            text = harness.bus.format_offset(record.offset)
            assert harness.bus.parse_offset(text) == record.offset
        for text in ("", "x", "-1", "1-", "1-x", "1.5", "\N{ARABIC-INDIC DIGIT ONE}"):
            with pytest.raises(ValueError, match=r"offset|entry"):
                harness.bus.parse_offset(text)

    async def test_the_server_tells_about_itself(self, harness: Harness) -> None:
        facts = await harness.bus.ping()
        assert harness.bus.name in facts["server"].lower()
        assert facts["durability"]
