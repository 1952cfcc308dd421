"""How the leader of a Kafka group shares partitions out: evenly in the end, and never one to two."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.streaming.kafka_shares import Claim, shares


@dataclass
class Member:
    """A member as the group protocol has it: it owns what it was given, until it is told otherwise and lets go."""

    generation: int = -1
    keeping: set[int] = field(default_factory=set)
    leaving: set[int] = field(default_factory=set)

    def claim(self, partitions: int) -> Claim:
        return Claim("t", partitions, self.generation, sorted(self.keeping), sorted(self.leaving))


class Group:
    def __init__(self, partitions: int) -> None:
        self.partitions = partitions
        self.members: dict[str, Member] = {}
        self.generation = 0
        self.moved = 0

    def share_out(self) -> None:
        self.generation += 1
        if not self.members:
            return
        given_out = shares({name: m.claim(self.partitions) for name, m in self.members.items()})
        assert given_out.keys() == self.members.keys()
        for name, member in self.members.items():
            mine = set(given_out[name])
            assert not mine & member.leaving
            member.leaving |= member.keeping - mine
            self.moved += len(member.keeping - mine)
            member.keeping = mine
            member.generation = self.generation
        owned = [p for m in self.members.values() for p in (*m.keeping, *m.leaving)]
        assert len(owned) == len(set(owned)), "a partition has two owners"

    def settle(self) -> None:
        for _ in range(3):
            for member in self.members.values():
                member.leaving.clear()
            self.share_out()


JOIN, LEAVE, RELEASE, SHARE = "join", "leave", "release", "share"
STEPS = st.lists(
    st.tuples(st.sampled_from([JOIN, JOIN, LEAVE, RELEASE, SHARE]), st.integers(0, 20)), max_size=30
)


@given(st.integers(1, 12), STEPS)
def test_a_partition_has_one_owner_and_all_are_shared_out_evenly(
    partitions: int, steps: list[tuple[str, int]]
) -> None:
    group = Group(partitions)
    for number, (what, which) in enumerate(steps):
        names = sorted(group.members)
        if what == JOIN:
            group.members[f"m{(which * 7) % 10}.{number}"] = Member()
        elif names and what == LEAVE:
            del group.members[names[which % len(names)]]
        elif names and what == RELEASE:
            group.members[names[which % len(names)]].leaving.clear()
        group.share_out()
    if not group.members:
        return
    group.settle()
    counts = [len(member.keeping) for member in group.members.values()]
    assert sum(counts) == partitions
    assert max(counts) - min(counts) <= 1
    before = group.moved
    group.share_out()
    assert group.moved == before, "what is even is left alone"


@given(st.integers(1, 30), st.integers(1, 8))
def test_a_member_that_joins_moves_no_more_than_its_share(partitions: int, members: int) -> None:
    group = Group(partitions)
    group.members = {f"m{i}": Member() for i in range(members)}
    group.settle()
    before = group.moved
    group.members["new"] = Member()
    group.settle()
    assert group.moved - before == len(group.members["new"].keeping)


def test_an_old_claim_gives_way_to_a_newer_one() -> None:
    claims = {
        "old": Claim("t", 2, 3, keeping=[0, 1]),
        "new": Claim("t", 2, 5, keeping=[1]),
    }
    assert shares(claims) == {"old": [0], "new": [1]}


def test_topics_of_one_group_are_shared_out_each_for_itself() -> None:
    claims = {"a": Claim("t", 3), "b": Claim("u", 2), "c": Claim("u", 2)}
    assert shares(claims) == {"a": [0, 1, 2], "b": [0], "c": [1]}
    assert Claim.decode(claims["a"].encode()) == claims["a"]
