"""``python -m benchmarks.peers [NAME ...]``: measure, print a table, write ``bench-results/peers.json``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.console import Console

from benchmarks import report as reports
from benchmarks.measure import Measured
from benchmarks.peers import stage as stages
from benchmarks.peers.contenders import CONTENDERS
from benchmarks.peers.running import ProgramFailed, run
from benchmarks.peers.venvs import HERE
from tests.servers import ServerMissing

TIMES_THE_BEST: Final = 5.0
FRAMES_A_SECOND: Final = 1e6


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for. ``short``: events of the topic of those that are too slow for the other one."""

    names: tuple[str, ...]
    events: int
    frames: int
    short: int
    symbols: int
    rounds: int
    as_json: bool


def options(arguments: Sequence[str]) -> Options:
    """Raises SystemExit for what cannot be done, as argparse does."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description="mdp beside its peers: Kafka to bars to PostgreSQL."
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(CONTENDERS)}; all by default"
    )
    parser.add_argument("--events", type=_positive, default=1_500_000, help="ticks in JSON")
    parser.add_argument("--frames", type=_positive, default=2_400_000, help="ticks in frames, for mdp")
    parser.add_argument(
        "--short", type=_positive, default=30_000, help="ticks in JSON for faust, which is slow"
    )
    parser.add_argument("--symbols", type=_positive, default=50)
    parser.add_argument("--rounds", type=_positive, default=3, help="of all of them in turn")
    parser.add_argument(
        "--json", action="store_true", dest="as_json", help="one JSON object instead of a table"
    )
    found = parser.parse_args(arguments)
    for name in found.names:
        if name not in CONTENDERS:
            parser.error(f"{name}: use names of {', '.join(CONTENDERS)}")
    if found.symbols > 50:
        # Ticks of a symbol lie 50 ms apart, all of them 1 ms with 50 symbols: some peers count in whole milliseconds.
        parser.error("--symbols: at most 50, since some peers know times of whole milliseconds only")
    return Options(
        tuple(found.names or CONTENDERS),
        found.events,
        found.frames,
        found.short,
        found.symbols,
        found.rounds,
        found.as_json,
    )


def _positive(text: str) -> int:
    if not text.replace("_", "").isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


class Bench:
    """``failed``: why a program is left out, by its label."""

    def __init__(self, asked: Options, console: Console) -> None:
        self.asked = asked
        title = f"Kafka to bars to PostgreSQL, {asked.symbols} symbols, 2 s windows, one process each"
        self.report = reports.Report("peers", title)
        self.failed: dict[str, str] = {}
        self._console = console
        self._contenders = [CONTENDERS[name] for name in asked.names]

    def measure(self) -> dict[str, Any]:
        """Every program in turn, ``rounds`` times; the machine."""
        pythons = {}
        for contender in self._contenders:
            try:
                pythons[contender.label] = contender.python()
            except ServerMissing as reason:
                self.failed[contender.label] = str(reason)
        with stages.set_up() as stage:
            sizes = {"json": self.asked.events, "short": self.asked.short, "frames": self.asked.frames}
            topics = {
                name: stage.load(
                    name, "frame" if name == "frames" else "json", sizes[name], self.asked.symbols
                )
                for name in {contender.topic for contender in self._contenders}
            }
            machine = reports.machine(stage.servers.versions()) | self._versions()
            with self._console.status("") as status:
                for number in range(self.asked.rounds):
                    for contender in self._contenders:
                        if contender.label in self.failed:
                            continue
                        status.update(f"round {number + 1} of {self.asked.rounds}: {contender.label}")
                        try:
                            done = run(contender, pythons[contender.label], stage, topics[contender.topic])
                        except ProgramFailed as reason:
                            self.failed[contender.label] = str(reason)
                            self.report.runs.pop(contender.label, None)
                        else:
                            self.report.runs.setdefault(contender.label, []).append(done)
        self._compare()
        return machine

    def _versions(self) -> dict[str, str]:
        found = {"mdp": version("mdp")}
        for contender in self._contenders:
            if contender.lock:
                found[contender.label] = pinned(HERE / contender.lock, contender.label)
        return found

    def _compare(self) -> None:
        runs = self.report.runs
        peers = [c.label for c in self._contenders if c.kind == "peer" and c.label in runs]
        ours, frames = CONTENDERS["mdp"].label, CONTENDERS["mdp-frames"].label
        if ours in runs and peers:
            best = max(peers, key=lambda label: median(r.rate for r in runs[label]))
            self.report.compare(f"{ours} by the best of the others, {best}", ours, best, TIMES_THE_BEST)
            self.report.compare("the same by CPU time of the process", ours, best, cpu=True)
        if frames in runs:
            rates = [r.rate / FRAMES_A_SECOND for r in runs[frames]]
            self.report.ratios.append(reports.Ratio("mdp, frames, in million events a second", rates, 1.0))

    def wrong(self) -> dict[str, list[str]]:
        """What was wrong with a program's bars, in any round."""
        return {label: found for label, runs in self.report.runs.items() if (found := _differences(runs))}


def _differences(runs: Sequence[Measured]) -> list[str]:
    return list(dict.fromkeys(text for r in runs for text in r.more["differences"]))


def pinned(lock: Path, label: str) -> str:
    """The version of the peer itself in its lock."""
    name = label.replace("quix-streams", "quixstreams")
    line = next(row for row in lock.read_text(encoding="utf-8").splitlines() if row.startswith(f"{name}=="))
    return line.removeprefix(f"{name}==").split()[0]


def main(arguments: Sequence[str]) -> int:
    asked = options(arguments)
    console = Console(width=max(Console().width, 120), stderr=asked.as_json)
    bench = Bench(asked, console)
    try:
        machine = bench.measure()
    except ServerMissing as reason:
        print(f"nothing can be measured: {reason}", file=sys.stderr)
        return 1
    path = bench.report.write(machine)
    if asked.as_json:
        found = json.loads(path.read_text(encoding="utf-8"))
        print(json.dumps(found | {"wrong": bench.wrong(), "failed": bench.failed}))
    else:
        bench.report.print(console)
    for label, said in bench.failed.items():
        print(f"{label} is left out: {said}", file=sys.stderr)
    for label, texts in bench.wrong().items():
        print(f"bars of {label} are not those of the recount: {'; '.join(texts)}", file=sys.stderr)
    ours = [c.label for c in CONTENDERS.values() if c.kind == "ours"]
    return int(any(label in bench.failed or label in bench.wrong() for label in ours))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
