"""docs/demo.svg: a command in a terminal, recorded as it runs: ``python -m docs.recording --out docs/demo.svg``.

The command runs in a pseudo-terminal. What it writes goes to a terminal emulator, whose screen is looked at some times
a second. :mod:`docs.film` makes a picture of the screens.
"""

from __future__ import annotations

import argparse
import fcntl
import getpass
import os
import pty
import re
import select
import shlex
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import pyte

from docs import film
from docs.film import Frame, Row, Run, Size

_QUIET_S: Final = 0.04
"""A screen is looked at after so long without output, so that none is seen half drawn."""
_DRAWING_S: Final = 0.5
"""Output that goes on longer is looked at all the same."""
_DIM: Final = 2
_BRIGHT_BLACK: Final = 90


class _Screen(pyte.Screen):
    """A screen that knows dim, which the library passes over: as grey."""

    def select_graphic_rendition(self, *attributes: int, **more: Any) -> None:
        if attributes and attributes[0] == _DIM:
            attributes = (_BRIGHT_BLACK, *attributes[1:])
        super().select_graphic_rendition(*attributes, **more)


@dataclass(frozen=True, slots=True)
class Recording:
    """What a command showed, and the code it exited with."""

    frames: list[Frame]
    code: int


def record(
    command: Sequence[str],
    size: Size,
    *,
    shown_as: str,
    rate: float = 4.0,
    longest: float = 1.0,
    stays: float = 6.0,
) -> Recording:
    """Run ``command`` and look at its terminal ``rate`` times a second.

    ``shown_as``: what stands after the prompt above its output. Equal screens are one frame; a frame stays for at most
    ``longest`` seconds, however long the command took, and the last for ``stays``.

    Raises:
        OSError: there is no such command.
    """
    screen = _Screen(size.columns, size.lines)
    stream = pyte.ByteStream(screen)
    stream.feed(f"\x1b[1;32m$\x1b[0m \x1b[1m{shown_as}\x1b[0m\r\n".encode())
    seen: list[tuple[float, tuple[Row, ...]]] = [(time.monotonic(), _rows(screen))]
    process, terminal = _start(command, size)
    due = time.monotonic() + 1 / rate
    ended = False
    while not ended:
        ended = _read_until(terminal, stream, due)
        now = time.monotonic()
        rows = _rows(screen)
        if rows != seen[-1][1]:
            seen.append((now, rows))
        due = max(due + 1 / rate, now)
    os.close(terminal)
    ends = [at for at, _ in seen[1:]]
    seconds = [min(end - at, longest) for (at, _), end in zip(seen, ends, strict=False)]
    frames = [Frame(round(s, 3), rows) for s, (_, rows) in zip([*seconds, stays], seen, strict=True)]
    return Recording(frames, process.wait())


def _start(command: Sequence[str], size: Size) -> tuple[subprocess.Popen[bytes], int]:
    """The process and the end of its terminal that is ours."""
    terminal, inner = pty.openpty()
    try:
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", size.lines, size.columns, 0, 0))
        known = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "CI")}
        environment = {**known, "TERM": "xterm-256color"}
        process = subprocess.Popen(
            command, stdin=inner, stdout=inner, stderr=inner, env=environment, start_new_session=True
        )
    except BaseException:
        os.close(terminal)
        raise
    finally:
        os.close(inner)
    return process, terminal


def _read_until(terminal: int, stream: pyte.ByteStream, due: float) -> bool:
    """Feed the screen until ``due`` and until output rests; whether the command closed its terminal."""
    while True:
        now = time.monotonic()
        wait = max(due - now, _QUIET_S if now < due + _DRAWING_S else 0.0)
        if not select.select([terminal], [], [], wait)[0]:
            return False
        try:
            output = os.read(terminal, 65_536)
        except OSError:
            # Linux says so when nobody holds the other end any more.
            return True
        if not output:
            return True
        stream.feed(output)


def _rows(screen: pyte.Screen) -> tuple[Row, ...]:
    """The lines of the screen as stretches of one style, without the blanks between them."""
    out = []
    for y in range(screen.lines):
        cells = [(x, screen.buffer[y][x]) for x in range(screen.columns)]
        runs: list[Run] = []
        for style, group in groupby(cells, key=lambda c: (c[1].fg, c[1].bold)):
            stretch = list(group)
            text = "".join(cell.data for _, cell in stretch)
            # One blank is part of the text, more end a stretch, so that columns stand where they stand.
            words = re.finditer(r"\S+(?: \S+)*", text)
            runs.extend(Run(stretch[0][0] + word.start(), word.group(), *style) for word in words)
        out.append(tuple(runs))
    return tuple(out)


def tells_on(text: str) -> list[str]:
    """What of this machine is in the text: the home folder, the host's name, the user's."""
    secret = (str(Path.home()), str(Path.cwd()), socket.gethostname(), getpass.getuser())
    return [s for s in secret if len(s) > 1 and re.search(rf"(?<!\w){re.escape(s)}(?!\w)", text)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.recording", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the SVG file to write")
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--lines", type=int, default=26)
    parser.add_argument("--rate", type=float, default=2.0, help="looks at the screen a second")
    parser.add_argument("--shown-as", default="make demo", help="what stands after the prompt")
    parser.add_argument("command", nargs="*", default=["mdp", "demo", "--duration", "20s"])
    given = parser.parse_args()
    size = Size(given.columns, given.lines)
    recording = record(given.command, size, shown_as=given.shown_as, rate=given.rate)
    if recording.code != 0:
        sys.exit(f"{shlex.join(given.command)} exited with {recording.code}; nothing is written")
    picture = film.svg(recording.frames, size, title=f"{given.shown_as} in a terminal")
    if found := tells_on(picture):
        sys.exit(f"the picture shows {', '.join(found)}; nothing is written")
    given.out.write_text(picture, "utf-8")
    print(f"{given.out}: {len(recording.frames)} frames, {len(picture.encode()):,} bytes")


if __name__ == "__main__":
    main()
