"""Who gets which partition of a topic: the rule by which the leader of a Kafka group shares them out.

Kafka lets one member of a group decide. Members tell it what they own (:class:`Claim`); it leaves to each what it may
keep, and gives to nobody what is still owned. A partition that has to move is first missed by its owner in what it was
given; when the owner has let go of it, the group shares out again, and then it is free. So partitions that stay are
never interrupted, and none has two owners. (Kafka calls this incremental cooperative rebalancing, KIP-429.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec


@dataclass(frozen=True, slots=True)
class Claim:
    """What a member says of itself as it joins.

    ``topic`` has ``partitions``. ``keeping``: owned, and wanted. ``leaving``: owned until their hand-over ends.
    ``generation``: of the group, when they were owned; an older claim than another's is void.
    """

    topic: str
    partitions: int
    generation: int = -1
    keeping: list[int] = field(default_factory=list)
    leaving: list[int] = field(default_factory=list)

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Claim:
        return msgspec.msgpack.decode(data, type=cls)


def shares(claims: dict[str, Claim]) -> dict[str, list[int]]:
    """The partitions of each member, by member id; of each topic among those who claim for it."""
    out: dict[str, list[int]] = {}
    for topic in {claim.topic for claim in claims.values()}:
        out |= _of_topic({member: claim for member, claim in claims.items() if claim.topic == topic})
    return out


def _of_topic(claims: dict[str, Claim]) -> dict[str, list[int]]:
    count = max(claim.partitions for claim in claims.values())
    owner: dict[int, str] = {}
    for member in sorted(claims, key=lambda m: (claims[m].generation, m)):
        owner |= dict.fromkeys(claims[member].keeping + claims[member].leaving, member)
    kept = {m: [p for p in sorted(claim.keeping) if owner[p] == m] for m, claim in claims.items()}
    share, rest = divmod(count, len(claims))
    # Who has most may keep one more than the others: so as few as possible move.
    ranked = sorted(claims, key=lambda m: (-len(kept[m]), m))
    quota = {member: share + (rank < rest) for rank, member in enumerate(ranked)}
    given = {member: kept[member][: quota[member]] for member in claims}
    wanting = [m for m in ranked if len(given[m]) < quota[m]]
    for partition in _free(count, owner):
        if not wanting:
            break
        member = min(wanting, key=lambda m: (len(given[m]), m))
        given[member].append(partition)
        if len(given[member]) == quota[member]:
            wanting.remove(member)
    return {member: sorted(partitions) for member, partitions in given.items()}


def _free(count: int, owned: Iterable[int]) -> list[int]:
    taken = set(owned)
    return [p for p in range(count) if p not in taken]
