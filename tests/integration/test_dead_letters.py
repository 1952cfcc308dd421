"""Records put aside: seen, published again, removed. On Redis and in memory."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from market_data_core.batch import EventBatch
from market_data_core.codecs import DeadLetter, encode_events, event_of
from market_data_core.errors import UsageError
from market_data_core.events import StreamEvent
from market_data_core.partitioner import partition_of
from market_data_pipeline.streaming.bus import Bus, Record
from market_data_pipeline.streaming.dead_letters import DeadLetters, Which
from market_data_pipeline.streaming.drivers import open_bus
from tests.servers.redis import RedisServer, running

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    yield from running("6.2")


@pytest.fixture(params=["memory", "redis"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("server")
        async with open_bus("redis", server.uri) as bus:
            yield bus
    else:
        async with open_bus("memory", f"memory://letters{next(_numbers)}") as bus:
            yield bus


@pytest.fixture
async def letters(bus: Bus) -> DeadLetters:
    topic = f"d{next(_numbers)}"
    await bus.ensure_topic(topic, 4)
    return DeadLetters(bus, topic)


def letter(topic: str, number: int, *, reason: str = "not JSON", value: bytes | None = None) -> DeadLetter:
    value = f"\x00bad {number}".encode() if value is None else value
    return DeadLetter(reason, topic, number % 4, f"{number}-0", f"K{number}", None, value, 1000 + number)


async def published(bus: Bus, topic: str) -> list[tuple[int, str, bytes, str | None]]:
    found = []
    for partition in range(await bus.partitions(topic)):
        found += [(partition, r.key, r.value, r.lane) for r in await bus.read(topic, partition, None, 1000)]
    return found


async def test_letters_are_listed_as_they_were_put(letters: DeadLetters) -> None:
    assert await letters.letters() == []
    assert await letters.reasons() == {}
    put = [letter(letters.source, i, reason="late" if i % 3 else "not JSON") for i in range(450)]
    await letters.put(put)
    listed = await letters.letters()
    assert [b.letter for b in listed] == put
    assert [b.letter for b in await letters.letters(limit=7)] == put[:7]
    assert [b.letter for b in await letters.letters(Which(reason="la"))] == [
        p for p in put if p.reason == "late"
    ]
    assert [b.letter for b in await letters.letters(Which(before=1010))] == put[:10]
    assert [b.letter for b in await letters.letters(Which(ids={listed[3].id, listed[440].id}))] == [
        put[3],
        put[440],
    ]
    assert await letters.reasons() == {"late": 300, "not JSON": 150}
    assert (await letters.show(listed[5].id)).letter == put[5]


async def test_a_copy_is_the_same_letter_and_another_value_is_not(letters: DeadLetters) -> None:
    one, two = letter(letters.source, 1), letter(letters.source, 2)
    other = letter(letters.source, 1, value=b"another event of the same frame")
    await letters.put([one, two])
    await letters.put([one, other])
    assert [b.letter for b in await letters.letters()] == [one, two, other]
    assert await letters.reasons() == {"not JSON": 3}
    assert await letters.purge(Which()) == 3
    assert await letters.letters() == []


async def test_requeue_publishes_the_original_to_where_it_was(bus: Bus, letters: DeadLetters) -> None:
    lane = DeadLetter("late", letters.source, 3, "9-0", "K", "replay-1", b"late one", 5)
    unplaced = DeadLetter("row 7", letters.source, -1, "file.csv:7", "SPY", None, b"row", 6)
    moved = DeadLetter("x", letters.source, 12, "1-0", "SPY", None, b"from a wider topic", 7)
    await letters.put([lane, unplaced, moved])
    assert await letters.requeue(Which()) == 3
    found = await published(bus, letters.source)
    assert (3, "K", b"late one", "replay-1") in found
    # What was in no partition of the topic as it is goes by its key.
    (by_key,) = {partition for partition, key, _, _ in found if key == "SPY"}
    await bus.publish(letters.source, [Record("SPY", b"probe")])
    assert (by_key, "SPY", b"probe", None) in await published(bus, letters.source)
    assert await letters.letters() == []


async def test_requeue_goes_to_where_the_symbol_is_now(bus: Bus, letters: DeadLetters) -> None:
    """Its topic may have had other partitions when it was put aside."""
    events = [StreamEvent("p", f"S{i}", "tick", "1s", i, i, 1.0, 1.0, 1.0, 1.0, 1.0, i) for i in range(8)]
    batch = EventBatch.from_events(events)
    for values in (encode_events(batch, "json"), encode_events(batch, "msgpack")):
        await letters.put([replace(letter(letters.source, 3, value=v), key="") for v in values])
    assert await letters.requeue(Which()) == 16
    found = await published(bus, letters.source)
    assert len(found) == 16
    for partition, _, value, _ in found:
        assert partition == partition_of(event_of(value).symbol, 4)


async def test_requeue_takes_copies_along_whichever_was_named(bus: Bus, letters: DeadLetters) -> None:
    one, two = letter(letters.source, 1), letter(letters.source, 2)
    await letters.put([one, two, one])
    ids = [bus.format_offset(r.offset) for r in await bus.read(letters.topic, 0, None, 10)]
    assert await letters.requeue(Which(ids=[ids[2]])) == 1
    assert await published(bus, letters.source) == [(1, "K1", one.value, None)]
    assert [b.letter for b in await letters.letters()] == [two]
    assert await bus.end_offset(letters.topic, 0) == (await letters.letters())[0].offset


async def test_requeue_with_a_corrected_value(bus: Bus, letters: DeadLetters) -> None:
    await letters.put([letter(letters.source, i) for i in range(3)])
    ids = [b.id for b in await letters.letters()]
    for which in (Which(), Which(reason="not"), Which(ids=ids)):
        with pytest.raises(UsageError, match="exactly one id"):
            await letters.requeue(which, value=b"fixed")
    assert await letters.requeue(Which(ids=[ids[1]]), value=b"fixed") == 1
    assert await published(bus, letters.source) == [(1, "K1", b"fixed", None)]
    assert len(await letters.letters()) == 2


async def test_requeue_of_some(bus: Bus, letters: DeadLetters) -> None:
    await letters.put([letter(letters.source, i, reason=("late", "bad")[i % 2]) for i in range(500)])
    assert await letters.requeue(Which(reason="late", before=1100)) == 50
    assert len(await published(bus, letters.source)) == 50
    assert len(await letters.letters()) == 450
    assert await letters.requeue(Which(reason="nothing like it")) == 0


async def test_requeue_goes_over_what_is_there_once(bus: Bus, letters: DeadLetters) -> None:
    """A consumer that puts everything aside again at once does not keep it going for ever."""
    await letters.put([letter(letters.source, i) for i in range(3)])
    publish = bus.publish
    again = itertools.count(100)

    async def refused_at_once(topic: str, records: list[Record], *, partition: int | None = None) -> None:
        await publish(topic, records, partition=partition)
        if topic == letters.source:
            await letters.put([letter(letters.source, next(again)) for _ in records])

    bus.publish = refused_at_once  # type: ignore[method-assign, assignment]
    assert await letters.requeue(Which()) == 3
    assert len(await letters.letters()) == 3


async def test_purge(letters: DeadLetters) -> None:
    await letters.put([letter(letters.source, i, reason=("late", "bad")[i % 2]) for i in range(20)])
    ids = [b.id for b in await letters.letters()]
    assert await letters.purge(Which(ids=ids[:2])) == 2
    assert await letters.purge(Which(reason="late")) == 9
    assert await letters.purge(Which(before=1010)) == 4
    assert await letters.purge(Which()) == 5
    assert await letters.purge(Which()) == 0


async def test_ids_that_are_none(letters: DeadLetters) -> None:
    await letters.put([letter(letters.source, 1)])
    (only,) = await letters.letters()
    await letters.purge(Which(ids=[only.id]))
    for id in (only.id, "x", "", "-"):
        for call in (
            letters.show(id),
            letters.requeue(Which(ids=[id])),
            letters.purge(Which(ids=[id])),
        ):
            with pytest.raises(UsageError, match="dlq list"):
                await call


async def test_what_is_no_dead_letter_can_be_seen_and_purged_only(bus: Bus, letters: DeadLetters) -> None:
    await letters.put([])
    await bus.publish(letters.topic, [Record("K", b"\xc1 something else", "lane")])
    (odd,) = await letters.letters()
    assert odd.letter.reason.startswith("not a dead letter")
    assert odd.letter.value == b"\xc1 something else"
    with pytest.raises(UsageError, match="purge it instead"):
        await letters.requeue(Which())
    assert await letters.purge(Which(ids=[odd.id])) == 1


async def test_a_letter_from_a_topic_that_is_gone(letters: DeadLetters) -> None:
    await letters.put([letter("no-such-topic", 1)])
    with pytest.raises(UsageError, match="no-such-topic, which does not exist"):
        await letters.requeue(Which())
    assert len(await letters.letters()) == 1
