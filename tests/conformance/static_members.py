"""Members that keep their name: they come back to what they had, and nobody else notices."""

from __future__ import annotations

import time

import pytest

from market_data_core.errors import BusError, BusUnavailable
from tests.conformance.harness import Harness
from tests.conformance.members import LEASE_MS, Member, owning, rounds, until


async def three(harness: Harness, topic: str) -> tuple[Member, Member, Member]:
    """A member that keeps its name, on a link of its own, another such, and one with a name of today."""
    link = await harness.link()
    members = (
        await harness.member(topic, "a", link=link, static=True, resume=True),
        await harness.member(topic, "b", static=True, resume=True),
        await harness.member(topic, "c", resume=True),
    )
    await owning(members, 8)
    return members


def undisturbed(members: dict[Member, set[int]]) -> bool:
    return all(m.owned == before and not m.lost and not m.revoking for m, before in members.items())


class StaticMembersSuite:
    @pytest.mark.parametrize("how", ["closed", "killed"])
    async def test_it_has_its_partitions_again_and_the_others_keep_theirs(
        self, harness: Harness, how: str
    ) -> None:
        """Well before the lease ends, which is longer than a test waits."""
        topic = await harness.topic(partitions=8)
        gone, *rest = await three(harness, topic)
        had, others = set(gone.owned), {m: set(m.owned) for m in rest}
        if how == "closed":
            await gone.close()
        else:
            gone.link.cut()
        for partition in range(8):
            await harness.publish(topic, range(5), partition=partition)
        await until(rest, lambda: all(len(m.values(p)) == 5 for m in rest for p in m.owned), ack=True)
        assert undisturbed(others)
        again = await harness.member(topic, "a", static=True, resume=True)
        await until([again, *rest], lambda: again.owned == had)
        await until([again, *rest], lambda: all(len(again.values(p)) == 5 for p in had))
        assert undisturbed(others)
        # It is a member like any: another that joins gets its share.
        late = await harness.member(topic, "d", resume=True)
        await owning([again, *rest, late], 8)

    async def test_it_is_missed_when_its_lease_ends(self, harness: Harness) -> None:
        topic = await harness.topic(partitions=4)
        leaving = await harness.member(topic, "a", static=True, lease_ms=LEASE_MS)
        staying = await harness.member(topic, "b", lease_ms=LEASE_MS)
        await owning([leaving, staying], 4)
        await leaving.close()
        await owning([staying], 4)

    async def test_of_two_processes_of_one_name_the_later_has_it(self, harness: Harness) -> None:
        topic = await harness.topic(partitions=8)
        first, *rest = await three(harness, topic)
        had, others = set(first.owned), {m: set(m.owned) for m in rest}
        # The first is not polled for a while, so it cannot know.
        silent = time.monotonic()
        await until(rest, lambda: time.monotonic() - silent > LEASE_MS / 1000)
        second = await harness.member(topic, "a", static=True, resume=True)
        await until([second, *rest], lambda: second.owned == had)
        with pytest.raises(BusError, match=r"give each its own bus\.member") as told:
            await until([first], lambda: False)
        assert not isinstance(told.value, BusUnavailable)
        assert not first.owned
        await rounds([second, *rest], 5)
        assert second.owned == had
        assert undisturbed(others)
