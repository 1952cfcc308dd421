"""What every panel looks like: a chart, a figure, a timeline of states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

from grafana_foundation_sdk.builders import common, dashboard, stat, statetimeline, timeseries
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

DATASOURCE: Final = models.DataSourceRef(type_val="prometheus", uid="mdp-prometheus")
_INSTANCE: Final = 'instance=~"$instance"'
_Panel = TypeVar("_Panel", timeseries.Panel, stat.Panel, statetimeline.Panel)

_Any = timeseries.Panel | stat.Panel | statetimeline.Panel

_DASHED_RED: Final = [
    models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": "red"}),
    models.DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [10, 10]}),
    models.DynamicConfigValue(id_val="custom.fillOpacity", value=0),
]

Query = tuple[str, str]
"""An expression, in which ``@`` stands for the instances chosen on the dashboard, and its legend."""


def chart(
    title: str,
    about: str,
    unit: str,
    *queries: Query,
    stacked: bool = False,
    whole: bool = False,
    limit: float | None = None,
    goal: Query | None = None,
    wide: bool = False,
) -> timeseries.Panel:
    """Lines over time, a third of the page wide, or half of it.

    ``whole``: what is counted comes in whole numbers. ``limit``: where it becomes too much, a dashed line that is
    always in sight. ``goal``: a dashed line as well, which is itself a query.
    """
    panel = (
        _described(timeseries.Panel(), title, about, unit, [*queries, *([goal] if goal else [])])
        .span(12 if wide else 8)
        .height(8)
        .min(0)
        .line_width(1)
        .fill_opacity(30 if stacked else 8)
        .show_points(common_models.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_models.TooltipDisplayMode.MULTI)
            .sort(common_models.SortOrder.DESCENDING)
        )
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if whole:
        # Else nothing at all is an axis from 0 to 0.05.
        panel.decimals(0).axis_soft_max(1)
    if limit is not None:
        steps = [
            models.Threshold(value=None, color="transparent"),
            models.Threshold(value=limit, color="red"),
        ]
        panel.axis_soft_max(limit * 1.3).thresholds(
            dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)
        ).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(common_models.GraphTresholdsStyleMode.DASHED)
        )
    if goal is not None:
        panel.override_by_name(goal[1], _DASHED_RED)
    return panel


def figure(
    title: str, about: str, unit: str, expr: str, *, warn: float | None = None, bad: float | None = None
) -> stat.Panel:
    """One number, now; yellow from ``warn``, red from ``bad``."""
    steps = [models.Threshold(value=None, color="green")]
    steps += [
        models.Threshold(value=value, color=color)
        for value, color in ((warn, "yellow"), (bad, "red"))
        if value is not None
    ]
    return (
        _described(stat.Panel(), title, about, unit, [(expr, "")])
        .span(6)
        .height(4)
        .graph_mode(common_models.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    )


def timeline(title: str, about: str, *queries: Query) -> statetimeline.Panel:
    """Bands of 0 and 1 over time."""
    return (
        _described(statetimeline.Panel(), title, about, "short", queries)
        .span(8)
        .height(8)
        .show_value(common_models.VisibilityMode.NEVER)
        .thresholds(
            dashboard.ThresholdsConfig()
            .mode(models.ThresholdsMode.ABSOLUTE)
            .steps(
                [models.Threshold(value=None, color="transparent"), models.Threshold(value=1, color="blue")]
            )
        )
    )


def board(name: str, title: str, about: str) -> dashboard.Dashboard:
    """A page without panels, with its variable and links to the others."""
    instances = (
        dashboard.QueryVariable("instance")
        .label("Instance")
        .datasource(DATASOURCE)
        .query("label_values(mdp_build_info, instance)")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )
    links = (
        dashboard.DashboardLink("mdp")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags(["mdp"])
        .as_dropdown(True)
        .keep_time(True)
        .include_vars(True)
    )
    return (
        dashboard.Dashboard(title)
        .uid(f"mdp-{name}")
        .description(about)
        .tags(["mdp"])
        .time("now-30m", "now")
        .refresh("10s")
        .timezone("browser")
        .readonly()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(instances)
        .link(links)
    )


def filled(page: dashboard.Dashboard, panels: Sequence[_Any]) -> dashboard.Dashboard:
    """The page with ``panels``, numbered, so that a link to one stays good."""
    for number, panel in enumerate(panels, 1):
        page.with_panel(panel.id(number))
    return page


def _described(
    panel: _Panel, title: str, about: str, unit: str, queries: list[Query] | tuple[Query, ...]
) -> _Panel:
    panel.title(title).description(about).unit(unit).datasource(DATASOURCE)
    for number, (expr, legend) in enumerate(queries):
        panel.with_target(
            Dataquery()
            .expr(expr.replace("@", _INSTANCE))
            .legend_format(legend or "__auto")
            .ref_id(chr(ord("A") + number))
            .datasource(DATASOURCE)
        )
    return panel
