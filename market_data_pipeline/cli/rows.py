"""Records of any topic as rows for people and JSON: what ``tail`` and ``dlq show`` print."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from market_data_core.codecs import (
    EventDecoder,
    decode_bars,
    decode_dead_letter,
    format_time,
)
from market_data_core.errors import PoisonRecord
from market_data_core.signal_codec import decode_signal


class RowReader:
    """Turns records into dictionaries, whatever they hold."""

    def __init__(self) -> None:
        self._events = EventDecoder()

    def rows(self, value: bytes, lane: str | None) -> Iterator[dict[str, Any]]:
        """One dictionary an event, bar, signal or dead letter of ``value``."""
        decoded = self._events.decode([value], [lane])
        lanes = decoded.lanes or [lane]
        if not decoded.poison:
            for event in decoded.batch.events():
                prices = {name: getattr(event, name) for name in "ohlcv"}
                yield {
                    "type": event.kind,
                    "provider": event.provider,
                    "symbol": event.symbol,
                    "ts": format_time(event.src_ts),
                    "interval": event.interval,
                    **prices,
                    "seq": event.seq,
                    "lane": lanes[0],
                }
            for _, name in decoded.ends:
                yield {"type": "end", "lane": name}
            return
        reason = decoded.poison[0][1]
        for read in (_bars, _signal, _dead_letter):
            try:
                yield from read(value)
            except PoisonRecord:
                continue
            return
        yield {"type": "unknown", "reason": reason, "bytes": len(value), "value": preview(value)}


def _bars(value: bytes) -> list[dict[str, Any]]:
    out = []
    for bar in decode_bars(value).bars():
        row = {"type": "bar", "provider": bar.provider, "symbol": bar.symbol, "ts": format_time(bar.ts)}
        names = ("interval", "open", "high", "low", "close", "volume", "vwap", "n_events", "revision")
        out.append(row | {name: getattr(bar, name) for name in names})
    return out


def _signal(value: bytes) -> list[dict[str, Any]]:
    signal = decode_signal(value)
    row = {
        "type": "signal",
        "provider": signal.provider,
        "symbol": signal.symbol,
        "ts": format_time(signal.ts),
    }
    return [row | {name: getattr(signal, name) for name in ("name", "value", "score", "meta")}]


def _dead_letter(value: bytes) -> list[dict[str, Any]]:
    letter = decode_dead_letter(value)
    return [
        {
            "type": "dead",
            "reason": letter.reason,
            "topic": letter.topic,
            "partition": letter.partition,
            "offset": letter.offset,
            "at": format_time(letter.at),
            "bytes": len(letter.value),
            "value": preview(letter.value),
        }
    ]


def preview(value: bytes, length: int = 120) -> str:
    """The beginning of a value as text that can be printed."""
    text = value[: length * 2].decode("utf-8", "backslashreplace")
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return shown if len(shown) <= length and len(value) <= length * 2 else shown[: length - 1] + "…"
