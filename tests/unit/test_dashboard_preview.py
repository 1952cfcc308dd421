"""What the pictures of dashboards are made of: units, names of lines, and the faults of a layout."""

from __future__ import annotations

from dataclasses import replace

import pytest

from grafana.pages import Page, pages
from grafana.preview import table
from grafana.prometheus_api import PrometheusApi, named
from grafana.units import written


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0123, "s", "12.3 ms"),
        (0.0000481, "s", "48.1 µs"),
        (1460.0, "ms", "1.46 s"),
        (-90.0, "s", "-1.5 min"),
        (0.0, "ms", "0 s"),
        (5321.0, "eps", "5.32 K evt/s"),
        (0.5, "percentunit", "50 %"),
        (3.5 * 2**20, "bytes", "3.5 MiB"),
        (7.0, "short", "7"),
        (float("nan"), "short", "no data"),
    ],
)
def test_numbers_are_written_in_their_unit(value: float, unit: str, text: str) -> None:
    assert written(value, unit) == text


def test_lines_are_named_by_their_legend() -> None:
    labels = {"__name__": "up", "topic": "mdp.events", "group": "g"}
    assert named("{{topic}} {{ group }} p95", labels) == "mdp.events g p95"
    assert named("{{nothing}}x", labels) == "x"
    assert named("__auto", labels) == "topic=mdp.events, group=g"


def test_queries_are_sent_as_grafana_sends_them() -> None:
    api = PrometheusApi("http://127.0.0.1:9090", "15s")
    assert api.query('rate(a{instance=~"$instance"}[$__rate_interval])') == 'rate(a{instance=~".*"}[15s])'
    with pytest.raises(ValueError, match="is not the address of a Prometheus"):
        PrometheusApi("file:///etc/passwd")


def test_a_hole_and_an_overlap_are_faults() -> None:
    page = next(iter(pages()))
    assert page.faults() == []
    first, *others = page.panels
    moved = replace(first, x=first.x + 1)
    assert Page("p", "P", (moved, *others)).faults() == [f"{first.title} lies over {others[0].title}"]
    assert Page("p", "P", tuple(others)).faults() == [f"{first.w * first.h} cells are empty"]
    outside = replace(others[2], x=20)
    assert f"{outside.title} is beyond the page" in Page("p", "P", (first, outside)).faults()


def test_the_table_says_how_many_series_a_query_finds() -> None:
    panel = next(iter(pages())).panels[0]
    *_, row = table([(panel, 'a{b=~"x|y"}', 3)]).splitlines()
    assert row == f'| {panel.board} | {panel.title} | 3 | `a{{b=~"x\\|y"}}` |'
