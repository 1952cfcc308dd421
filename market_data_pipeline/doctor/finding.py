"""One thing that was looked at, and what is to be said of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from market_data_core.errors import MdpError

State = Literal["ok", "warn", "fail"]
SKEW_NS: Final = 250_000_000
"""How far a server's clock may be off before it is worth a word."""


@dataclass(frozen=True, slots=True)
class Finding:
    """``warn``: it works, and will not for long or could be better; ``fail``: it does not, or loses data. ``fix`` is
    empty when nothing is to be done."""

    check: str
    state: State
    found: str
    fix: str = ""


def failure(check: str, error: MdpError, fix: str = "") -> Finding:
    """An error that mdp can explain; without ``fix``, its message names it at its end."""
    text = str(error)
    if fix:
        return Finding(check, "fail", text, fix)
    what, _, told = text.rpartition("; " if "; " in text else ": ")
    return Finding(check, "fail", what or told, told if what else "see the message")


def skew(check: str, offset_ns: int, trip_ns: int) -> Finding:
    """A server's clock, ``offset_ns`` ahead of ours to within half of ``trip_ns``."""
    found = f"{offset_ns / 1e6:+.0f} ms, to within {trip_ns / 2e6:.0f} ms"
    if abs(offset_ns) - trip_ns // 2 > SKEW_NS:
        fix = "run NTP on both machines: idle windows are closed by this machine's clock"
        return Finding(check, "warn", found, fix)
    return Finding(check, "ok", found)
