"""The recording on the first page: what a terminal showed, as an SVG that moves without a script."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("pyte", reason="the recorder's terminal is not installed; `make setup` brings it")

from docs import film, recording
from docs.film import Frame, Row, Run, Size

DEMO = Path(film.__file__).with_name("demo.svg")
MOST_BYTES = 150_000
SVG = "{http://www.w3.org/2000/svg}"
SIZE = Size(30, 6)
PROGRAM = r"""
import sys, time
print("\x1b[1;32mone\x1b[0m  \x1b[2mtwo\x1b[0m <&> \x1b[38;2;1;2;3mthree\x1b[0m", flush=True)
time.sleep(0.3)
print("\x1b[H\x1b[2J   last", flush=True)
sys.exit(3)
"""


def words(rows: tuple[Row, ...]) -> list[str]:
    """The screen as lines of text."""
    out = []
    for row in rows:
        line = ""
        for run in row:
            line = line.ljust(run.column) + run.text
        out.append(line)
    while out and not out[-1]:
        out.pop()
    return out


def shown(picture: str, share: float) -> list[str]:
    """Names of the frames that are seen at a share of the whole time, by the style sheet."""
    seen = []
    for name, steps in re.findall(r"@keyframes k(\d+)\{((?:[\d.]+%\{visibility:\w+\})+)\}", picture):
        state = "visible"
        for percent, value in re.findall(r"([\d.]+)%\{visibility:(\w+)\}", steps):
            if float(percent) <= 100 * share:
                state = value
        if state == "visible":
            seen.append(f"f{name}")
    return seen


def lines_of(picture: str) -> dict[str, list[str]]:
    """Every frame's lines of text from the top, by its name."""
    root = ElementTree.fromstring(picture)
    known = {t.get("id"): "".join(t.itertext()) for t in root.findall(f"{SVG}defs/{SVG}text")}
    return {
        group.get("id", ""): [known[use.get("href", "")[1:]] for use in group.findall(f"{SVG}use")]
        for group in root.iter(f"{SVG}g")
        if group.get("class") == "f"
    }


def test_screens_are_what_a_program_wrote() -> None:
    recorded = recording.record([sys.executable, "-c", PROGRAM], SIZE, shown_as="count", rate=20, stays=5)
    assert recorded.code == 3
    first, *between, last = [words(frame.rows) for frame in recorded.frames]
    assert first == ["$ count"]
    # On a busy machine both may have been written before anybody looked.
    assert between in ([], [["$ count", "one  two <&> three"]])
    assert last == ["   last"]
    assert recorded.frames[-1].seconds == 5
    assert all(frame.seconds <= 1 for frame in recorded.frames[:-1])


def test_colours_and_bold_are_the_terminals() -> None:
    program = PROGRAM.partition("time.sleep")[0]
    rows = recording.record([sys.executable, "-c", program], SIZE, shown_as="x").frames[-1].rows
    assert rows[1] == (
        Run(0, "one", "green", bold=True),
        Run(5, "two", "brightblack"),
        Run(9, "<&>"),
        Run(13, "three", "010203"),
    )


def test_a_program_that_does_not_exist_is_told() -> None:
    with pytest.raises(FileNotFoundError, match="/no/such/program"):
        recording.record(["/no/such/program"], SIZE, shown_as="x")


def test_one_frame_is_seen_at_a_time_for_as_long_as_it_stayed() -> None:
    same, changing = (Run(0, "<same>"),), [(Run(2, f"n{i}", "cyan", bold=True),) for i in range(3)]
    seconds = (1.0, 0.5, 2.5)
    frames = [Frame(s, (same, (), row)) for s, row in zip(seconds, changing, strict=True)]
    picture = film.svg(frames, SIZE, title="a <title>")
    assert lines_of(picture) == {f"f{i}": ["<same>", f"n{i}"] for i in range(3)}
    assert picture.count("&lt;same&gt;") == 1, "a line of several frames is written once"
    for at, name in ((0.0, "f0"), (0.9, "f0"), (1.1, "f1"), (1.6, "f2"), (3.9, "f2")):
        assert shown(picture, at / sum(seconds)) == [name]
    assert "<script" not in picture


def test_what_tells_of_the_machine_is_found() -> None:
    assert str(Path.home()) in recording.tells_on(f"in {Path.home()}/file")
    assert recording.tells_on("nothing of it") == []


def test_the_recording_in_the_repository_is_whole_small_and_of_no_machine() -> None:
    picture = DEMO.read_text("utf-8")
    assert len(picture.encode()) < MOST_BYTES
    assert not re.search(r"/(home|Users|root|tmp|var|opt|work)\b", picture)
    frames = lines_of(picture)
    assert list(frames) == [f"f{i}" for i in range(len(frames))]
    assert len(frames) > 20
    assert all(lines[0] == "$make demo" for lines in frames.values())
    assert shown(picture, 0.0) == ["f0"]
    assert shown(picture, 0.999) == [f"f{len(frames) - 1}"]
    end = " ".join(list(frames.values())[-1])
    assert "lost0" in end
    assert "An independent recount" in end
