"""Callers who share a way: who goes when, and what each is told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.streaming import together
from market_data_pipeline.streaming.together import Asked, Together


class Closed(Exception): ...


class Way:
    """Doubles numbers, when it is let; a negative one cannot be doubled, and a 13 ends the trip."""

    def __init__(self) -> None:
        self.trips: list[list[int]] = []
        self.open = asyncio.Event()
        self.together: Together[int, int] = Together(self._go, Closed)

    async def _go(self, some: Sequence[Asked[int, int]]) -> None:
        self.trips.append([asked.what for asked in some])
        await self.open.wait()
        for asked in some:
            if asked.what == 13:
                raise ZeroDivisionError
            if asked.what < 0:
                asked.fail(ValueError(asked.what))
            asked.answer(2 * asked.what)

    async def asked(self, *numbers: int, size: int = 1) -> list[asyncio.Task[int]]:
        tasks = [asyncio.create_task(self.together.ask(number, size)) for number in numbers]
        await asyncio.sleep(0)
        return tasks


async def outcomes(tasks: Sequence[asyncio.Task[int]]) -> list[object]:
    async with asyncio.timeout(5):
        found = await asyncio.gather(*tasks, return_exceptions=True)
    return [type(one) if isinstance(one, BaseException) else one for one in found]


async def test_who_comes_while_others_are_under_way_goes_together_next() -> None:
    way = Way()
    tasks = await way.asked(1)
    await asyncio.sleep(0)
    tasks += await way.asked(2, -3, 4)
    way.open.set()
    assert await outcomes(tasks) == [2, 4, ValueError, 8]
    assert way.trips == [[1], [2, -3, 4]]
    assert await way.together.ask(5, 1) == 10  # and it can be used again


async def test_what_ends_a_trip_is_told_to_those_who_have_no_answer_yet() -> None:
    way = Way()
    tasks = await way.asked(1, 13, 2)
    way.open.set()
    await asyncio.sleep(0)
    tasks += await way.asked(3)
    assert await outcomes(tasks) == [2, ZeroDivisionError, ZeroDivisionError, 6]


async def test_one_who_gives_up_is_left_behind_and_costs_the_others_nothing() -> None:
    way = Way()
    tasks = await way.asked(1)
    await asyncio.sleep(0)
    tasks += await way.asked(2, 3)
    tasks[0].cancel()  # under way
    tasks[1].cancel()  # still waiting
    await asyncio.sleep(0)
    way.open.set()
    assert await outcomes(tasks) == [asyncio.CancelledError, asyncio.CancelledError, 6]
    assert way.trips == [[1], [3]]


async def test_closing_fails_those_under_way_and_those_who_wait() -> None:
    way = Way()
    tasks = await way.asked(1)
    await asyncio.sleep(0)
    tasks += await way.asked(2)
    async with asyncio.timeout(5):
        await way.together.close()
    assert await outcomes(tasks) == [Closed, Closed]
    await way.together.close()


@given(st.lists(st.integers(1, 120), min_size=1, max_size=30))
def test_a_trip_is_no_larger_than_allowed_unless_one_alone_is(sizes: list[int]) -> None:
    async def run() -> None:
        way = Way()
        tasks = [
            asyncio.create_task(way.together.ask(number, size)) for number, size in enumerate(sizes, 100)
        ]
        way.open.set()
        assert await outcomes(tasks) == [2 * number for number in range(100, 100 + len(sizes))]
        assert [number for trip in way.trips for number in trip] == list(range(100, 100 + len(sizes)))
        for trip in way.trips:
            assert len(trip) == 1 or sum(sizes[number - 100] for number in trip) <= 100

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(together, "MOST_BYTES", 100)
        asyncio.run(run())
