"""What a dashboard's queries get of a Prometheus."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

POINTS: Final = 240
"""Of a line: about as many as Grafana asks for a third of a page."""


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a query: ``times`` in seconds since 1970, and its ``values``."""

    name: str
    times: NDArray[np.float64]
    values: NDArray[np.float64]


class PrometheusApi:
    """Asks a server as Grafana does. ``interval``: what ``$__rate_interval`` stands for."""

    def __init__(self, url: str, interval: str = "20s") -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is not the address of a Prometheus, such as http://127.0.0.1:9090")
        self._url = url.rstrip("/")
        self._interval = interval

    def query(self, expr: str) -> str:
        """As Grafana sends it, for all instances."""
        return expr.replace("$__rate_interval", self._interval).replace("$instance", ".*")

    def now(self, expr: str) -> list[float]:
        """The value of each series at this moment."""
        found = self._get("query", query=self.query(expr))
        return [float(series["value"][1]) for series in found["result"]]

    def lines(self, expr: str, legend: str, end: float, seconds: float) -> list[Line]:
        """The series of the ``seconds`` before ``end``, named as ``legend`` says."""
        step = max(1.0, seconds / POINTS)
        found = self._get(
            "query_range", query=self.query(expr), start=f"{end - seconds}", end=f"{end}", step=f"{step}"
        )
        return [_line(series, legend) for series in found["result"]]

    def _get(self, path: str, **query: str) -> Any:
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - http, as was checked
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"Prometheus refuses {query['query']}: {error.read().decode()}") from None


def _line(series: Mapping[str, Any], legend: str) -> Line:
    points = np.array([(float(at), float(value)) for at, value in series["values"]]).reshape(-1, 2)
    return Line(named(legend, series["metric"]), points[:, 0], points[:, 1])


def named(legend: str, labels: Mapping[str, str]) -> str:
    """The name of a series in the legend: ``{{label}}`` is replaced, and ``__auto`` is the labels as they are.

    >>> named("{{topic}} p95", {"topic": "mdp.events"})
    'mdp.events p95'
    """
    if legend == "__auto":
        return ", ".join(f"{name}={value}" for name, value in labels.items() if name != "__name__")
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), legend)
