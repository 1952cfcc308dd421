"""What a group keeps of a partition in Kafka: the offset it is done with, and beside it a small text.

Kafka knows how far a group is done, and not how far it was handed records; nor has it a place for what a new owner
would still read. Both lie in the text that goes with the committed offset, so that lag and pending mean the same as on
other buses, for ``mdp`` and for whoever reads the text with Kafka's own tools::

    {"handed": 1234, "keep": 1100}
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from market_data_pipeline.streaming.bus import Offset


class _Text(msgspec.Struct, omit_defaults=True):
    handed: int = 0
    keep: int | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """``done``: the first offset that is not acknowledged. ``handed``: the first that was not delivered. ``keep``: what
    lies from there on is not trimmed."""

    done: Offset
    handed: Offset
    keep: Offset | None = None

    @property
    def needed(self) -> Offset:
        """The first offset that the group may still want to read."""
        return self.done if self.keep is None else min(self.done, self.keep)

    def commit(self) -> tuple[Offset, str]:
        """What is committed: the offset and the text."""
        return self.done, msgspec.json.encode(_Text(self.handed, self.keep)).decode()

    @classmethod
    def of(cls, committed: tuple[Offset, str]) -> Mark:
        """From what was committed; by another program with any text or none."""
        done, text = committed
        try:
            told = msgspec.json.decode(text, type=_Text)
        except msgspec.DecodeError:
            told = _Text()
        return cls(done, max(done, told.handed), told.keep)
