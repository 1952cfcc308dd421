"""The dead letters of a topic: records put aside with the reason, in the topic ``<topic>.dlq``.

A crash between writing a dead letter and remembering that it was written makes a second copy. So letters are
told apart by where they come from and what they hold, and copies are shown, requeued and purged as one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from market_data_core.codecs import DeadLetter, EventDecoder, decode_dead_letter, encode_dead_letter
from market_data_core.errors import PoisonRecord, UsageError
from market_data_core.partitioner import partition_of
from market_data_pipeline.streaming.bus import Bus, Offset, Record, StoredRecord

SUFFIX: Final = ".dlq"
_PAGE: Final = 200


@dataclass(frozen=True, slots=True)
class Buried:
    """A dead letter in its topic. ``id`` is its offset there, as the bus writes it."""

    id: str
    offset: Offset
    letter: DeadLetter

    @property
    def identity(self) -> bytes:
        """Equal for copies of one letter."""
        letter = self.letter
        place = f"{letter.topic}\0{letter.partition}\0{letter.offset}\0{letter.lane}\0".encode()
        return blake2b(place + letter.value, digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Which:
    """Which letters are meant: all, or those that fit every given condition.

    ``ids``: as listed. ``reason``: what the reason begins with. ``before``: put aside earlier, in ns UTC.
    """

    ids: Collection[str] | None = None
    reason: str | None = None
    before: int | None = None

    def fits(self, buried: Buried) -> bool:
        return (
            (self.ids is None or buried.id in self.ids)
            and (self.reason is None or buried.letter.reason.startswith(self.reason))
            and (self.before is None or buried.letter.at < self.before)
        )


class DeadLetters:
    """The dead letters of ``topic``."""

    def __init__(self, bus: Bus, topic: str) -> None:
        self._bus = bus
        self.source = topic
        self.topic = topic + SUFFIX

    async def put(self, letters: Sequence[DeadLetter]) -> None:
        """Put records aside; on return they are durable."""
        await self._bus.ensure_topic(self.topic, 1)
        records = [Record(letter.key, encode_dead_letter(letter)) for letter in letters]
        await self._bus.publish(self.topic, records, partition=0)

    async def letters(self, which: Which | None = None, *, limit: int | None = None) -> list[Buried]:
        """Letters, the oldest first, each once; ``limit`` of them at most."""
        which = which or Which()
        seen: set[bytes] = set()
        out: list[Buried] = []
        async for page in self._pages():
            for buried in page:
                if limit is not None and len(out) >= limit:
                    return out
                if which.fits(buried) and buried.identity not in seen:
                    seen.add(buried.identity)
                    out.append(buried)
        return out

    async def reasons(self) -> dict[str, int]:
        """How many letters there are for each reason, the most frequent first."""
        seen: set[bytes] = set()
        counts: dict[str, int] = {}
        async for page in self._pages():
            for buried in page:
                if buried.identity not in seen:
                    seen.add(buried.identity)
                    counts[buried.letter.reason] = counts.get(buried.letter.reason, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    async def show(self, id: str) -> Buried:
        """One letter, whole.

        Raises:
            UsageError: there is none of that id.
        """
        offset = self._offset(id)
        found = await self._read(offset, 1)
        if not found or found[0].offset != offset:
            raise UsageError(
                f"there is no dead letter {id} in {self.topic}: list them with mdp stream dlq list"
            )
        return self._buried(found[0])

    async def requeue(self, which: Which, *, value: bytes | None = None) -> int:
        """Publish letters to the topics they come from, under their keys and lanes, and remove them here.

        ``value`` replaces the original bytes; it needs exactly one id. A crash midway leaves letters here that
        were published already: whoever reads them drops the second copy by its event id.

        Returns:
            How many were published.

        Raises:
            UsageError: there is no such letter, or it does not say where it comes from.
        """
        if value is not None and (which.ids is None or len(which.ids) != 1):
            raise UsageError("a replacement is for one dead letter: give exactly one id with it")
        await self._exist(which)
        published: set[bytes] = set()
        async for page in self._pages():
            # A copy goes with the letter it is a copy of, whichever of them was named.
            chosen = [b for b in page if which.fits(b) or b.identity in published]
            new = {b.identity: b for b in chosen if b.identity not in published}
            await self._publish(list(new.values()), value)
            published |= new.keys()
            await self._remove(chosen)
        await self._remove_copies(published)
        return len(published)

    async def purge(self, which: Which) -> int:
        """Remove letters for good.

        Returns:
            How many there were, copies not counted.

        Raises:
            UsageError: there is no letter of one of the ids.
        """
        await self._exist(which)
        purged: set[bytes] = set()
        async for page in self._pages():
            chosen = [b for b in page if which.fits(b) or b.identity in purged]
            purged |= {b.identity for b in chosen}
            await self._remove(chosen)
        await self._remove_copies(purged)
        return len(purged)

    async def move(self, bus: Bus) -> int:
        """Take all letters to the topic of the same name on ``bus``; return how many there were, copies not counted.

        They are removed here after they are there. A crash in between leaves copies, which do not come twice when this
        is done again: a letter is known by what it holds.
        """
        there = {b.identity for b in await DeadLetters(bus, self.source).letters()}
        moved: set[bytes] = set()
        async for page in self._pages():
            await bus.ensure_topic(self.topic, 1)
            new = {b.identity: b.letter for b in page if b.identity not in there | moved}
            records = [Record(letter.key, encode_dead_letter(letter)) for letter in new.values()]
            await bus.publish(self.topic, records, partition=0)
            moved |= {b.identity for b in page}
            await self._remove(page)
        return len(moved)

    async def _publish(self, letters: Sequence[Buried], value: bytes | None) -> None:
        batches: dict[tuple[str, int | None], list[Record]] = {}
        for buried in letters:
            letter = buried.letter
            if letter.topic in ("", self.topic):
                raise UsageError(
                    f"dead letter {buried.id} does not say where it comes from ({letter.reason}): purge it instead"
                )
            count = await self._bus.partitions(letter.topic)
            if not count:
                raise UsageError(
                    f"dead letter {buried.id} comes from topic {letter.topic}, which does not exist: create it first"
                )
            record = Record(letter.key, letter.value if value is None else value, letter.lane)
            partition = _partition_of(record.value, count)
            if partition is None and 0 <= letter.partition < count:
                partition = letter.partition
            batches.setdefault((letter.topic, partition), []).append(record)
        for (topic, partition), records in batches.items():
            await self._bus.publish(topic, records, partition=partition)

    async def _exist(self, which: Which) -> None:
        for id in which.ids or ():
            await self.show(id)

    async def _remove(self, buried: Sequence[Buried]) -> None:
        if buried:
            await self._bus.delete(self.topic, 0, [b.offset for b in buried])

    async def _remove_copies(self, identities: Collection[bytes]) -> None:
        """Those that lie before the one that was named."""
        if identities:
            async for page in self._pages():
                await self._remove([b for b in page if b.identity in identities])

    async def _pages(self) -> AsyncIterator[list[Buried]]:
        """Everything that is there now: what is requeued may come back before this has ended."""
        if not await self._bus.partitions(self.topic):
            return
        end = await self._bus.end_offset(self.topic, 0)
        start: Offset | None = None
        while end is not None and (start is None or start <= end):
            records = await self._read(start, _PAGE)
            if not records:
                return
            start = records[-1].offset + 1
            yield [self._buried(record) for record in records if record.offset <= end]

    async def _read(self, start: Offset | None, limit: int) -> list[StoredRecord]:
        if not await self._bus.partitions(self.topic):
            return []
        return await self._bus.read(self.topic, 0, start, limit)

    def _buried(self, record: StoredRecord) -> Buried:
        id = self._bus.format_offset(record.offset)
        try:
            letter = decode_dead_letter(record.value)
        except PoisonRecord as error:
            # Something else was written there: it can be seen and purged.
            at = record.timestamp_ms * 1_000_000
            letter = DeadLetter(str(error), self.topic, 0, id, record.key, record.lane, record.value, at)
        return Buried(id, record.offset, letter)

    def _offset(self, id: str) -> Offset:
        try:
            return self._bus.parse_offset(id)
        except ValueError as error:
            raise UsageError(f"{error}: list the ids of dead letters with mdp stream dlq list") from None


def _partition_of(value: bytes, partitions: int) -> int | None:
    """Where the events of ``value`` belong now, which may not be where they were: their topic may have got other
    partitions since, and one symbol in two of them would be two bars of a window. None for what has no events."""
    found = {partition_of(s.symbol, partitions) for s in EventDecoder().decode([value]).batch.series}
    return found.pop() if len(found) == 1 else None
