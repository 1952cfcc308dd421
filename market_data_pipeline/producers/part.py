"""A piece of a file that can be read by itself, so that many workers share one file."""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """``[start, stop)`` in the measure of the file: bytes of whole lines of a CSV, decompressed; row groups of Parquet.

    ``row`` is the number that the file counts its first row by, from 1.
    """

    start: int
    stop: int
    row: int

    def joined(self, other: Part) -> Part:
        """The smallest part that covers both."""
        first = min(self, other)
        return Part(first.start, max(self.stop, other.stop), first.row)
