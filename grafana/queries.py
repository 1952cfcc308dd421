"""The PromQL that panels have in common."""

from __future__ import annotations

from typing import Final

from grafana.panels import Query

WINDOW: Final = "[$__rate_interval]"


def rate(metric: str, labels: str = "@", by: str = "") -> str:
    """The sum of the rates of a counter, or a sum for each value of ``by``."""
    total = f"sum by ({by}) " if by else "sum"
    return f"{total}(rate({metric}{{{labels}}}{WINDOW}))"


def quantiles(histogram: str, by: str = "", *quantiles: float, labels: str = "@") -> list[Query]:
    """A line for each quantile (p50, p95 and p99 unless given), and for each value of ``by``."""
    groups = f"le, {by}" if by else "le"
    prefix = f"{{{{{by}}}}} " if by else ""
    return [
        (
            f"histogram_quantile({q}, {rate(f'{histogram}_bucket', labels, groups)})",
            f"{prefix}p{q * 100:g}",
        )
        for q in quantiles or (0.5, 0.95, 0.99)
    ]
