"""The state of each Redis server that a URL leads to, for operators."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import ResponseError

from market_data_core.clock import Clock, SystemClock
from market_data_core.errors import BusUnavailable
from market_data_pipeline.streaming.redis_wire import RedisServer, Wire, pack

OLDEST: Final = (6, 2)


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """One server. ``fsync`` is None where a provider keeps CONFIG to itself, ``eviction`` where it tells it nowhere;
    ``used_bytes`` of ``max_bytes`` (0: no bound) are its memory; ``replicas`` are those connected; ``clock_ns`` is how
    far its clock is ahead of ours, to within half of ``round_trip_ns``."""

    place: str
    version: str
    number: tuple[int, ...]
    aof: bool
    aof_failing: bool
    fsync: str | None
    eviction: str | None
    used_bytes: int
    max_bytes: int
    replicas: int
    clock_ns: int
    round_trip_ns: int

    @property
    def durability(self) -> str:
        """What a crash of the server loses, in words."""
        if not self.aof:
            return "no append-only file: what was written last is lost when the server dies"
        kept = f"append-only file, fsync {self.fsync or 'policy not shown'}"
        # Also by a kill -9: while a sync runs, Redis puts off writing the file at all.
        return (
            kept
            if self.fsync == "always"
            else f"{kept}: what was written last can be lost when the server dies"
        )

    @property
    def safety(self) -> int:
        """Greater where less is lost."""
        return 0 if not self.aof else 2 if self.fsync == "always" else 1


@dataclass(frozen=True, slots=True)
class ClusterHealth:
    """What a cluster says of itself: ``state`` is ``ok`` or ``fail``; ``away`` are masters that do not answer."""

    state: str
    slots_ok: int
    masters: int
    away: list[str]


class RedisNodes:
    """Asks every server that has keys: the masters of a cluster, or the one. Each over a connection that is kept:
    what opening one leaves behind is many kilobytes that only the garbage collector can free."""

    def __init__(self, server: RedisServer, clock: Clock | None = None) -> None:
        self._server = server
        self._clock = clock or SystemClock()
        self._wires: dict[str, Wire] = {}

    async def look(self, without: Collection[str] = ()) -> list[NodeHealth]:
        """All of them but those at the places ``without``.

        Raises:
            BusUnavailable, BusError: one of them does not answer, or refuses us.
        """
        await self._server.settle()
        places = self._server.places()
        for place in self._wires.keys() - set(places):
            await self._wires.pop(place).close()
        return [await self._node(place) for place in places if place not in without]

    async def close(self) -> None:
        for wire in self._wires.values():
            await wire.close()

    async def _node(self, place: str) -> NodeHealth:
        if place not in self._wires:
            self._wires[place] = self._server.wire_at(place)
        return await _node(self._server, self._wires[place], place, self._clock)


async def cluster_of(server: RedisServer) -> ClusterHealth | None:
    """The state of the cluster; None where there is none, or where it may not be asked."""
    if not server.clustered:
        return None
    await server.settle()
    places = server.places()
    away = []
    text: Any = None
    for place in places:
        wire = server.wire_at(place)
        try:
            (text,) = await wire.exchange(pack("CLUSTER", "INFO"))
        except BusUnavailable:
            away.append(place)
        finally:
            await wire.close()
    if text is None:
        raise BusUnavailable(f"no master of Redis at {server.where} answers: check that they run")
    if isinstance(text, ResponseError):
        return None
    about = _pairs(text)
    return ClusterHealth(about["cluster_state"], int(about["cluster_slots_ok"]), len(places), away)


async def _node(server: RedisServer, wire: Wire, place: str, clock: Clock) -> NodeHealth:
    text, hidden = await wire.exchange(pack("INFO"), pack("CONFIG", "GET", "appendfsync"))
    began, wall = clock.monotonic(), clock.now()
    (told,) = await wire.exchange(pack("TIME"))
    trip = clock.monotonic() - began
    server.check([text, told])
    about = _pairs(text)
    version = about["redis_version"]
    seconds, micros = map(int, told)
    return NodeHealth(
        place=place,
        version=version,
        number=tuple(map(int, re.findall(r"\d+", version)[:2])),
        aof=about.get("aof_enabled") == "1",
        aof_failing=about.get("aof_last_write_status") == "err",
        fsync=_setting(hidden),
        eviction=about.get("maxmemory_policy"),
        used_bytes=int(about.get("used_memory", 0)),
        max_bytes=int(about.get("maxmemory", 0)),
        replicas=int(about.get("connected_slaves", 0)),
        clock_ns=(seconds * 1_000_000 + micros) * 1000 - (wall + trip // 2),
        round_trip_ns=trip,
    )


def _pairs(text: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in text.decode().splitlines())
    return {name: value for name, colon, value in lines if colon}


def _setting(reply: Any) -> str | None:
    return reply[1].decode() if isinstance(reply, list) and len(reply) == 2 else None
