"""What nobody reports and has to be asked for: the event loop's delay, the consumer's lag, and whether all is there.

Tasks of their own, off the way of events, every few seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog

from market_data_core.clock import Clock, SystemClock
from market_data_core.ending import end
from market_data_core.errors import MdpError
from market_data_pipeline.streaming.bus import Bus, TopicStatus
from market_data_pipeline.telemetry.health import Health
from market_data_pipeline.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)
BEAT_S: Final = 0.1
PERIOD_S: Final = 5.0
_MOST_S: Final = 10.0
"""Longer than the pool of the store waits for a connection, so that its own words are heard."""
_SHARE: Final = 10
_LONGEST_S: Final = 60.0
"""A question that takes long to answer, as counting a large backlog may, is asked for a tenth of the time at most."""
_Question = Callable[[], Awaitable[object]]
NOBODY: Final = "nobody"


@dataclass(frozen=True, slots=True)
class Membership:
    """A group that this process is a member of."""

    topic: str
    group: str
    member: str


@asynccontextmanager
async def watching(
    metrics: Metrics,
    health: Health,
    bus: Bus,
    store: Callable[[], Awaitable[object]] | None = None,
    members: Sequence[Membership] = (),
    *,
    period_s: float = PERIOD_S,
    clock: Clock | None = None,
) -> AsyncIterator[None]:
    """Probe while the block runs. ``store``: its ``ping``, None for a process that needs none."""
    clock = clock or SystemClock()
    questions: dict[str, _Question] = {"bus": bus.ping}
    if store is not None:
        questions["store"] = store
    for member in members:
        questions[f"group {member.group} on {member.topic}"] = _lag(metrics, bus, member)
    health.expect(*questions)

    async def again_and_again(name: str, question: _Question) -> None:
        while True:
            began = clock.monotonic()
            answered = await _ask(health, name, question)
            took = (clock.monotonic() - began) / 1e9
            await asyncio.sleep(max(period_s, min(took * _SHARE, _LONGEST_S)) if answered else period_s)

    tasks = [asyncio.create_task(again_and_again(name, question)) for name, question in questions.items()]
    tasks.append(asyncio.create_task(_beat(metrics, health, clock)))
    try:
        yield
    finally:
        await end(*tasks)
        health.rest()


async def _beat(metrics: Metrics, health: Health, clock: Clock) -> None:
    while True:
        health.beat()
        due = clock.monotonic() + int(BEAT_S * 1e9)
        await asyncio.sleep(BEAT_S)
        metrics.loop_delay.observe(max(0, clock.monotonic() - due) / 1e9)


async def _ask(health: Health, name: str, question: _Question) -> bool:
    """Whether there was an answer. Any but a problem is a good one."""
    try:
        async with asyncio.timeout(_MOST_S):
            answer = await question()
    except TimeoutError:
        health.found(name, f"no answer in {_MOST_S:g} s")
        return False
    except MdpError as error:
        health.found(name, str(error))
        return False
    except Exception as error:
        # Not a reason to end what is observed, nor to keep quiet.
        log.exception("a probe failed", probe=name)
        health.found(name, f"the probe failed: {error}")
        return False
    health.found(name, answer.problem if isinstance(answer, _Answer) else None)
    return True


@dataclass(frozen=True, slots=True)
class _Answer:
    problem: str | None


def _lag(metrics: Metrics, bus: Bus, me: Membership) -> _Question:
    """Ask the bus where the group is: the lag of this member, and of partitions that nobody has. When the bus does
    not answer, the last known lag stays."""

    async def ask() -> _Answer:
        status = await bus.status([me.topic])
        _note(metrics, me, status)
        groups = [g for t in status for g in t.groups if g.group == me.group]
        member = any(me.member in g.members for g in groups)
        owner = any(p.owner == me.member for g in groups for p in g.partitions)
        return _Answer(None if member or owner else f"{me.member} is not a member yet")

    return ask


def _note(metrics: Metrics, me: Membership, status: Sequence[TopicStatus]) -> None:
    lag = {me.member: 0.0}
    records = {me.member: 0.0}
    for group in (g for t in status for g in t.groups if g.group == me.group):
        for p in group.partitions:
            if p.owner not in (me.member, None):
                continue  # its owner tells
            consumer = p.owner or NOBODY
            lag[consumer] = max(lag.get(consumer, 0.0), p.lag_ms)
            records[consumer] = records.get(consumer, 0.0) + p.lag
    source = f"{me.topic}/{me.group}"
    for gauge, values in ((metrics.lag, lag), (metrics.lag_records, records)):
        gauge.replace(source, {(me.topic, me.group, name): value for name, value in values.items()})
