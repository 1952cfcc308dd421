"""Entries of a Redis stream: their ids as offsets, their fields as records.

An entry of ours has the fields ``v`` (value), ``k`` (key) and, for a lane of its own, ``l``; of the few that are
traced also ``traceparent``. Entries of other programs are taken too: with those in any order, or, when there is no
``v`` or there are fields besides, as one JSON object of all the fields, so that
``XADD mdp.events * ver 1 provider x symbol SPY ...`` is an event.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, TypeAlias, overload

from market_data_pipeline.streaming.bus import TRACEPARENT, Offset, Record, StoredRecord, Trace
from market_data_pipeline.streaming.redis_wire import pack

Entry: TypeAlias = Sequence[Any]
"""As hiredis gives it: ``[id, [name, value, name, value, ...]]``."""

APPEND_RECORDS: Final = 2000
APPEND_BYTES: Final = 4 << 20
"""Bounds of what is added by one command: the server does nothing else meanwhile."""
_APPEND: Final = """
local i = 1
while i < #ARGV do
    local last = i + ARGV[i]
    local reply = redis.pcall('XADD', KEYS[1], '*', unpack(ARGV, i + 1, last))
    if reply.err then
        local said = string.match(reply.err, '^@user_script: %d+: %-?(.-)%s*$') or reply.err
        if string.find(said, "can't run this command", 1, true) then
            said = "NOPERM this user has no permissions to run the 'xadd' command"
        end
        return redis.error_reply(said)
    end
    i = last + 1
end
return redis.status_reply('OK')
"""
"""Its arguments: of each entry the number of its names and values, and these. Within a script Redis 6.2 words its
refusals in its own way, with the place in the script before them."""
_OURS: Final = frozenset({b"v", b"k", b"l", TRACEPARENT.encode()})
_NUMBERS: Final = frozenset({"ver", "seq", "o", "h", "l", "c", "v", "value", "score"})
_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_SEQ_BITS: Final = 64
_SEQ_MASK: Final = (1 << _SEQ_BITS) - 1


def parse_id(text: bytes | str) -> Offset:
    """The offset of an entry id such as ``1763-0``.

    Raises:
        ValueError: the text is not an id.
    """
    ms, dash, seq = text.partition(b"-" if isinstance(text, bytes) else "-")  # type: ignore[arg-type]
    if not (dash and ms.isdigit() and seq.isdigit()):
        raise ValueError(f"{text!r} is not the id of a Redis stream entry, such as 1763000000000-0")
    return int(ms) << _SEQ_BITS | int(seq)


def format_id(offset: Offset) -> str:
    """The entry id of an offset."""
    return f"{offset >> _SEQ_BITS}-{offset & _SEQ_MASK}"


class Offsets(Sequence[int]):
    """Offsets of entries, made from their ids when somebody asks: most are never asked for."""

    __slots__ = ("ids",)

    def __init__(self, ids: Sequence[bytes]) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Offsets: ...
    def __getitem__(self, index: int | slice) -> int | Offsets:
        if isinstance(index, slice):
            return Offsets(self.ids[index])
        ms, _, seq = self.ids[index].partition(b"-")
        return int(ms) << _SEQ_BITS | int(seq)

    def __repr__(self) -> str:
        return f"Offsets({len(self)} from {self.ids[0]!r} to {self.ids[-1]!r})" if self.ids else "Offsets()"


def additions(stream: str, records: Iterable[Record]) -> Iterator[bytes]:
    """Commands that add ``records`` to ``stream``, in bounded pieces; each adds all of its own or none.

    One command, and not an XADD each: a server takes 16 KiB of commands at a time, and syncs its file after each of
    them that has written something.
    """
    head = ("EVAL", _APPEND, 1, stream)
    entries: list[str | bytes | int] = []
    count = size = 0
    for r in records:
        if r.lane is None and r.traceparent is None:
            entries += (4, "v", r.value, "k", r.key)
        else:
            lane = () if r.lane is None else ("l", r.lane)
            trace = () if r.traceparent is None else (TRACEPARENT, r.traceparent)
            entries += (4 + len(lane) + len(trace), "v", r.value, "k", r.key, *lane, *trace)
        count += 1
        size += len(r.value)
        if count == APPEND_RECORDS or size >= APPEND_BYTES:
            yield pack(*head, *entries)
            entries, count, size = [], 0, 0
    if entries:
        yield pack(*head, *entries)


def columns(
    entries: Sequence[Entry],
) -> tuple[list[bytes], list[bytes], list[str | None] | None, list[Trace]]:
    """Ids, values, lanes and traces of ``entries``; lanes are None when no entry names one."""
    ids = [entry[0] for entry in entries]
    fields = [entry[1] for entry in entries]
    try:
        plain = set(map(len, fields)) == {4}
        plain = plain and {f[0] for f in fields} == {b"v"} and {f[2] for f in fields} == {b"k"}
    except TypeError:  # a tombstone: an entry deleted while it was pending has no fields
        plain = False
    if plain:
        return ids, [f[1] for f in fields], None, []
    values: list[bytes] = []
    lanes: list[str | None] = []
    traces: list[Trace] = []
    for place, f in enumerate(fields):
        _, value, lane, trace = _record(f or ())
        values.append(value)
        lanes.append(lane)
        if trace is not None:
            traces.append((place, trace))
    return ids, values, lanes if any(lane is not None for lane in lanes) else None, traces


def stored(entries: Iterable[Entry]) -> list[StoredRecord]:
    """``entries`` of a range read."""
    out = []
    for name, fields in entries:
        offset = parse_id(name)
        key, value, lane, trace = _record(fields)
        out.append(StoredRecord(offset, key, value, lane, offset >> _SEQ_BITS, trace))
    return out


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _record(fields: Sequence[bytes]) -> tuple[str, bytes, str | None, str | None]:
    """Key, value, lane and traceparent."""
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    if b"v" in named and named.keys() <= _OURS:
        lane, trace = (
            None if raw is None else _text(raw) for raw in (named.get(b"l"), named.get(TRACEPARENT.encode()))
        )
        return _text(named.get(b"k", b"")), named[b"v"], lane, trace
    texts = {_text(name): _text(value) for name, value in named.items()}
    return texts.get("symbol", texts.get("k", "")), _json_object(texts), None, None


def _json_object(fields: dict[str, str]) -> bytes:
    """One JSON object; a number stays as it is written where the contracts have a number."""
    parts = []
    for name, text in fields.items():
        number = name in _NUMBERS and _NUMBER.fullmatch(text) is not None
        parts.append(f"{json.dumps(name)}: {text if number else json.dumps(text)}")
    return ("{" + ", ".join(parts) + "}").encode()
