"""Screens of a terminal as an SVG that moves without a script, as a page on the web shows it in an ``img``.

Style sheet animation shows one frame after the other; where nothing moves, the last one stands. A line that several
frames have is written once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT, _FONT = 8.4, 19, 14
_BASE: Final = 14
_MARGIN, _BAR = 16, 36
_COLOURS: Final = {
    "default": "#c9d1d9",
    "black": "#484f58",
    "red": "#ff7b72",
    "green": "#56d364",
    "brown": "#e3b341",
    "blue": "#79c0ff",
    "magenta": "#d2a8ff",
    "cyan": "#56d4dd",
    "white": "#f0f6fc",
    "brightblack": "#7d8590",
}
"""By the emulator's names, in which yellow is brown."""
_CLASSES: Final = {name: f"c{place}" for place, name in enumerate(_COLOURS)}


@dataclass(frozen=True, slots=True)
class Size:
    """Of a terminal, in characters."""

    columns: int
    lines: int


@dataclass(frozen=True, slots=True)
class Run:
    """Characters of one style, from a column on. ``colour``: a name, or six digits of hexadecimal."""

    column: int
    text: str
    colour: str = "default"
    bold: bool = False


Row = tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """A screen, and for how many seconds it stays."""

    seconds: float
    rows: tuple[Row, ...]


def svg(frames: Sequence[Frame], size: Size, *, title: str) -> str:
    """The film, which begins again after its last frame."""
    width, height = size.columns * _WIDTH, size.lines * _HEIGHT
    whole = sum(frame.seconds for frame in frames)
    names: dict[Row, str] = {}
    strip = []
    for place, frame in enumerate(frames):
        lines = [
            f'<use href="#{names.setdefault(row, f"l{len(names)}")}" y="{y * _HEIGHT}"/>'
            for y, row in enumerate(frame.rows)
            if row
        ]
        strip.append(f'<g class="f" id="f{place}">{"".join(lines)}</g>')
    known = "\n".join(f'<text id="{name}" y="{_BASE}">{_line(row)}</text>' for row, name in names.items())
    whole_width, whole_height = width + 2 * _MARGIN, height + _BAR + _MARGIN
    lights = "".join(
        f'<circle cx="{_MARGIN + 6 + 20 * i}" cy="{_BAR / 2:g}" r="6" fill="{colour}"/>'
        for i, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    colours = "".join(f".{_CLASSES[name]}{{fill:{colour}}}" for name, colour in _COLOURS.items())
    newline = "\n"
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole_width:g} {whole_height:g}" width="{whole_width:g}" \
role="img" aria-label="{escape(title)}">
<title>{escape(title)}</title>
<style>
text{{font:{_FONT}px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono","Liberation Mono",monospace;\
fill:{_COLOURS["default"]};white-space:pre}}
.b{{font-weight:bold}}
{colours}
.f{{animation:{whole:g}s step-end infinite}}
.f:not(:last-child){{visibility:hidden}}
{newline.join(_shown(frames, whole))}
</style>
<defs>
{known}
</defs>
<rect width="100%" height="100%" rx="10" fill="#0d1117" stroke="#30363d"/>
{lights}
<text x="{whole_width / 2:g}" y="{_BAR / 2 + 5:g}" text-anchor="middle" fill-opacity=".6">{escape(title)}</text>
<g transform="translate({_MARGIN} {_BAR})">
{newline.join(strip)}
</g>
</svg>
"""


def _shown(frames: Sequence[Frame], whole: float) -> Iterator[str]:
    """When each frame is seen, as shares of the whole time."""
    begins = [100 * at / whole for at in accumulate((f.seconds for f in frames), initial=0.0)]
    for place, (begin, end) in enumerate(pairwise(begins)):
        before = "" if place == 0 else "0%{visibility:hidden}"
        after = "" if place == len(frames) - 1 else f"{end:.3f}%{{visibility:hidden}}"
        yield (
            f"#f{place}{{animation-name:k{place}}}"
            f"@keyframes k{place}{{{before}{begin:.3f}%{{visibility:visible}}{after}}}"
        )


def _line(row: Row) -> str:
    """The runs where they stand. How long they are is told too, as fonts are not equally wide."""
    return "".join(
        f'<tspan x="{run.column * _WIDTH:.4g}"{_length(run)}{_style(run)}>{escape(run.text)}</tspan>'
        for run in row
    )


def _length(run: Run) -> str:
    return "" if len(run.text) < 3 else f' textLength="{len(run.text) * _WIDTH:.4g}"'


def _style(run: Run) -> str:
    """Bold and the colours that have a name are classes, which are shorter."""
    named = run.colour in _COLOURS
    classes = (["b"] if run.bold else []) + (
        [_CLASSES[run.colour]] if named and run.colour != "default" else []
    )
    fill = "" if named else f' fill="#{run.colour}"'
    return fill + (f' class="{" ".join(classes)}"' if classes else "")
