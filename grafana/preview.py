"""See the dashboards without a Grafana: their panels where they are, with what a Prometheus has for them.

``python -m grafana.preview --prometheus http://127.0.0.1:9090 --out pictures`` draws a picture of each, with
matplotlib; ``--table`` lists every query and how many series it finds instead.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from grafana.pages import Panel, pages
from grafana.prometheus_api import PrometheusApi


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, or list; 1 when a panel of the list has no data."""
    parser = argparse.ArgumentParser(prog="python -m grafana.preview", description=__doc__.splitlines()[0])
    parser.add_argument("--prometheus", required=True, metavar="URL")
    parser.add_argument("--out", type=Path, default=Path("dashboards-preview"), metavar="DIR")
    parser.add_argument("--seconds", type=float, default=1800, help="how far back (default: 1800)")
    parser.add_argument("--rate-interval", default="20s", help="what $__rate_interval is (default: 20s)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these dashboards alone")
    parser.add_argument("--table", action="store_true", help="list queries and numbers of series instead")
    given = parser.parse_args(arguments)
    api = PrometheusApi(given.prometheus, given.rate_interval)
    if given.table:
        rows = list(counted(api))
        sys.stdout.write(table(rows))
        return 0 if all(number for *_, number in rows) else 1
    from grafana.drawing import draw

    given.out.mkdir(parents=True, exist_ok=True)
    end = time.time()
    for page in pages():
        if given.only and page.name not in given.only:
            continue
        found = {
            panel: [
                line
                for target in panel.targets
                for line in api.lines(target.expr, target.legend, end, given.seconds)
            ]
            for panel in page.panels
        }
        draw(page, found, (end - given.seconds, end), given.out / f"{page.name}.png")
    return 0


def counted(api: PrometheusApi) -> Iterator[tuple[Panel, str, int]]:
    """Every query of every panel, with the number of series that have a finite value now."""
    for page in pages():
        for panel in page.panels:
            for target in panel.targets:
                yield panel, target.expr, sum(map(math.isfinite, api.now(target.expr)))


def table(rows: Sequence[tuple[Panel, str, int]]) -> str:
    """``rows`` as Markdown."""
    lines = ["| dashboard | panel | series | query |", "|---|---|--:|---|"]
    for panel, expr, number in rows:
        escaped = expr.replace("|", "\\|")
        lines.append(f"| {panel.board} | {panel.title} | {number} | `{escaped}` |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
