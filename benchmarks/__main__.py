"""``python -m benchmarks [NAME ...]``: measure, print a table, write ``bench-results/NAME.json``.

``BENCH=quick`` takes less of everything, to see that it works; its figures say little.
"""

from __future__ import annotations

import os
import sys

from rich.console import Console

from benchmarks import report, servers, suites
from benchmarks.ticks import WrongBars
from tests.servers import ServerMissing


def main(names: list[str]) -> int:
    console = Console(width=max(Console().width, 120))
    wanted = names or list(suites.SUITES)
    unknown = [name for name in wanted if name not in suites.SUITES]
    how_much = os.environ.get("BENCH", "full")
    if unknown or how_much not in ("full", "quick"):
        wrong = f"BENCH={how_much}" if not unknown else unknown[0]
        print(f"{wrong}: use BENCH=full or quick, and names of {', '.join(suites.SUITES)}", file=sys.stderr)
        return 2
    size = suites.QUICK if how_much == "quick" else suites.FULL
    with servers.started() as running:
        machine = report.machine(running.versions()) | {"size": how_much}
        for name in wanted:
            try:
                found = suites.SUITES[name](running, size, console)
            except ServerMissing as reason:
                print(f"{name} is left out: {reason}", file=sys.stderr)
                continue
            except WrongBars as error:
                print(f"wrong bars: {error}", file=sys.stderr)
                return 1
            found.write(machine)
            found.print(console)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
