"""Error Monitoring."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from grafana.panels import board, chart, figure, filled
from grafana.queries import WINDOW, rate


def error_monitoring() -> Dashboard:
    page = board("error-monitoring", "Error Monitoring", "What goes wrong, and what is done about it.")
    panels = (
        figure("Errors", "Errors a second.", "ops", rate("errors_total"), warn=0.01, bad=1),
        figure(
            "Retries", "Calls a second that are made again.", "ops", rate("retries_total"), warn=0.01, bad=1
        ),
        figure(
            "Dead letters",
            "Records a second put aside.",
            "recps",
            rate("dead_letters_total"),
            warn=0.01,
            bad=1,
        ),
        figure(
            "Alerts",
            "Alerts that are firing.",
            "short",
            'count(ALERTS{alertstate="firing"}) or vector(0)',
            bad=1,
        ),
        chart(
            "Errors by component",
            "What failed, and why.",
            "ops",
            (rate("errors_total", by="component, reason"), "{{component}} {{reason}}"),
            stacked=True,
        ),
        chart(
            "Retries",
            "Calls that failed and are made again.",
            "ops",
            (rate("retries_total", by="component"), "{{component}}"),
            stacked=True,
        ),
        chart(
            "Dead letters",
            "Records put aside, by reason.",
            "recps",
            (rate("dead_letters_total", by="topic, reason"), "{{topic}} {{reason}}"),
            stacked=True,
        ),
        chart(
            "Fenced writes",
            "Writes refused to a worker that was replaced.",
            "short",
            (f"sum by (topic) (increase(stream_fenced_writes_total{{@}}{WINDOW}))", "{{topic}}"),
            whole=True,
        ),
        chart(
            "Dropped events",
            "Of live feeds, for want of room in the spool.",
            "eps",
            (rate("producer_dropped_events_total", by="provider"), "{{provider}}"),
        ),
        chart(
            "Lost to the hard cap",
            "Records that bus.redis.max_records removed before every group had them.",
            "recps",
            (rate("stream_trimmed_records_total", '@, kind="forced"', by="topic"), "{{topic}}"),
        ),
        chart(
            "Memory",
            "Resident bytes.",
            "bytes",
            ("process_resident_memory_bytes{@}", "{{instance}}"),
            wide=True,
        ),
        chart(
            "Open files",
            "By what is allowed.",
            "percentunit",
            ("process_open_fds{@} / process_max_fds{@}", "{{instance}}"),
            wide=True,
        ),
    )
    return filled(page, panels)
