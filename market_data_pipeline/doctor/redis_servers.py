"""The Redis servers behind the bus: version, durability, memory, clock; and the cluster they may be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from market_data_core.clock import Clock
from market_data_core.errors import MdpError
from market_data_pipeline.doctor.finding import Finding, failure, skew
from market_data_pipeline.streaming.redis_cluster import server_at
from market_data_pipeline.streaming.redis_health import (
    OLDEST,
    ClusterHealth,
    NodeHealth,
    RedisNodes,
    cluster_of,
)

NEARLY_FULL: Final = 0.9
_OVERCOMMIT: Final = Path("/proc/sys/vm/overcommit_memory")


async def redis_servers(url: str, where: str, clock: Clock | None = None) -> list[Finding]:
    """Everything about the servers at ``url``; ``where`` is how they are named, without secrets."""
    server = server_at(url)
    asking = RedisNodes(server, clock)
    try:
        cluster = await cluster_of(server)
        nodes = await asking.look(cluster.away if cluster else ())
    except MdpError as error:
        fix = "start it, or correct REDIS_URI; or unset REDIS_URI to use the embedded one"
        return [failure("redis", error, fix if error.retriable else "")]
    finally:
        await asking.close()
        await server.close()
    findings = [] if cluster is None else [_cluster(cluster, nodes)]
    for node in nodes:
        findings += _node(node, node.place or where)
    return findings


def overcommit() -> Iterator[Finding]:
    """Whether the kernel lets a Redis of this machine compact its file when memory is short."""
    if _OVERCOMMIT.exists() and _OVERCOMMIT.read_text(encoding="ascii").strip() == "0":
        fix = "sysctl vm.overcommit_memory=1"
        yield Finding("overcommit", "warn", "with little free memory its file may not be compacted", fix)


def _cluster(cluster: ClusterHealth, nodes: list[NodeHealth]) -> Finding:
    found = f"{cluster.state}, {cluster.slots_ok} of 16384 slots served by {cluster.masters} masters"
    if cluster.away:
        found += f"; away: {', '.join(cluster.away)}"
        return Finding("redis cluster", "fail", found, "start what is away, or let its replica take over")
    if cluster.state != "ok":
        return Finding("redis cluster", "fail", found, "redis-cli --cluster check, then --cluster fix")
    alone = [node.place for node in nodes if not node.replicas]
    if alone:
        found += f"; without a replica: {', '.join(alone)}"
        fix = "add a replica, or its partitions wait for its restart"
        return Finding("redis cluster", "warn", found, fix)
    return Finding("redis cluster", "ok", found)


def _node(node: NodeHealth, where: str) -> Iterator[Finding]:
    old = node.number < OLDEST
    fix = "update to 6.2 or later" if old else ""
    yield Finding("redis", "fail" if old else "ok", f"{node.version}, {where}", fix)
    yield _durability(node)
    yield _memory(node)
    yield skew("redis clock", node.clock_ns, node.round_trip_ns)


def _durability(node: NodeHealth) -> Finding:
    check = "redis durability"
    if not node.aof:
        found = "appendonly is off: a restart loses events"
        return Finding(check, "fail", found, "CONFIG SET appendonly yes, and appendonly yes in redis.conf")
    if node.aof_failing:
        return Finding(check, "fail", "the append-only file cannot be written", "free its disk")
    if node.fsync == "no":
        return Finding(check, "warn", "appendfsync is no", "set appendfsync to always or everysec")
    lost = ", so a loss of power may take the last second" if node.fsync == "everysec" else ""
    return Finding(check, "ok", f"append-only file, fsync {node.fsync or 'unknown'}{lost}")


def _memory(node: NodeHealth) -> Finding:
    check = "redis memory"
    if node.eviction not in (None, "noeviction"):
        found = f"maxmemory-policy is {node.eviction}, which may remove events unread"
        fix = "CONFIG SET maxmemory-policy noeviction, and the same in redis.conf"
        return Finding(check, "fail", found, fix)
    used = f"{node.used_bytes / 1e6:.0f} MB used"
    if not node.max_bytes:
        return Finding(check, "ok", f"{used}, no maxmemory")
    used += f" of {node.max_bytes / 1e6:.0f} MB"
    if node.used_bytes > NEARLY_FULL * node.max_bytes:
        fix = "raise maxmemory, or lower bus.redis.retention and bus.redis.max_records: full, it takes no events"
        return Finding(check, "warn", used, fix)
    return Finding(check, "ok", used)
