"""Calls that are tried again: which, how often, and that nothing is held on to afterwards."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from market_data_core.errors import BusUnavailable, Fenced, MdpError, StoreUnavailable
from market_data_pipeline.consumers.retrying import Retrying


class Server:
    """Fails as it is told to, one answer after another, and then works."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.calls = 0

    async def answer(self) -> int:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return self.calls


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Without the garbage collector: what refers to itself stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def test_what_works_is_called_once_and_nothing_is_reported() -> None:
    told: list[tuple[str, BaseException]] = []
    assert await Retrying(lambda *error: told.append(error))("bus", Server().answer) == 1
    assert told == []


async def test_every_error_that_is_tried_again_after_is_reported_once() -> None:
    errors = [BusUnavailable("one"), BusUnavailable("two"), StoreUnavailable("three")]
    told: list[tuple[str, BaseException]] = []
    server = Server(*errors)
    assert await Retrying(lambda *error: told.append(error))("bus", server.answer) == 4
    assert told == [("bus", error) for error in errors]


@pytest.mark.parametrize("error", [Fenced("newer"), MdpError("for good"), ValueError("ours")])
async def test_an_error_that_nothing_cures_is_raised_at_once(error: Exception) -> None:
    told: list[tuple[str, BaseException]] = []
    for server in (Server(error), Server(BusUnavailable("first"), error)):
        before, told[:] = len(server.failures), []
        with pytest.raises(type(error), match=str(error)):
            await Retrying(lambda *error: told.append(error))("bus", server.answer)
        assert (server.calls, len(told)) == (before, before - 1)


@pytest.mark.parametrize("tries", [1, 2])
async def test_what_nobody_wants_any_more_is_not_tried_again(tries: int) -> None:
    server = Server(*(BusUnavailable(str(i)) for i in range(5)))
    with pytest.raises(BusUnavailable, match=str(tries - 1)):
        await Retrying(lambda *_: None)("bus", server.answer, as_long_as=lambda: server.calls < tries)
    assert server.calls == tries


@pytest.mark.parametrize("failures", [0, 1, 2])
@pytest.mark.usefixtures("uncollected")
async def test_what_was_called_is_let_go_of_when_it_worked(failures: int) -> None:
    assert not await _held(*(BusUnavailable(str(i)) for i in range(failures)))


@pytest.mark.parametrize("failures", [0, 1])
@pytest.mark.usefixtures("uncollected")
async def test_what_was_called_is_let_go_of_when_it_was_refused(failures: int) -> None:
    assert not await _held(*(BusUnavailable(str(i)) for i in range(failures)), Fenced("newer"))


async def _held(*failures: Exception) -> bool:
    """Whether a server that was called stays when nobody refers to it but what retries."""
    retrying, watched = Retrying(lambda *_: None), []

    async def use() -> None:
        server = Server(*failures)
        watched.append(weakref.ref(server))
        await retrying("bus", server.answer, as_long_as=lambda: server.calls < 9)

    try:
        await use()
    except Fenced as error:
        error.with_traceback(None)  # which refers to every frame that it came through
    return watched[0]() is not None
