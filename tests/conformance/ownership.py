"""Who owns which partition, and that nothing is lost or left out while it changes hands."""

from __future__ import annotations

import random
import time

import pytest

from tests.conformance.harness import Harness
from tests.conformance.members import LEASE_MS, Member, owning, rounds, until


def texts(count: int) -> list[bytes]:
    return [str(v).encode() for v in range(count)]


class OwnershipSuite:
    async def test_one_member_owns_everything(self, harness: Harness) -> None:
        topic = await harness.topic(partitions=5)
        member = await harness.member(topic)
        await owning([member], 5)
        (status,) = await harness.bus.status([topic])
        (group,) = status.groups
        assert group.members == ["a"]
        assert [part.owner for part in group.partitions] == ["a"] * 5

    async def test_partitions_spread_evenly_as_members_join_and_leave(self, harness: Harness) -> None:
        lease_ms = 5 * LEASE_MS
        topic = await harness.topic(partitions=8)
        members = [await harness.member(topic, "a", lease_ms=lease_ms)]
        await owning(members, 8)
        for name in ("b", "c", "d", "e"):
            members.append(await harness.member(topic, name, lease_ms=lease_ms))
            await owning(members, 8)
        began = time.monotonic()
        for member in members[:3]:
            await member.close()
            await owning(members, 8)
        # Who leaves does not keep the others waiting for the end of a lease.
        assert time.monotonic() - began < 3 * lease_ms / 1000
        (status,) = await harness.bus.status([topic])
        assert status.groups[0].members == ["d", "e"]

    async def test_more_members_than_partitions(self, harness: Harness) -> None:
        topic = await harness.topic(partitions=2)
        members = [await harness.member(topic, name, lease_ms=LEASE_MS) for name in "abcd"]
        await owning(members, 2)
        while any(m.owned for m in members):
            for member in [m for m in members if m.owned and not m.closed]:
                await member.close()
            alive = [m for m in members if not m.closed]
            if alive:
                await owning(alive, 2)

    async def test_a_member_that_dies_is_replaced_when_its_leases_end(self, harness: Harness) -> None:
        topic = await harness.topic(partitions=6)
        link = await harness.link()
        dead, heir = (
            await harness.member(topic, "a", link=link, lease_ms=LEASE_MS),
            await harness.member(topic, "b", lease_ms=LEASE_MS),
        )
        await owning([dead, heir], 6)
        for partition in range(6):
            await harness.publish(topic, range(30), partition=partition)
        await until([dead, heir], lambda: sum(len(v) for m in (dead, heir) for v in m.got.values()) == 180)
        link.cut()
        began = time.monotonic()
        await owning([heir], 6)
        assert time.monotonic() - began < 10 * LEASE_MS / 1000
        # Nothing was acknowledged: all of it comes again.
        await until([heir], lambda: all(len(heir.values(p)) >= 30 for p in range(6)))
        assert all(heir.values(p)[-30:] == texts(30) for p in range(6))
        await heir.ack_all()
        (status,) = await harness.bus.status([topic])
        assert [part.pending for part in status.groups[0].partitions] == [0] * 6

    async def test_a_member_that_comes_back_knows_what_it_lost_and_gets_its_share(
        self, harness: Harness
    ) -> None:
        topic = await harness.topic(partitions=4)
        link = await harness.link()
        away, other = (
            await harness.member(topic, "a", link=link, lease_ms=LEASE_MS),
            await harness.member(topic, "b", lease_ms=LEASE_MS),
        )
        await owning([away, other], 4)
        before = set(away.owned)
        link.cut()
        # It learns of the loss by its own clock, although nobody can tell it, and not later than the others
        # can take over.
        await until([away], lambda: not away.owned)
        assert set(away.lost) == before
        assert away.outages
        await until([other], lambda: len(other.owned) == 4)
        link.heal()
        await owning([away, other], 4)
        for partition in range(4):
            await harness.publish(topic, range(10), partition=partition)
        await until([away, other], lambda: sum(len(v) for m in (away, other) for v in m.got.values()) == 40)

    async def test_a_short_cut_costs_nothing(self, harness: Harness) -> None:
        topic = await harness.topic(partitions=2)
        link = await harness.link()
        member = await harness.member(topic, "a", link=link)
        await owning([member], 2)
        await harness.publish(topic, range(10), partition=1)
        await until([member], lambda: len(member.values(1)) == 10)
        link.cut()
        await until([member], lambda: member.outages > 0)
        link.heal()
        await harness.publish(topic, range(10, 20), partition=1)
        await until([member], lambda: len(member.values(1)) == 20)
        assert member.values(1) == texts(20)
        assert member.owned == {0, 1}
        assert member.lost == []

    async def test_hand_over_ends_with_the_release(self, harness: Harness) -> None:
        topic = await harness.topic(partitions=2)
        await harness.publish(topic, range(50), partition=0)
        await harness.publish(topic, range(50), partition=1)
        old = await harness.member(topic, "a", resume=True)
        old.releasing = False
        await until([old], lambda: all(len(old.values(p)) == 50 for p in (0, 1)), ack=True)
        new = await harness.member(topic, "b", resume=True, lease_ms=LEASE_MS)
        await until([old, new], lambda: bool(old.revoking))
        (partition,) = old.revoking
        # It is still the old owner's: it may finish, and nobody else has it; it gets nothing more of it.
        await harness.publish(topic, range(50, 60), partition=partition)
        for _ in range(10):
            await old.step()
            await new.step()
        assert not new.owned
        assert old.values(partition) == texts(50)
        await old.release(partition)
        await until([old, new], lambda: new.owned == {partition})
        await until([old, new], lambda: len(new.values(partition)) == 10)
        assert new.values(partition) == texts(60)[50:]

    async def test_what_a_member_left_pending_becomes_the_next_ones(self, harness: Harness) -> None:
        topic = await harness.topic()
        await harness.publish(topic, range(300))
        first = await harness.member(topic, "a", max_records=70)
        await until([first], lambda: len(first.values()) >= 140)
        await first.consumer.ack(0, first.offsets[0][49])
        await first.close()
        second = await harness.member(topic, "b")
        second.seeking = False
        await until([second], lambda: second.owned == {0})
        await second.seek(0, first.offsets[0][100])
        await until([second], lambda: len(second.values()) == 200)
        assert second.values() == texts(300)[100:]
        # Also what lies before the position, which the first one did not come to acknowledge.
        await second.ack_all()
        (status,) = await harness.bus.status([topic])
        assert status.groups[0].partitions[0].pending == 0

    async def test_many_partitions_and_members_deliver_everything(self, harness: Harness) -> None:
        topic = await harness.topic(partitions=48)
        members = [await harness.member(topic, name, resume=True, lease_ms=3 * LEASE_MS) for name in "abc"]
        await owning(members, 48)
        for partition in range(48):
            await harness.publish(topic, range(25), partition=partition)

        def got() -> int:
            return sum(len(values) for m in members for values in m.got.values())

        await until(members, lambda: got() >= 48 * 25, ack=True)
        for partition in range(48):
            values = [v for m in members for v in m.values(partition)]
            assert sorted(set(values)) == sorted(texts(25))
        (status,) = await harness.bus.status([topic])
        assert [part.pending + part.lag for part in status.groups[0].partitions] == [0] * 48

    @pytest.mark.parametrize("seed", range(2))
    async def test_a_partition_has_one_owner_at_any_moment_and_loses_nothing(
        self, harness: Harness, seed: int
    ) -> None:
        """Members join, leave, die and come back at random while records are published."""
        rng = random.Random(seed)
        partitions = 4
        topic = await harness.topic(partitions=partitions)
        links = [await harness.link() for _ in range(3)]
        members: list[Member] = []
        published = [0] * partitions
        names = iter(f"m{i}" for i in range(1000))
        cut: set[int] = set()

        for _ in range(22):
            what = rng.random()
            alive = [m for m in members if not m.closed]
            if what < 0.35 and len(alive) < 5:
                link = rng.randrange(3)
                members.append(
                    await harness.member(
                        topic,
                        next(names),
                        link=links[link],
                        resume=True,
                        max_records=rng.randint(1, 40),
                        lease_ms=LEASE_MS,
                    )
                )
            elif what < 0.5 and len(alive) > 1:
                await rng.choice(alive).close()
            elif what < 0.65:
                link = rng.randrange(3)
                if link in cut:
                    links[link].heal()
                    cut.discard(link)
                elif len(cut) < 2:
                    links[link].cut()
                    cut.add(link)
            for partition in range(partitions):
                count = rng.randrange(20)
                start = published[partition]
                await harness.publish(topic, range(start, start + count), partition=partition)
                published[partition] += count
            await rounds(members, rng.randint(1, 6), ack=True)
        for link in cut:
            links[link].heal()
        if all(m.closed for m in members):
            members.append(await harness.member(topic, "last", resume=True, lease_ms=LEASE_MS))

        def complete() -> bool:
            return all(
                {v for m in members for v in m.values(p)} >= set(texts(published[p]))
                for p in range(partitions)
            )

        await until(members, complete, ack=True)

    async def test_stolen_records_are_delivered_all_the_same(self, harness: Harness) -> None:
        if not harness.can.steals:
            pytest.skip("this bus hands records to owners only")
        topic = await harness.topic()
        member = await harness.member(topic, max_records=20)
        await until([member], lambda: 0 in member.idle)
        published = 0
        rng = random.Random(11)
        for step in range(60):
            count = rng.choice((0, 1, 5, 30, 90))
            await harness.publish(topic, range(published, published + count))
            published += count
            if rng.random() < 0.6:
                await harness.steal(topic, "g", 0, rng.choice((1, 3, 1000)))
            if step % 3 == 0:
                await member.step()
            if step % 7 == 0:
                await member.ack_all()
        # Also at the tail, where no later record could give the gap away.
        await harness.publish(topic, range(published, published + 10))
        published += 10
        await harness.steal(topic, "g", 0, 1000)
        await until([member], lambda: len(member.values()) >= published)
        assert member.values() == texts(published)
        await member.ack_all()
        (status,) = await harness.bus.status([topic])
        assert status.groups[0].partitions[0].pending == 0

    async def test_nothing_is_lost_when_the_server_is_killed(self, harness: Harness) -> None:
        if not harness.can.restarts:
            pytest.skip("this bus has no server")
        topic = await harness.topic(partitions=3)
        members = [await harness.member(topic, name, resume=True, lease_ms=LEASE_MS) for name in "ab"]
        await owning(members, 3)
        published = 0

        def complete() -> bool:
            wanted = set(texts(published))
            return all({v for m in members for v in m.values(p)} >= wanted for p in range(3))

        for _ in range(3):
            for partition in range(3):
                await harness.publish(topic, range(published, published + 40), partition=partition)
            published += 40
            for member in members:
                await member.step()
            await harness.restart()
            # The same objects go on.
            await until(members, complete, ack=True)
        await owning(members, 3)
