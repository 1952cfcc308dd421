"""Callers who find a connection busy wait, and go together when it is free: one way there and back for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from market_data_core.ending import end

MOST_BYTES: Final = 4 << 20
"""Of what several callers ask for at once; one alone may ask for more."""

Q = TypeVar("Q")
A = TypeVar("A")


@dataclass(slots=True, eq=False)
class Asked(Generic[Q, A]):
    """What one caller asks for, its ``size`` in bytes, and what comes of it."""

    what: Q
    size: int
    _answer: asyncio.Future[A]

    @property
    def open(self) -> bool:
        """Whether the caller still waits."""
        return not self._answer.done()

    def answer(self, found: A) -> None:
        if self.open:
            self._answer.set_result(found)

    def fail(self, error: BaseException) -> None:
        if self.open:
            self._answer.set_exception(error)


class Together(Generic[Q, A]):
    """``do`` answers all that are given to it, in the order of asking, or raises, which those not answered are told.
    ``closed`` is what they are told who wait when :meth:`close` is called. A caller that is cancelled waits no more;
    what it asked for may be done.
    """

    def __init__(
        self, do: Callable[[Sequence[Asked[Q, A]]], Awaitable[None]], closed: Callable[[], Exception]
    ) -> None:
        self._do = do
        self._closed = closed
        self._waiting: list[Asked[Q, A]] = []
        self._going: asyncio.Task[None] | None = None

    async def ask(self, what: Q, size: int) -> A:
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append(Asked(what, size, answer))
        if self._going is None:
            self._going = asyncio.create_task(self._go())
        return await answer

    async def close(self) -> None:
        """Fail whoever waits, also for what is under way."""
        _fail(self._waiting, self._closed())
        if self._going is not None:
            await end(self._going)

    async def _go(self) -> None:
        """Until nobody waits."""
        some: Sequence[Asked[Q, A]] = ()
        try:
            while some := self._next():
                try:
                    await self._do(some)
                except Exception as error:
                    _fail(some, error)
        finally:
            self._going = None
            _fail((*some, *self._waiting), self._closed())  # there are any only when this was cancelled

    def _next(self) -> list[Asked[Q, A]]:
        """Those who go next; not those who wait no more."""
        self._waiting = [asked for asked in self._waiting if asked.open]
        size = 0
        for count, asked in enumerate(self._waiting):
            size += asked.size
            if size > MOST_BYTES and count:
                break
        else:
            count = len(self._waiting)
        some, self._waiting = self._waiting[:count], self._waiting[count:]
        return some


def _fail(some: Iterable[Asked[Q, A]], error: Exception) -> None:
    for asked in some:
        asked.fail(error)
